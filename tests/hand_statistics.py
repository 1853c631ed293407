"""Statistics as merganser observe leaves them, written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from merganser.algebra import Entry, Weights
from merganser.algebra.rearranged import Array
from merganser.checkpoint import open_checkpoint
from merganser.checkpoint.digest import identity


def write_statistics(
    path: Path, kind: str, tensors: Mapping[str, np.ndarray], model: Path, **note: Any
) -> Path:
    entries = {name: Entry(Array(np.ascontiguousarray(array)), 1.0) for name, array in tensors.items()}
    told = {"kind": kind, "model": str(model), "data": "rows.jsonl", "rows": 10, "tokens": 100}
    told |= {"identity": identity(open_checkpoint(model).tensors)} | note
    weights = Weights(entries, label=kind, origin=None, notes=({"step": "observe", "statistics": told},))
    weights.save(path, dtype="float32")
    return path
