"""transformers, called: its words kept to itself, its errors in short, models' small files in a folder for it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def folder_of(files: Mapping[str, bytes]) -> Iterator[Path]:
    """The small files of a model in a folder of their own: config and tokenizer, and no weights."""
    with tempfile.TemporaryDirectory(prefix="merganser-") as temporary:
        for name, content in files.items():
            target = Path(temporary) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        yield Path(temporary)


@contextmanager
def quiet() -> Iterator[None]:
    """Loading reports of transformers say what is checked here; its progress bars would break ours."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def short(error: BaseException) -> str:
    """An error on one line, cut."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
