"""Statistics that a recipe names beside its models: found, and refused where they are of another kind or model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from merganser._facade import open as open_weights
from merganser.algebra import Weights
from merganser.checkpoint.digest import identity
from merganser.checkpoint.layout import MANIFEST_NAME, at_home, lies
from merganser.errors import RequestError, listing
from merganser.lineage import statistics_note


def open_statistics(
    path: str, kind: str, model: Weights, label: str, place: str, directory: Path | None
) -> Weights:
    """The statistics of the kind `kind` at `path`, or below it in a directory of that name.

    Reads headers, the manifest, and a few bytes of the model's tensors for its identity. Raises `RequestError` with
    the place in the recipe where there are none, and where they are of another kind or model.
    """
    weights = open_weights(_found(path, kind, place, directory), name=label)
    checkpoint = weights.checkpoints[0]
    note = statistics_note(checkpoint)
    if note is None:
        raise RequestError(
            f"{place}: {checkpoint.where} does not say what statistics it holds; merganser observe notes that in "
            f"{MANIFEST_NAME}"
        )
    if note.kind != kind:
        raise RequestError(
            f"{place}: {checkpoint.where} holds statistics of the kind {note.kind!r}, not {kind!r}"
        )
    if model.origin is None or not model.origin.tensors:
        raise RequestError(
            f"{place}: {model.label!r} is no model on disk, so nothing was observed on it; save it first"
        )
    if note.identity != identity(model.origin.tensors):
        raise RequestError(
            f"{place}: statistics of another model: {checkpoint.where} was made of {note.model!r}, which is not "
            f"{model.label!r} as it is now at {model.origin.where}; observe that one"
        )
    return weights


def unchanged(statistics: Weights, before: Weights, after: Weights) -> Weights:
    """Statistics of those tensors that a recipe (its vocabulary, its mismatch policy) left as they were observed."""
    changed = {
        name
        for name in before
        if name not in after or after.entry(name).expression is not before.entry(name).expression
    }
    if not changed & set(statistics):
        return statistics
    return statistics._with({name: statistics.entry(name) for name in statistics if name not in changed})


def renamed(statistics: Weights, names: Weights, inward: Callable[[str], str]) -> Weights:
    """Statistics under the names that a run of layers has in a slice."""
    pairs = {name: statistics.find(inward(name)) for name in names}
    return statistics._with({name: entry for name, entry in pairs.items() if entry is not None})


def _found(path: str, kind: str, place: str, directory: Path | None) -> Path:
    places = [at_home(path), *([directory / path] if directory is not None else [])]
    root = next((one for one in places if lies(one) and one.is_dir()), None)
    if root is None:
        raise RequestError(
            f"{place}: there is no directory {path!r} (statistics as merganser observe writes them)"
        )
    if (root / MANIFEST_NAME).is_file():
        return root.resolve()
    if (root / kind / MANIFEST_NAME).is_file():
        return (root / kind).resolve()
    kinds = sorted(one.parent.name for one in root.glob(f"*/{MANIFEST_NAME}"))
    raise RequestError(
        f"{place}: {path!r} holds no statistics of the kind {kind!r} (it has {listing(kinds) or 'none'})"
    )
