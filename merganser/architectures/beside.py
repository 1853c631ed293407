"""Numbers in the small files beside config.json that follow the axes: sizes of sentence models, heads by number."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from merganser.architectures.positions import Move
from merganser.architectures.reading import Axis, Reading
from merganser.checkpoint import Checkpoint
from merganser.errors import AlgebraError, CheckpointError

MODULES = "modules.json"
MOST_BYTES = 64 << 20
WIDTHS = ("embedding_dimension", "word_embedding_dimension")
"""Keys of a sentence model's pooling: the width of what it pools, which is also that of what comes out."""
INPUTS = ("in_features", "in_embedding_dimension", "in_word_embedding_dimension", "dimension", "input_dim")
"""Keys of modules with weights of their own, which read that width."""
RESIDUAL = "residual"
Documents = Mapping[str, Any]


def widths_beside(reading: Reading, before: Mapping[str, int], documents: Documents) -> dict[str, Any]:
    """The files of a sentence model's modules, by path, that say another width now.

    `documents` are its small JSON files, `before` the sizes that the model had. Raises `AlgebraError` where a module
    has weights for the old width.
    """
    old, new = before.get(RESIDUAL), reading.sizes.get(Axis(RESIDUAL))
    listed = documents.get(MODULES)
    if old is None or new is None or old == new or not isinstance(listed, list):
        return {}
    made = {}
    for module in listed:
        path = str(module.get("path") or "") if isinstance(module, Mapping) else ""
        name = f"{path}/config.json"
        config = documents.get(name)
        if not path or not isinstance(config, Mapping):
            continue
        kind = str(module.get("type", "")).rpartition(".")[2]
        width = [key for key in WIDTHS if config.get(key) == old]
        if any(isinstance(config.get(key), int) for key in INPUTS) or (width and kind != "Pooling"):
            raise AlgebraError(
                f"{reading.source}: the residual stream would have {new} elements, and {path} ({kind}) reads {old} "
                f"with weights of its own, which the step does not change. Leave residual as it is, or take {path} out "
                f"of {MODULES} first"
            )
        if width:
            made[name] = {**config, **dict.fromkeys(width, new)}
    return made


def numbers_beside(
    reading: Reading, documents: Documents
) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Files that name copies and elements by number: the path, what it says now, and a report.

    Where the new numbers are not known, or none is left, the key is taken away: a loader then says that it lacks it.
    """
    for name, keys in reading.family.beside.items():
        document = documents.get(name)
        for key, (index, axis) in keys.items():
            pairs = document.get(key) if isinstance(document, Mapping) else None
            move = reading.moves.get(index)
            if not isinstance(document, Mapping) or not isinstance(pairs, list):
                continue
            if move is None and axis not in reading.rearranged:
                continue
            kept = [] if axis in reading.rearranged or move is None else _renumbered(pairs, move)
            if kept == pairs:
                continue
            changed = {k: v for k, v in document.items() if k != key} | ({key: kept} if kept else {})
            yield name, changed, {"file": name, "key": key, "was": pairs, "is": kept or "taken away"}


def _renumbered(pairs: list[Any], move: Move) -> list[Any]:
    order = move.order or ()
    places: dict[int, list[int]] = {}
    for new, old in enumerate(order):
        places.setdefault(old, []).append(new)
    good = [pair for pair in pairs if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], int)]
    return [[new, pair[1]] for pair in good for new in places.get(pair[0], ())]


def as_json(document: Any) -> bytes:
    """A document as the files of this product are written."""
    return json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"


def documents_of(reading: Reading, origin: Checkpoint, files: Mapping[str, bytes | None]) -> dict[str, Any]:
    """The small JSON files that may follow, as they are now. `files` stand in for the origin's."""
    found: dict[str, Any] = {}

    def look(name: str) -> None:
        raw = files[name] if name in files else _read(origin, name)
        if raw is not None:
            try:
                found[name] = json.loads(raw)
            except (ValueError, RecursionError) as error:
                raise CheckpointError(f"{origin.path / name}: not acceptable JSON: {error}") from None

    for name in (MODULES, *reading.family.beside):
        look(name)
    listed = found.get(MODULES)
    for module in listed if isinstance(listed, list) else []:
        path = module.get("path") if isinstance(module, Mapping) else None
        if isinstance(path, str) and path.strip(".") and "/" not in path and "\\" not in path:
            look(f"{path}/config.json")
    return found


def _read(origin: Checkpoint, name: str) -> bytes | None:
    path = origin.path / name
    if origin.directory is None or not path.is_file() or path.is_symlink() or path.parent.is_symlink():
        return None
    if path.stat().st_size > MOST_BYTES:
        raise CheckpointError(f"{path}: larger than the cap of {MOST_BYTES:,} bytes")
    return path.read_bytes()


def followed_beside(
    reading: Reading, origin: Checkpoint, files: Mapping[str, bytes | None]
) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """The small files beside config.json that the axes change, and what a report says of them.

    Raises `AlgebraError` where a module beside the model has weights for another width.
    """
    documents = documents_of(reading, origin, files)
    made = widths_beside(reading, reading.said_before(), documents)
    notes: list[dict[str, Any]] = [{"file": name, "followed": RESIDUAL} for name in made]
    for name, document, note in numbers_beside(reading, documents):
        made[name] = document
        documents = {**documents, name: document}
        notes.append(note)
    return {name: as_json(document) for name, document in made.items()}, notes
