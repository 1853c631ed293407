"""What a checkpoint of statistics says of itself: of which kind, of which model, from how many rows of which data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from merganser.checkpoint import Checkpoint
from merganser.checkpoint.layout import MANIFEST_NAME
from merganser.errors import CheckpointError

PAIRED = "paired"
"""The kind that `merganser observe-pair` writes, of two models."""


@dataclass(frozen=True, slots=True)
class StatisticsNote:
    """The note. `identity` is that of the observed model (checkpoint/digest); `tokens` is 0 if not known.

    Of a pair `model` names both, and `identity` is empty.
    """

    kind: str
    model: str
    identity: str
    data: str
    rows: int
    tokens: int


def raw_note(source: Checkpoint | Sequence[Any] | None) -> Any:
    """What the first note of statistics says, as it stands: in a checkpoint's manifest, or in notes at hand.

    None where there is none.
    """
    if isinstance(source, Checkpoint):
        source = (source.sealed or {}).get("notes")
    notes = source if isinstance(source, Sequence) else ()
    return next(
        (note["statistics"] for note in notes if isinstance(note, Mapping) and "statistics" in note), None
    )


def statistics_note(checkpoint: Checkpoint) -> StatisticsNote | None:
    """The note of a checkpoint of statistics; None where it has none. Reads the manifest only.

    Raises `CheckpointError` where the note is malformed.
    """
    raw = raw_note(checkpoint)
    return None if raw is None else _read(raw, _place(checkpoint))


def _place(checkpoint: Checkpoint) -> str:
    return str(checkpoint.directory / MANIFEST_NAME if checkpoint.directory else checkpoint.path)


def _read(raw: Any, place: str) -> StatisticsNote:
    def held(key: str, kind: type, default: Any) -> Any:
        value = raw.get(key, default) if isinstance(raw, Mapping) else None
        if not isinstance(value, kind) or isinstance(value, bool):
            raise CheckpointError(f"{place}: the note of the statistics has no valid {key!r}")
        return value

    kind = held("kind", str, None)
    paired = kind == PAIRED
    models = (
        [one.get("label") for one in held("models", list, []) if isinstance(one, Mapping)] if paired else []
    )
    return StatisticsNote(
        kind=kind,
        model=" and ".join(map(str, models)) if paired else held("model", str, ""),
        identity="" if paired else held("identity", str, None),
        data=held("data", str, ""),
        rows=held("rows", int, 0),
        tokens=held("tokens", int, 0),
    )
