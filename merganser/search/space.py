"""What is searched for: the numbers that a recipe leaves open, and the recipe that a choice of them makes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from merganser.checkpoint.layout import at_home
from merganser.errors import RequestError, did_you_mean
from merganser.recipe import Mixture, Recipe, build
from merganser.recipe.documents import read_documents
from merganser.recipe.form import documents_of, refuse_ignored
from merganser.search.groups import GROUPINGS, Group, float_names, groups, setting

Values = dict[str, Any]
_KEYS = {
    "search": ("search", "scale", "start", "points", "by", "gradient", "name"),
    "choice": ("choice", "start", "by", "name"),
}


@dataclass(frozen=True)
class Dimension:
    """One open number or choice. Optimisers see it as a unit from 0 to 1; `start` and `points` (of a grid) are its own.

    A number runs from low to high, evenly or (`log`) in its logarithm; of choices each has an equal share of the units.
    """

    key: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    choices: tuple[Any, ...] | None = None
    start: float = 0.5
    points: int | None = None

    def value(self, unit: float) -> Any:
        """The number or choice at a unit."""
        unit = min(max(unit, 0.0), 1.0)
        if self.choices is not None:
            return self.choices[min(int(unit * len(self.choices)), len(self.choices) - 1)]
        if unit in (0.0, 1.0):
            return (self.low, self.high)[int(unit)]
        if self.log:
            return math.exp(math.log(self.low) + unit * (math.log(self.high) - math.log(self.low)))
        return self.low + unit * (self.high - self.low)

    def unit(self, value: Any) -> float:
        """The unit at which a number or choice lies."""
        if self.choices is not None:
            return (self.choices.index(value) + 0.5) / len(self.choices)
        if self.log:
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return float((value - self.low) / (self.high - self.low))


@dataclass
class Space:
    """The open numbers of a recipe. `documents` are its documents as read, with the marks still in them."""

    documents: list[Any]
    source: str
    directory: Path | None
    dimensions: list[Dimension] = field(default_factory=list)
    ignored: tuple[str, ...] = ()
    """What the recipe has that mergekit reads over, at the start of the search."""

    @classmethod
    def open(cls, path: str | Path, *, strict: bool = False) -> Space:
        """Read a recipe with open numbers; only headers of its models are read. strict: as in `recipe.load`.

        Raises `RequestError` naming the place for marks that cannot be, where nothing is open, and for what is wrong
        with the recipe at the start of the search.
        """
        from merganser.document import read_file

        path = at_home(path)
        documents, odd = documents_of(read_file(path), str(path))
        space = cls.of(documents, str(path), path.parent)
        space.ignored = (*odd, *space.ignored)
        if strict:
            refuse_ignored(space.source, space.ignored)
        return space

    @classmethod
    def of(cls, documents: Sequence[Any], source: str = "recipe", directory: Path | None = None) -> Space:
        """The same of documents already read."""
        space = cls(list(documents), source, directory)
        space._read()
        if not space.dimensions:
            raise RequestError(
                f"{source}: leaves no number open; mark what is searched for, as in weight: {{search: [0, 1]}} or "
                "density: {choice: [0.1, 0.2, 0.5]}"
            )
        space.ignored = space.recipe(space.values([one.start for one in space.dimensions])).ignored
        return space

    def values(self, units: Sequence[float]) -> Values:
        """Values by key at a point of units."""
        return {one.key: one.value(unit) for one, unit in zip(self.dimensions, units, strict=True)}

    def plain(self, values: Mapping[str, Any]) -> list[Any]:
        """The documents of the recipe that these values make, nothing left open. Raises `EmptyRoute`."""
        return [self._filled(one, (), values) for one in self.documents]

    def recipe(self, values: Mapping[str, Any]) -> Recipe | Mixture:
        """The checked recipe that these values make."""
        return read_documents(self.plain(values), self.source, self.directory)

    # Reading ----------------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        from merganser.search.route import Route

        self._marks: dict[tuple[Any, ...], Callable[[Mapping[str, Any]], Any]] = {}
        self._known: dict[str, Dimension] = {}
        waiting: list[tuple[tuple[Any, ...], dict[str, Any], str, bool]] = []
        for number, document in enumerate(self.documents):
            own = isinstance(document, dict) and "merge_method" not in document
            for path, mark in _marks(document, (number,)):
                place = f"{self.source}: {_told(path[1:])}"
                if "route" in mark:
                    name = "route" if len(self.documents) == 1 else f"[{number}].route"
                    route = Route.read(mark["route"], place, self.directory, name)
                    self._add(path, route.dimensions, route.slices)
                    continue
                self._check(mark, place)
                if "by" in mark:
                    waiting.append((path, mark, place, own))
                    alone = _dimension(mark, place, "")
                    self._marks[path] = _fixed(alone.value(alone.start))
                else:
                    self._plain_mark(path, mark, place)
        if waiting:
            self._spread(waiting)

    def _add(
        self,
        path: tuple[Any, ...],
        dimensions: Sequence[Dimension],
        make: Callable[[Mapping[str, Any]], Any],
    ) -> None:
        for one in dimensions:
            held = self._known.get(one.key)
            if held is not None and held != one:
                raise RequestError(
                    f"{self.source}: {_told(path[1:])}: another open number is called {one.key!r} and has "
                    "other bounds; marks of one name are one number"
                )
            if held is None:
                self._known[one.key] = one
                self.dimensions.append(one)
        self._marks[path] = make

    def _check(self, mark: dict[str, Any], place: str) -> None:
        known = _KEYS["search" if "search" in mark else "choice"]
        for key in mark:
            if key not in known:
                raise RequestError(
                    f"{place}.{key}: unknown key{did_you_mean(key, known)} (known: {', '.join(known)})"
                )
        if "by" in mark and "gradient" in mark:
            raise RequestError(f"{place}: an open number has either by or gradient")
        if "by" in mark and mark["by"] not in GROUPINGS:
            near = did_you_mean(str(mark["by"]), GROUPINGS)
            raise RequestError(
                f"{place}.by: expected one of {', '.join(GROUPINGS)}, not {mark['by']!r}{near}"
            )

    def _plain_mark(self, path: tuple[Any, ...], mark: dict[str, Any], place: str) -> None:
        key = mark.get("name") or _told(path[1:] if len(self.documents) == 1 else path)
        if "gradient" not in mark:
            one = _dimension(mark, place, key)
            self._add(path, [one], lambda values: values[one.key])
            return
        count = mark["gradient"]
        if isinstance(count, bool) or not isinstance(count, int) or not 2 <= count <= 1000:
            raise RequestError(f"{place}.gradient: expected a number of points, at least 2, not {count!r}")
        several = [_dimension(mark, place, f"{key}[{k}]") for k in range(count)]
        self._add(path, several, lambda values: [values[one.key] for one in several])

    def _spread(self, waiting: Sequence[tuple[tuple[Any, ...], dict[str, Any], str, bool]]) -> None:
        """Marks with a number for each layer or tensor, whose names are known from the recipe at the start."""
        starts = {one.key: one.value(one.start) for one in self.dimensions}
        recipe = self.recipe(starts)
        if isinstance(recipe, Mixture) or not recipe.simple:
            raise RequestError(
                f"{waiting[0][2]}.by: layers and tensors are told apart in recipes with models:, not in "
                "slices, modules or mixtures; give the slices open numbers of their own"
            )
        weights, _ = build(recipe)
        names = float_names(weights)
        for path, mark, place, own in waiting:
            if path[-2] != "parameters":
                raise RequestError(
                    f"{place}.by: a number by {mark['by']} stands as the whole value of a parameter"
                )
            key = mark.get("name") or _told(path[1:] if len(self.documents) == 1 else path)
            each = {
                group: _dimension(mark, place, f"{key}[{group.label}]")
                for group in dict.fromkeys(groups(names, mark["by"]).values())
            }
            self._add(path, list(each.values()), _by_group(each, own))

    def _filled(self, node: Any, path: tuple[Any, ...], values: Mapping[str, Any]) -> Any:
        if not path:
            path = (next(k for k, one in enumerate(self.documents) if one is node),)
        if path in self._marks:
            return self._marks[path](values)
        if isinstance(node, dict):
            return {key: self._filled(value, (*path, key), values) for key, value in node.items()}
        if isinstance(node, list):
            return [self._filled(value, (*path, k), values) for k, value in enumerate(node)]
        return node


def _fixed(value: Any) -> Callable[[Mapping[str, Any]], Any]:
    return lambda _: value


def _by_group(each: Mapping[Group, Dimension], own: bool) -> Callable[[Mapping[str, Any]], Any]:
    return lambda values: setting({group: values[one.key] for group, one in each.items()}, patterns=own)


def _marks(node: Any, path: tuple[Any, ...]) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Every mark of a document, with the path of keys that leads to it."""
    if isinstance(node, dict):
        if "search" in node or "choice" in node or (path[-1] == "slices" and "route" in node):
            return [(path, node)]
        return [found for key, value in node.items() for found in _marks(value, (*path, key))]
    if isinstance(node, list):
        return [found for k, value in enumerate(node) for found in _marks(value, (*path, k))]
    return []


def _told(path: Sequence[Any]) -> str:
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else str(key)
    return text


def _dimension(mark: Mapping[str, Any], place: str, key: str) -> Dimension:
    name = mark.get("name")
    if name is not None and (not isinstance(name, str) or not name.strip()):
        raise RequestError(f"{place}.name: expected a name, not {name!r}")
    if "choice" in mark:
        choices = mark["choice"]
        if not isinstance(choices, list) or len(choices) < 2 or any(isinstance(c, dict) for c in choices):
            raise RequestError(f"{place}.choice: expected a list of at least two values, not {choices!r}")
        if len({repr(c) for c in choices}) < len(choices):
            raise RequestError(f"{place}.choice: a value is listed twice: {choices!r}")
        start = mark.get("start", choices[0])
        if start not in choices:
            raise RequestError(f"{place}.start: {start!r} is none of the choices {choices!r}")
        one = Dimension(key, choices=tuple(choices))
        return Dimension(key, choices=one.choices, start=one.unit(start))
    bounds = mark["search"]
    good = isinstance(bounds, list) and len(bounds) == 2 and all(is_number(b) for b in bounds)
    if not good or not bounds[0] < bounds[1]:
        raise RequestError(f"{place}.search: expected [low, high] with low < high, not {bounds!r}")
    low, high = map(float, bounds)
    scale = mark.get("scale", "linear")
    if scale not in ("linear", "log"):
        raise RequestError(
            f"{place}.scale: expected linear or log, not {scale!r}{did_you_mean(str(scale), ('linear', 'log'))}"
        )
    if scale == "log" and low <= 0:
        raise RequestError(f"{place}.search: a log scale needs low > 0, not {low:g}")
    points = mark.get("points")
    if points is not None and (isinstance(points, bool) or not isinstance(points, int) or points < 2):
        raise RequestError(f"{place}.points: expected a whole number from 2, not {points!r}")
    one = Dimension(key, low, high, scale == "log", points=points)
    middle = one.value(0.5)
    start = mark.get("start", middle)
    if not is_number(start) or not low <= start <= high:
        raise RequestError(f"{place}.start: expected a number from {low:g} to {high:g}, not {start!r}")
    unit = 0.5 if "start" not in mark else one.unit(float(start))
    return Dimension(key, low, high, scale == "log", start=unit, points=points)


def is_number(value: Any) -> bool:
    """Whether a value of a YAML file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
