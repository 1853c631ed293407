"""The doorway: opening and saving join the rooms, so that neither needs to know the other."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merganser.algebra.weights import Weights, doorway, from_checkpoint
from merganser.checkpoint import open_checkpoint
from merganser.errors import RequestError, did_you_mean

if TYPE_CHECKING:
    import numpy as np

    from merganser._progress import Progress
    from merganser.algebra import Expression
    from merganser.checkpoint import Checkpoint
    from merganser.engine import Report, SaveOptions


def open(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    allow_pickle: bool = False,
    relative_to: Path | None = None,
    degree: float | None = None,
) -> Weights:
    """Open a checkpoint lazily: a model directory, an index, a .safetensors file or a PEFT LoRA adapter directory.

    Only headers are read. A model has degree 1; an adapter is the change it makes to its base, of degree 0; what
    merganser saved has the degree that its manifest says; `degree` stands above these (0 for a task vector that another
    tool wrote). `name` is
    what errors, the manifest and random draws call it (default: its file or directory name). Pickled files are refused
    unless `allow_pickle`; then tensors are read from them and nothing in them is run.

    Raises `CheckpointError` for malformed files and `RequestError` where there is nothing to open.
    """
    return from_checkpoint(
        open_checkpoint(path, name=name, allow_pickle=allow_pickle, relative_to=relative_to), degree
    )


def save(
    weights: Weights, out: str | os.PathLike[str], *, options: SaveOptions | None = None, **fields: Any
) -> Report:
    """Compute `weights` and write them to a directory, or one file where `out` ends in .safetensors, and seal it.

    `fields` are those of `SaveOptions` (memory, threads, shard_size, overwrite, dtype, degree ...).
    """
    from merganser import engine

    return engine.save(weights, Path(out), _options(options, fields))


def explain(weights: Weights, *, options: SaveOptions | None = None, **fields: Any) -> dict[str, Any]:
    """What `save` would do, as a JSON document: passes, bytes, memory, files, formulas. Reads no tensor bytes."""
    from merganser import engine

    return engine.explain(weights, _options(options, fields))


def compute(weights: Weights, name: str, *, allow_nonfinite: bool = True) -> np.ndarray[Any, Any]:
    """One tensor in memory as a NumPy array: f32, or f64 where a parent is F64.

    NaN and Inf are shown as they are. With `allow_nonfinite=False` a parent that holds one, and a result that does,
    raise `NonFiniteError`.
    """
    from merganser import engine

    return engine.compute(weights, name, allow_nonfinite=allow_nonfinite)


def compute_scalars(
    targets: Mapping[str, Sequence[Expression]],
    checkpoints: Sequence[Checkpoint],
    *,
    threads: int = 0,
    memory: int | None = None,
    progress: Progress | None = None,
    allow_nonfinite: bool = True,
) -> dict[str, list[float]]:
    """Scalar expressions (norms, dot products, counts) by name, streamed over the parents.

    Of a parent that holds NaN or Inf they are what arithmetic makes of it. With `allow_nonfinite=False` it raises
    `NonFiniteError`.
    """
    from merganser import engine

    return engine.evaluate(
        targets,
        checkpoints,
        threads=threads,
        memory=memory,
        progress=progress,
        allow_nonfinite=allow_nonfinite,
    )


def verify(
    path: str | os.PathLike[str], *, threads: int = 0, progress: Progress | None = None
) -> dict[str, Any]:
    """Re-read a sealed checkpoint and compare every digest with its manifest; see `merganser.lineage.verify`."""
    from merganser import lineage

    return lineage.verify(Path(path), threads=threads, progress=progress)


def _options(options: SaveOptions | None, fields: Mapping[str, Any]) -> SaveOptions:
    from merganser.engine import SaveOptions

    known = SaveOptions.__dataclass_fields__
    for field in fields:
        if field not in known:
            raise RequestError(f"unknown option {field!r}{did_you_mean(field, known)}")
    return replace(options or SaveOptions(), **fields)


doorway.update(save=save, compute=compute)
