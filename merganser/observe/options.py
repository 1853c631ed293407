"""What can be chosen about an observation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from merganser.errors import RequestError, did_you_mean

KINDS = ("gram", "fisher", "absmax", "second_moment", "mean")
OF_INPUTS = tuple(kind for kind in KINDS if kind != "fisher")
"""Those of the inputs of matrix products."""
FISHERS = ("true", "sampled", "empirical")


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


def chosen(kinds: str | Iterable[str]) -> tuple[str, ...]:
    """Kinds out of `gram,mean` or a list, in the order of KINDS; `RequestError` for one that is not known."""
    words = kinds.split(",") if isinstance(kinds, str) else list(kinds)
    wanted = {word.strip() for word in words if word.strip()}
    for word in sorted(wanted - set(KINDS)):
        raise RequestError(
            f"no statistics are called {word!r}{did_you_mean(word, KINDS)} (known: {', '.join(KINDS)})"
        )
    if not wanted:
        raise RequestError(f"nothing to collect; known are {', '.join(KINDS)}")
    return tuple(kind for kind in KINDS if kind in wanted)
