"""What can be chosen about an observation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merganser.errors import RequestError, did_you_mean
from merganser.observe.kinds import FISHERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Of the data and of the model, as given; see `observe`."""

    collect: tuple[str, ...]
    kind: str | None = None
    fisher: str | None = None
    text: str | None = None
    image: str | None = None
    values: tuple[str, ...] = ()
    label: str = "label"
    head: Path | None = None
    max_length: int | None = None
    rows: int | None = None
    batch: int = 16
    seed: int = 0
    layerwise: bool = False

    def __post_init__(self) -> None:
        if self.fisher is not None and self.fisher not in FISHERS:
            raise RequestError(
                f"fisher {self.fisher!r} is not known{did_you_mean(self.fisher, FISHERS)} ({', '.join(FISHERS)})"
            )
        for name in ("max_length", "rows", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RequestError(f"{name.replace('_', '-')} must be 1 or more, not {value}")
        given = [name for name in ("text", "image", "values") if getattr(self, name)]
        if len(given) > 1:
            raise RequestError(f"the rows are given to the model as one of {' and '.join(given)}, not both")
        if self.layerwise and "fisher" in self.collect:
            raise RequestError(
                "layer by layer, only statistics of inputs are collected: a gradient needs all layers at once; collect "
                "fisher on its own, without --layerwise"
            )

    def as_note(self) -> dict[str, Any]:
        """What shaped the numbers, for the manifest and the fingerprint of a run."""
        return {
            "max_length": self.max_length,
            "batch": self.batch,
            "seed": self.seed,
        }
