"""What the attacks share: writing bytes that no honest writer would write, and opening them."""

from __future__ import annotations

import json
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def entry(dtype: Any, shape: Any, begin: Any, end: Any) -> dict[str, Any]:
    """One tensor's entry in a safetensors header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def safetensors(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    """A safetensors file with this header (JSON is made of what is not bytes), data and claimed header
    length."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def shard(path: Path, *names: str) -> Path:
    """An honest file with a four-byte tensor for each name."""
    header = {name: entry("F32", [1], 4 * i, 4 * i + 4) for i, name in enumerate(names)}
    return safetensors(path, header, bytes(4 * len(names)))


def index(directory: Path, weight_map: Any) -> Path:
    """An index with this weight map; what is returned is the directory, as a user would open it."""
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (directory / "model.safetensors.index.json").write_text(text)
    return directory


def open_all(path: Path) -> None:
    """Open what the attack made as merganser does before any tensor is read."""
    from merganser.checkpoint import open_checkpoint

    _ = open_checkpoint(path).config


def run(make: Callable[[Path], Path]) -> None:
    """Build one attack in a temporary directory, open it and print what the user sees."""
    from merganser.errors import MerganserError

    with tempfile.TemporaryDirectory() as directory:
        try:
            open_all(make(Path(directory)))
        except MerganserError as error:
            print(f"{type(error).__name__}: {error}")
        else:
            sys.exit("the attack was not noticed")
