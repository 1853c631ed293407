"""What steps there are: operations on one model that recipes and `merganser reshape` can name.

A step is a pure function `f(weights, *, parameters...) -> Weights` with the decorator `@step`. Built-in ones are found
in this package; others register under an entry point. Its parameters are read from its signature.
"""

from __future__ import annotations

import importlib
import inspect
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from merganser.algebra import Weights
from merganser.checkpoint.layout import at_home
from merganser.errors import RequestError, did_you_mean
from merganser.methods.registry import _load_built_in

GROUP = "merganser.steps"
F = TypeVar("F", bound=Callable[..., Weights])
OpenModel = Callable[[str], Weights]


@dataclass(frozen=True)
class Claim:
    """What a step says of its result, beside that it opens in the stock loader of its config.json.

    function: stays, changes, or tokens (it stays for the tokens that stay). `where` are the settings under which the
    function stays, `holds` a further condition on the model and the settings, and `words` says both for people.
    """

    function: Literal["stays", "changes", "tokens"] = "changes"
    where: Mapping[str, Any] = field(default_factory=dict)
    holds: Callable[[Weights, Mapping[str, Any]], bool] | None = None
    words: str = ""

    def exact(self, weights: Weights, settings: Mapping[str, Any]) -> bool:
        """Whether the step claims that this model's function stays; `settings` lack what is left to defaults."""
        if self.function != "stays" or any(settings.get(key) != value for key, value in self.where.items()):
            return False
        return self.holds is None or self.holds(weights, settings)

    def __str__(self) -> str:
        text = "stays for the tokens that stay" if self.function == "tokens" else self.function
        return f"{text} {self.words}".strip()


CHANGES = Claim()
STAYS = Claim("stays")


@dataclass(frozen=True)
class StepParameter:
    """A parameter of a step. `types` are what a value may be; `words` says it for people."""

    name: str
    types: tuple[Any, ...]
    default: Any
    required: bool

    @property
    def words(self) -> str:
        """The types as text."""
        return " or ".join(_word(kind) for kind in self.types if kind is not type(None))


@dataclass(frozen=True)
class Step:
    """A registered step."""

    name: str
    paper: str
    function: Callable[..., Weights]
    summary: str
    parameters: tuple[StepParameter, ...]
    claim: Claim = CHANGES

    def settings(self, raw: Any, place: str, directory: Path | None, open_model: OpenModel) -> dict[str, Any]:
        """The values of its parameters from a recipe's text.

        A value that is no mapping goes to the first parameter. Files are looked for in the working directory, then
        beside the recipe. Raises `RequestError` for unknown, missing and wrong values.
        """
        known = {parameter.name: parameter for parameter in self.parameters}
        if raw is None:
            raw = {}
        elif not isinstance(raw, dict) or not (raw.keys() <= known.keys() or _names(raw)):
            if not self.parameters:
                raise RequestError(f"{place}: {self.name} has no parameters")
            raw = {self.parameters[0].name: raw}
        values = {}
        for name, value in raw.items():
            if name not in known and value is None and re.fullmatch(r"\s*\d+(\s*-\s*\d+)?\s*", str(name)):
                raise RequestError(
                    f"{place}: {name!s} is no parameter of {self.name}; a list of numbers inside braces is written in "
                    "quotes, '0-3, 8', or in brackets"
                )
            if name not in known:
                raise RequestError(
                    f"{place}: unknown parameter {name!r} of {self.name}{did_you_mean(str(name), known)} "
                    f"(known: {', '.join(known) or 'none'})"
                )
            values[name] = _value(value, known[name], f"{place}.{name}", directory, open_model)
        for parameter in self.parameters:
            if parameter.required and parameter.name not in values:
                raise RequestError(f"{place}: {self.name} needs {parameter.name} ({parameter.words})")
        return values


_registered: dict[str, Step] = {}


def step(name: str, *, paper: str = "", claim: Claim = CHANGES) -> Callable[[F], F]:
    """Register `f(weights, *, ...) -> Weights` as the step `name`; the function itself is unchanged.

    claim: what it says of its result, which `--check` tries.

    Parameters are annotated with str, int, float, bool, Path (a file), Weights (another model), Sequence[int] (also
    written `0-3, 8`), Sequence[float], Sequence[str], Sequence[Weights], Sequence[Mapping] (whose `model` is opened),
    Mapping, a Literal of strings, or several of these with `|`.
    Raises `RequestError` for another signature or a name that is taken.
    """

    def register(function: F) -> F:
        found = list(inspect.signature(function, eval_str=True).parameters.values())
        if [p.name for p in found[:1]] != ["weights"] or any(p.kind is not p.KEYWORD_ONLY for p in found[1:]):
            raise RequestError(f"step {name!r}: its function must be f(weights, *, keyword-only parameters)")
        parameters = tuple(
            StepParameter(
                p.name,
                _types(p.annotation),
                None if p.default is p.empty else p.default,
                p.default is p.empty,
            )
            for p in found[1:]
        )
        held = _registered.get(name)
        if held is not None and held.function.__module__ != function.__module__:
            raise RequestError(f"there is already a step {name!r}, in {held.function.__module__}")
        summary = (inspect.getdoc(function) or "").partition("\n")[0]
        _registered[name] = Step(name, paper, function, summary, parameters, claim)
        return function

    return register


def all_steps() -> dict[str, Step]:
    """Every step by name: the built-in ones and those of installed distributions."""
    _load_built_in()
    _load_entry_points()
    return dict(sorted(_registered.items()))


def get_step(name: str) -> Step:
    """The step called `name`. Raises `RequestError` with the nearest name."""
    steps = all_steps()
    if name not in steps:
        raise RequestError(f"unknown step {name!r}{did_you_mean(name, steps)} (known: {', '.join(steps)})")
    return steps[name]


@cache
def _load_entry_points() -> None:
    from importlib.metadata import entry_points

    for point in entry_points(group=GROUP):
        importlib.import_module(point.module)


def _types(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) in (Union, types.UnionType):
        return get_args(annotation)
    return (annotation,)


def _word(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(get_args(kind))
    plain = {str: "text", int: "a whole number", float: "a number", bool: "true or false", Path: "a file"}
    if kind in plain:
        return plain[kind]
    if kind is Weights:
        return "a model"
    if get_origin(kind) is Sequence:
        inner = get_args(kind)[0]
        return "numbers as 0-3, 8" if inner is int else f"a list ({_word(inner)})"
    return "a mapping" if get_origin(kind) is Mapping or kind is Mapping else "a value"


def _names(raw: Mapping[Any, Any]) -> bool:
    """Whether a mapping gives parameters by name (and not, by layer, the first one's value)."""
    return all(isinstance(key, str) for key in raw)


def _value(
    raw: Any, parameter: StepParameter, place: str, directory: Path | None, open_model: OpenModel
) -> Any:
    for kind in parameter.types:
        found = _as(raw, kind, place, directory, open_model)
        if found is not _NO:
            return found
    raise RequestError(f"{place}: expected {parameter.words}, not {str(raw)[:60]!r}")


_NO = object()


def _as(raw: Any, kind: Any, place: str, directory: Path | None, open_model: OpenModel) -> Any:
    """The value as one kind, or _NO."""
    if kind is type(None):
        return None if raw is None else _NO
    if get_origin(kind) is Literal:
        return raw if raw in get_args(kind) else _NO
    if kind is bool:
        return raw if isinstance(raw, bool) else _NO
    if kind is int:
        if isinstance(raw, int) and not isinstance(raw, bool) and raw.bit_length() > 63:
            raise RequestError(f"{place}: {raw} is beyond the whole numbers of 64 bits")
        return raw if isinstance(raw, int) and not isinstance(raw, bool) else _NO
    if kind is float:
        return float(raw) if isinstance(raw, int | float) and not isinstance(raw, bool) else _NO
    if kind is str:
        return raw if isinstance(raw, str) else _NO
    if kind is Path:
        return _file(raw, place, directory) if isinstance(raw, str) else _NO
    if kind is Weights:
        return open_model(raw) if isinstance(raw, str) else _NO
    if get_origin(kind) is Sequence:
        inner = get_args(kind)[0]
        if inner is int and (isinstance(raw, str) or (isinstance(raw, int) and not isinstance(raw, bool))):
            return _ranges(str(raw), place)
        if not isinstance(raw, list):
            return _NO
        items = [_as(item, inner, place, directory, open_model) for item in raw]
        return _NO if any(item is _NO for item in items) else items
    if get_origin(kind) is Mapping:
        key_kind, value_kind = get_args(kind)
        if not isinstance(raw, dict):
            return _NO
        if key_kind is int:  # YAML's keys are read as text
            raw = {
                int(key) if isinstance(key, str) and key.isdigit() else key: value
                for key, value in raw.items()
            }

        def inner(key: Any, value: Any) -> Any:
            if value_kind is Any and key == "model" and isinstance(value, str):
                return open_model(value)  # as a part of a stack names its model
            return _as(value, value_kind, place, directory, open_model)

        pairs = {
            _as(key, key_kind, place, directory, open_model): inner(key, value) for key, value in raw.items()
        }
        return _NO if _NO in pairs or any(value is _NO for value in pairs.values()) else pairs
    return raw if kind is Any else _NO


def as_numbers(raw: Any, place: str) -> list[int]:
    """Numbers from a list or from text as `0-3, 8`. Raises `RequestError` for anything else."""
    found = _as(raw, Sequence[int], place, None, _no_model)
    if found is _NO:
        raise RequestError(f"{place}: expected numbers as 0-3, 8, not {str(raw)[:60]!r}")
    return list(found)


def _no_model(path: str) -> Weights:
    raise AssertionError(path)


def _ranges(text: str, place: str) -> list[int]:
    """`0-3, 8` as numbers, ends included."""
    numbers: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,9})(?:\s*-\s*(\d{1,9}))?\s*", part)
        if found is None:
            raise RequestError(f"{place}: {text[:60]!r} is no list of numbers; write it as 0-3, 8")
        low = int(found[1])
        high = int(found[2]) if found[2] else low
        if high < low or high - low > 10_000_000:
            raise RequestError(f"{place}: the range {part.strip()!r} runs backwards or is too long")
        numbers += range(low, high + 1)
    return numbers


def _file(raw: str, place: str, directory: Path | None) -> Path:
    places = [at_home(raw)]
    if directory is not None and not places[0].is_absolute():
        places.append(directory / raw)
    for path in places:
        if path.is_file():
            return path
    raise RequestError(f"{place}: there is no file {raw!r}")
