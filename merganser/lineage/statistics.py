"""What a checkpoint of statistics says of itself: of which kind, of which model, from how many rows of which data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from merganser.checkpoint import Checkpoint
from merganser.checkpoint.layout import MANIFEST_NAME, read_json
from merganser.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class StatisticsNote:
    """The note. `identity` is that of the observed model (checkpoint/digest); `tokens` is 0 if not known."""

    kind: str
    model: str
    identity: str
    data: str
    rows: int
    tokens: int


def statistics_note(checkpoint: Checkpoint) -> StatisticsNote | None:
    """The note of a checkpoint of statistics; None where it has none. Reads the manifest only.

    Raises `CheckpointError` where the note is malformed.
    """
    path = None if checkpoint.directory is None else checkpoint.directory / MANIFEST_NAME
    if path is None or not path.is_file():
        return None
    notes = read_json(path).get("notes")
    for note in notes if isinstance(notes, list) else ():
        if isinstance(note, Mapping) and "statistics" in note:
            return _read(note["statistics"], str(path))
    return None


def _read(raw: Any, place: str) -> StatisticsNote:
    def held(key: str, kind: type, default: Any) -> Any:
        value = raw.get(key, default) if isinstance(raw, Mapping) else None
        if not isinstance(value, kind) or isinstance(value, bool):
            raise CheckpointError(f"{place}: the note of the statistics has no valid {key!r}")
        return value

    return StatisticsNote(
        kind=held("kind", str, None),
        model=held("model", str, ""),
        identity=held("identity", str, None),
        data=held("data", str, ""),
        rows=held("rows", int, 0),
        tokens=held("tokens", int, 0),
    )
