"""PEFT LoRA adapter directories, read as the change they make to their base."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from merganser.checkpoint.files import StoredFile
from merganser.checkpoint.tensor import StoredTensor


@dataclass(frozen=True, slots=True)
class AdapterDelta:
    """`scale * left @ right` reshaped to `shape`: the change to one tensor of the base.

    left has shape (m, r) and right (r, n), with m * n elements as in `shape` (row-major). Each factor is a stored
    tensor; the `_transposed` flags say that it is stored the other way round ((r, m) and (n, r)).
    """

    left: StoredTensor
    left_transposed: bool
    right: StoredTensor
    right_transposed: bool
    scale: float
    rank: int
    shape: tuple[int, ...]


def read_adapter(
    directory: Path, name: str, *, allow_pickle: bool = False
) -> tuple[dict[str, AdapterDelta], tuple[StoredFile, ...]]:
    """The deltas of a PEFT LoRA adapter by the base's tensor names."""
    raise NotImplementedError
