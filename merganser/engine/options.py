"""What can be chosen about a run. Only `dtype`, `degree`, `partial` and `shard_size` change the result's bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from merganser._progress import Progress
from merganser.checkpoint import DType
from merganser.engine.kernels.loops import BLOCK
from merganser.errors import RequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveOptions:
    """How weights are computed and written.

    memory: bytes the whole process may hold resident (checked before, kept while running); None is 1 GiB more than
    it holds already, since a program may hold other things. threads: worker threads, 0
    for one a core. shard_size: bytes a file may hold. overwrite: replace an existing checkpoint (at the very end).
    resume: take over finished tensors of an interrupted run of the same recipe. allow_nonfinite: let NaN and Inf pass.
    dtype: of the float tensors written (default: each as in the base). degree: what the weights must sum to, 1 for a
    model, 0 for a task vector. partial: tensors of the base may be missing. sync: fsync before the final rename.
    recipe, seed, generator: noted in the manifest (recipe and seed also identify the run that may be resumed).
    tile: elements per tile, a multiple of 65,536 (sums are made of blocks of so many), 0 to let the plan choose; the
    bytes written do not depend on it.
    """

    memory: int | None = None
    threads: int = 0
    shard_size: int = 5 * 10**9
    overwrite: bool = False
    resume: bool = True
    allow_nonfinite: bool = False
    dtype: DType | str | None = None
    degree: float = 1.0
    partial: bool = False
    sync: bool = True
    recipe: Mapping[str, Any] | None = None
    seed: int = 0
    generator: str = "merganser.save"
    progress: Progress | None = None
    tile: int = 0

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise RequestError(f"threads must be 0 (one a core) or more, not {self.threads}")
        if self.tile < 0 or self.tile % BLOCK:
            raise RequestError(f"tile must be a multiple of {BLOCK:,} elements, or 0, not {self.tile}")
        if self.memory is not None and self.memory < 1:
            raise RequestError(f"memory must be a positive number of bytes, not {self.memory}")
        if self.shard_size < 1:
            raise RequestError(f"shard_size must be a positive number of bytes, not {self.shard_size}")
