"""Opening what `observe` wrote, and refusing it for another model."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

from merganser._facade import open as open_weights
from merganser.algebra import Leaf, Weights
from merganser.checkpoint import Checkpoint, open_checkpoint
from merganser.checkpoint.digest import identity
from merganser.checkpoint.layout import MANIFEST_NAME
from merganser.errors import RequestError
from merganser.lineage import PAIRED, statistics_note
from merganser.observe.options import KINDS


def statistics(
    path: str | os.PathLike[str], model: str | os.PathLike[str] | Weights | Checkpoint | None = None
) -> Weights:
    """Open one kind of statistics as lazy weights (f32, under the model's tensor names) with their note.

    `path` is OUT/<kind> of `observe`. `model`, where given, is what they are to be used for: its path, or it opened.

    Raises `RequestError` where `path` holds no statistics, or where they were collected on another model (another
    identity: names, dtypes, shapes or sampled bytes differ) or on one whose identity cannot be told.
    """
    place = Path(path)
    if place.is_dir() and not (place / MANIFEST_NAME).is_file():
        inside = [kind for kind in KINDS if (place / kind / MANIFEST_NAME).is_file()]
        if inside:
            raise RequestError(f"{place}: holds {', '.join(inside)}; name one, as {place / inside[0]}")
    weights = open_weights(place, name=f"{place.parent.name}/{place.name}")
    note = statistics_note(weights.checkpoints[0])
    if note is None:
        raise RequestError(
            f"{place}: holds no statistics; `merganser observe MODEL DATA OUT` writes OUT/<kind>"
        )
    if note.kind == PAIRED:
        raise RequestError(
            f"{place}: holds joint moments of two models ({note.model}), which the steps align_activations and pleas "
            "open themselves; `merganser.open` opens them without a model"
        )
    if model is not None:
        label, mark = _identity(model)
        if mark is None:
            raise RequestError(
                f"{label!r} was computed and never written, so nothing tells whether the statistics {place} are of "
                "it; save it first"
            )
        if mark != note.identity:
            raise RequestError(
                f"{place}: these statistics were collected on {note.model!r} (identity {note.identity}), and "
                f"{label!r} is another model (identity {mark}); collect them again: "
                f"merganser observe {label} DATA OUT --collect {note.kind}"
            )
    return weights.with_note({"statistics": asdict(note)})


def _identity(model: str | os.PathLike[str] | Weights | Checkpoint) -> tuple[str, str | None]:
    if isinstance(model, Weights):
        return model.label, identity(model.origin.tensors) if _unchanged(model) and model.origin else None
    found = model if isinstance(model, Checkpoint) else open_checkpoint(model)
    return str(found.path), identity(found.tensors)


def _unchanged(weights: Weights) -> bool:
    """Whether weights are a checkpoint as it lies there, or some of its tensors."""
    held = weights.origin.tensors if weights.origin is not None else {}
    expressions = {name: weights[name] for name in weights}
    return bool(held) and all(
        isinstance(one, Leaf) and held.get(name) is one.tensor for name, one in expressions.items()
    )
