"""The value of a parameter in a recipe: one for all tensors, or different ones by tensor name."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from merganser.algebra.selection import matcher
from merganser.errors import RequestError, did_you_mean
from merganser.methods import Parameter
from merganser.recipe.keys import Keys


@dataclass(frozen=True)
class Gradient:
    """Values along the layers: numbers are interpolated between evenly spaced points, other values are steps."""

    points: tuple[Any, ...]

    def at(self, t: float) -> Any:
        """The value at `t`, from 0 (the first layer) to 1 (the last)."""
        place = t * (len(self.points) - 1)
        low = int(place)
        if any(isinstance(point, bool | str) for point in self.points):
            return self.points[low]
        high = min(low + 1, len(self.points) - 1)
        part = place - low
        return (1 - part) * self.points[low] + part * self.points[high]


@dataclass(frozen=True)
class Rule:
    """A value, or a gradient, for the tensors whose name contains `filter`, or matches `pattern`.

    For all where both are None.
    """

    value: Any
    filter: str | None = None
    pattern: str | None = None

    def applies(self, name: str) -> bool:
        """Whether this rule is for the tensor `name`."""
        if self.pattern is not None:
            return bool(matcher(self.pattern)(name))
        return self.filter is None or self.filter == "*" or self.filter in name


@dataclass(frozen=True)
class Setting:
    """Rules in order; the first that applies counts. `place` is where in the recipe it stands."""

    rules: tuple[Rule, ...]
    place: str

    @property
    def constant(self) -> bool:
        """Whether all tensors have one value."""
        return (
            not self.graded
            and self.covers
            and len({repr(rule.value) for rule in self.rules[: self._last]}) == 1
        )

    @property
    def graded(self) -> bool:
        """Whether a value changes along the layers."""
        return any(isinstance(rule.value, Gradient) for rule in self.rules)

    @property
    def covers(self) -> bool:
        """Whether some rule applies to every name."""
        return self._last <= len(self.rules)

    @property
    def _last(self) -> int:
        for number, rule in enumerate(self.rules, 1):
            if rule.filter in (None, "*") and rule.pattern in (None, "*"):
                return number
        return len(self.rules) + 1

    def value(self, name: str, t: float = 0.0) -> Any:
        """The value for a tensor at `t` along the layers, or None where no rule applies."""
        found = next((rule.value for rule in self.rules if rule.applies(name)), None)
        return found.at(t) if isinstance(found, Gradient) else found

    def check_patterns(self, names: Iterable[str]) -> None:
        """Raise `RequestError` for a pattern that matches no tensor: it is likely misspelt."""
        names = list(names)
        for rule in self.rules:
            if rule.pattern is not None and rule.pattern != "*" and not any(map(rule.applies, names)):
                near = did_you_mean(rule.pattern, [*names, "search", "choice"])
                if rule.pattern in ("search", "choice"):
                    near = "; a recipe with open numbers is one for `merganser search`"
                raise RequestError(f"{self.place}: no tensor matches the pattern {rule.pattern!r}{near}")

    def idle_filters(self, names: Iterable[str]) -> list[str]:
        """Filters whose text is in no name: they may be misspelt, or be meant for other models."""
        names = list(names)
        texts = [rule.filter for rule in self.rules if rule.filter not in (None, "*")]
        return [
            f"{text!r} ({self.place})" for text in texts if text and not any(text in name for name in names)
        ]


def read_setting(
    raw: Any, parameter: Parameter, switch: tuple[str, str] | None, place: str, keys: Keys
) -> Setting:
    """A setting from YAML: a scalar, a list of them (a gradient along the layers), {filter, value}, a list of those,
    or in our own form {pattern: value}.

    `switch` turns a bool into one of two choices. Raises `RequestError`, naming the place, for anything else.
    """
    if isinstance(raw, list):
        return Setting(_conditions(raw, parameter, switch, place, keys), place)
    if isinstance(raw, dict):
        if "value" in raw or "filter" in raw or keys.mergekit:
            return Setting((_condition(raw, parameter, switch, place, keys),), place)
        if not raw:
            raise RequestError(f"{place}: an empty mapping gives no tensor a value")
        rules = []
        for pattern, value in raw.items():
            _check_pattern(pattern, place)
            here = f"{place}[{pattern!r}]"
            rules.append(Rule(_value(value, parameter, switch, here, keys), pattern=pattern))
        return Setting(tuple(rules), place)
    return Setting((Rule(_value(raw, parameter, switch, place, keys)),), place)


def _value(raw: Any, parameter: Parameter, switch: tuple[str, str] | None, place: str, keys: Keys) -> Any:
    """A scalar, or a gradient from a list of them."""
    if not isinstance(raw, list):
        return _scalar(raw, parameter, switch, place, keys)
    if not raw:
        raise RequestError(f"{place}: an empty list gives no tensor a value")
    points = tuple(_scalar(item, parameter, switch, f"{place}[{i}]", keys) for i, item in enumerate(raw))
    if len(set(map(repr, points))) == 1:
        return points[0]
    if parameter.kind == "integer":
        raise RequestError(f"{place}: {parameter.key} is a whole number, which has no gradient")
    return Gradient(points)


def _check_pattern(pattern: str, place: str) -> None:
    try:
        matcher(pattern)
    except RequestError as error:
        raise RequestError(f"{place}: {error}") from None


def _conditions(
    raw: list[Any], parameter: Parameter, switch: tuple[str, str] | None, place: str, keys: Keys
) -> tuple[Rule, ...]:
    if not raw:
        raise RequestError(f"{place}: an empty list gives no tensor a value")
    if not any(isinstance(item, dict) for item in raw):
        return (Rule(_value(raw, parameter, switch, place, keys)),)
    return tuple(_condition(item, parameter, switch, f"{place}[{i}]", keys) for i, item in enumerate(raw))


def _condition(
    raw: Any, parameter: Parameter, switch: tuple[str, str] | None, place: str, keys: Keys
) -> Rule:
    if not isinstance(raw, dict):
        raise RequestError(f"{place}: expected {{filter: text, value: ...}}, not {shown(raw)}")
    raw = keys.check(raw, ("filter", "value"), place.removeprefix(f"{keys.source}: "))
    if "value" not in raw:
        raise RequestError(f"{place}: has no value")
    text = raw.get("filter")
    if text is not None and not isinstance(text, str):
        raise RequestError(f"{place}.filter: expected text that tensor names contain, not {shown(text)}")
    return Rule(_value(raw["value"], parameter, switch, f"{place}.value", keys), filter=text)


def _scalar(raw: Any, parameter: Parameter, switch: tuple[str, str] | None, place: str, keys: Keys) -> Any:
    if switch is not None:
        return switch[int(_bool(raw, place, keys))]
    if parameter.kind == "bool":
        return _bool(raw, place, keys)
    if parameter.kind == "choice":
        if raw in parameter.choices and isinstance(raw, str):
            return raw
        near = did_you_mean(raw, parameter.choices) if isinstance(raw, str) else ""
        raise RequestError(f"{place}: expected one of {', '.join(parameter.choices)}, not {shown(raw)}{near}")
    if keys.mergekit and isinstance(raw, bool):
        keys.left_out(place.removeprefix(f"{keys.source}: "), f"{shown(raw)} is taken as {int(raw)}")
        raw = int(raw)
    number = _number(raw, place)
    if parameter.kind == "integer":
        if number != int(number):
            raise RequestError(f"{place}: expected a whole number, not {shown(raw)}")
        return int(number)
    if parameter.name in SHARES and not 0.0 <= number <= 1.0:
        raise RequestError(f"{place}: {parameter.key} is a share, from 0 to 1, not {shown(raw)}")
    return number


SHARES = ("density", "gamma", "collinear")
"""Parameters that are a share in every method, so that the range is checked before any file is opened."""


def _bool(raw: Any, place: str, keys: Keys) -> bool:
    if isinstance(raw, bool) or (isinstance(raw, int | float) and raw in (0, 1)):
        return bool(raw)
    if keys.mergekit and isinstance(raw, int | float | str):
        number = _number(raw, place)  # as mergekit reads it; every number but 0 is true
        keys.left_out(place.removeprefix(f"{keys.source}: "), f"{shown(raw)} is taken as {number != 0}")
        return number != 0
    raise RequestError(f"{place}: expected true or false, not {shown(raw)}")


def _number(raw: Any, place: str) -> float:
    number = math.nan
    if isinstance(raw, int | float | str) and not isinstance(raw, bool):
        try:
            number = float(raw)  # YAML 1.1 reads 1e-3 as text
        except (ValueError, OverflowError):
            number = math.nan
    if not math.isfinite(number):
        raise RequestError(f"{place}: expected a number, not {shown(raw)}")
    return number


def shown(raw: Any) -> str:
    """A value from a recipe, as errors show it."""
    if isinstance(raw, dict):
        return "a mapping"
    if isinstance(raw, list):
        return "a list" if raw else "an empty list"
    if raw is None:
        return "nothing"
    if isinstance(raw, bool):
        return str(raw).lower()
    text = repr(raw)
    return text if len(text) <= 60 else text[:57] + "..."
