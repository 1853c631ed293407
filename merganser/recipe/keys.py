"""Keys of a recipe that nothing knows: an error in merganser's own form, read over in mergekit's with a word.

mergekit takes no notice of a key that it does not know, at any level, and published recipes have many. A key that is
nearly a known one is an error in both forms, for what it was meant to say would not happen; save for the dtype at the
top, without which the same numbers are written in another precision.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from merganser.errors import RequestError, did_you_mean, listing

_PRECISION = ("dtype", "out_dtype")


@dataclass
class Keys:
    """What one document says in keys that are read over; `mergekit` is its form, `source` its file."""

    source: str
    mergekit: bool
    ignored: list[str] = field(default_factory=list)

    def check(
        self, raw: Mapping[str, Any], known: Collection[str], place: str, named: Collection[str] = ()
    ) -> dict[str, Any]:
        """The known keys of a mapping. `named` are those that an error lists, where not all of the known.

        Raises `RequestError` for a key that is unknown; in mergekit's form only where it is nearly a known one.
        """
        for key in raw:
            if key not in known:
                self.unknown(str(key), known, place, f"(known: {', '.join(named or known)})")
        return {key: value for key, value in raw.items() if key in known}

    def unknown(
        self, key: str, known: Collection[str], place: str, told: str, what: str = "unknown key"
    ) -> None:
        """One key that is not known: note it, or raise as `check` does."""
        near = did_you_mean(key, known, 0.8 if self.mergekit else 0.6)
        here = f"{place}.{key}" if place else key
        precise = not place and near in {f"; did you mean {one!r}?" for one in _PRECISION}
        if self.mergekit and (not near or precise):
            self.ignored.append(f"{here}{near.rstrip('?').replace('; did', ' (did') + '?)' if near else ''}")
            return
        raise RequestError(f"{self.source}: {here}: {what}{near} {told}")

    def left_out(self, place: str, why: str) -> None:
        """A known key whose value mergekit takes no notice of, or takes otherwise than it stands there."""
        self.ignored.append(f"{place} ({why})")

    def whole(self, raw: Any, place: str) -> Any:
        """A whole number that is written as text or with a point, as mergekit takes it; all else as it stands."""
        if not self.mergekit or isinstance(raw, bool) or not isinstance(raw, str | float):
            return raw
        try:
            number = float(raw)
        except ValueError:
            return raw
        if not number.is_integer():
            return raw
        self.left_out(place, f"{raw!r} is taken as {int(number)}")
        return int(number)


def note_of(ignored: Collection[str]) -> dict[str, Any]:
    """The note of a result whose recipe has such keys."""
    return {
        "step": "keys",
        "warning": f"{told(ignored)}. --strict makes it an error",
        "read over": list(ignored),
    }


def told(ignored: Collection[str]) -> str:
    """What is read over, in a sentence."""
    return (
        f"keys of the recipe that are read over, or read otherwise, as mergekit does: {listing(ignored, 20)}"
    )
