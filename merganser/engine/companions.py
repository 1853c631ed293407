"""What goes with the tensors of a result: the origin's small files, its parts whole, and a word about what stays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from merganser.algebra import Weights
from merganser.architectures import Reading, contradiction, read
from merganser.architectures.reading import NOT_GATHERED
from merganser.checkpoint import Checkpoint, StoredFile
from merganser.checkpoint.belongings import MODULES
from merganser.checkpoint.header import read_header
from merganser.errors import AlgebraError, CheckpointError, RequestError, listing

MANY = 20
"""Names in a note; of more the first are given and how many there are."""


def small_files_of(origin: Checkpoint | None, changed: Mapping[str, bytes | None]) -> dict[str, bytes]:
    """The origin's small files by name, with what operations changed in them."""
    files: dict[str, bytes] = {}
    if origin is not None and origin.directory is not None:
        for relative in origin.companions:
            if changed.get(str(relative), b"") is not None:
                files[str(relative)] = origin.place(str(relative)).read_bytes()
    return files | {name: content for name, content in changed.items() if content is not None}


def check_filled(checkpoints: Iterable[Checkpoint]) -> None:
    """Raise `CheckpointError` for a parent that is a model whose tensors are empty: they were never gathered."""
    for one in _models(checkpoints):
        empty = [name for name, tensor in one.tensors.items() if 0 in tensor.shape and tensor.dtype.is_float]
        flat = [name for name in empty if one.tensors[name].shape == (0,)]
        stubs = len(flat) * 2 > len(one.tensors) or (one.config is not None and (flat or len(empty) > 1))
        if len(one.tensors) > 1 and stubs:
            raise CheckpointError(
                f"{one.name}: {len(empty)} tensors hold nothing, {empty[0]!r} first: {NOT_GATHERED}"
            )


def check_contents(weights: Weights) -> None:
    """Raise `CheckpointError` for a parent that is a model, whose tensors are empty or contradict its config.json."""
    for one in _models(weights.checkpoints):
        check_filled([one])
        if (why := contradiction(one)) is not None:
            raise CheckpointError(
                f"{one.name}: {why}. config.json and the weights contradict each other, so the model does not load or "
                "is filled up with random numbers. Download or copy the model again, or mend config.json"
            )


def _models(checkpoints: Iterable[Checkpoint]) -> Iterator[Checkpoint]:
    """The models in plain numbers; what merganser itself sealed was looked at when it was made."""
    for one in checkpoints:
        if one.is_adapter or one.format == "signs" or one.factors is not None or one.encoding is not None:
            continue
        if one.degree == 1.0 and not one.sealed:
            yield one


def parts_of(weights: Weights, degree: float) -> list[str]:
    """The parts with weights of their own that a result takes over whole: those of the origin, where it is a model."""
    origin = weights.origin
    if origin is None or degree != 1.0 or weights.stem != "model":
        return []
    return [name for name in origin.belongings.parts if weights.files.get(name, b"") is not None]


def check_parts(weights: Weights, parts: Iterable[str]) -> None:
    """Raise where the result would lack what its modules.json names, or would hold a part that no longer fits."""
    origin = weights.origin
    if origin is None or weights.stem != "model":
        return
    if weights.files.get(MODULES, b"") is not None:
        origin.check_whole()
    parts = list(parts)
    if not parts or weights.reading is None:
        return
    changed = _changed_axes(origin, weights.reading)
    if not changed:
        return
    for part in parts:
        shapes = _shapes(origin, part)
        for axis, (before, after) in changed.items():
            if axis == "residual" if shapes is None else any(before in shape for shape in shapes):
                how = f"from {before} to {after}" if before != after else "in order or scale"
                folder = part.rpartition("/")[0]
                entry = f" (and its entry in {MODULES})" if folder in origin.modules else ""
                raise AlgebraError(
                    f"{origin.name}: {part} holds weights of {before} along the {axis} axis, which the steps change "
                    f"{how}; it is taken over as it is, so it would no longer fit. Do the steps on a copy of the model "
                    f"without {folder or part}{entry}, and fit that part anew"
                )


def _changed_axes(origin: Checkpoint, reading: Reading) -> dict[str, tuple[int, int]]:
    """Axes of the whole model that parts beside it may have too, size before and after."""
    before = read(origin)
    found = {}
    for axis, size in before.sizes.items():
        free = (
            axis.name in before.family.axes and axis.name not in before.family.fixed and axis.name != "labels"
        )
        now = reading.sizes.get(axis)
        if not axis.at and free and now is not None and (now != size or axis.name in reading.moved):
            found[axis.name] = (size, now)
    return found


def _shapes(origin: Checkpoint, part: str) -> list[tuple[int, ...]] | None:
    """The shapes of a part's tensors, None where they are in a form that is not read."""
    from merganser.checkpoint.pickled import read_pickled

    file = StoredFile(origin.part(part))
    try:
        if part.endswith(".safetensors"):
            tensors = read_header(file, origin.name)[0]
        elif part.endswith((".bin", ".pt", ".pth")):
            tensors = read_pickled(file, origin.name)  # its program is read, and nothing in it is run
        else:
            return None
    except CheckpointError:
        return None
    return [tensor.shape for tensor in tensors.values()]


def check_single(files: Mapping[str, bytes | None], stem: str) -> None:
    """Raise `RequestError` where a result needs files beside its tensors, so that one file cannot hold it."""
    needed = [name for name, content in files.items() if content is not None]
    if needed or stem != "model":
        raise RequestError(
            f"the result needs {listing(needed) or 'its config'} beside its tensors, and one .safetensors file cannot "
            "hold that; give a directory as the output"
        )


def files_note(weights: Weights, parts: Iterable[str], lost: Iterable[str] = ()) -> dict[str, Any] | None:
    """What the report says of files beside the weights, or None where there is nothing to say.

    `lost` are small files that would go along with a directory.
    """
    origin = weights.origin
    if origin is None or weights.stem != "model":
        return None
    parts = list(parts)
    note: dict[str, Any] = {}
    if parts:
        note["taken_over_whole"] = parts
        note["from"] = origin.name
    left = [
        *origin.belongings.left_out,
        *(name for name in origin.belongings.parts if name not in parts),
        *lost,
    ]
    if left:
        note["left_out"] = _few(left)
    others = {
        checkpoint.name: _few(lost)
        for checkpoint in weights.checkpoints
        if checkpoint is not origin and not checkpoint.is_adapter
        if (lost := [name for name in checkpoint.belongings.parts if name not in parts])
    }
    if others:
        note["not_taken_over"] = others
    return {"step": "files", **note} if note else None


def reading_note(weights: Weights) -> dict[str, Any] | None:
    """What reading the parents found that a user should know, by parent."""
    said = {one.name: "; ".join(one.remarks) for one in weights.checkpoints if one.remarks}
    return {"step": "reading", **said} if said else None


def _few(names: list[str]) -> list[str]:
    return names if len(names) <= MANY else [*names[:MANY], f"and {len(names) - MANY} more"]
