"""Strict reading of a suite's mappings: every key known, every value of its kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from merganser.errors import RequestError, did_you_mean

T = TypeVar("T")
Check = Callable[[Any], Any]


def setting(check: Check, default: Any = dataclasses.MISSING) -> Any:
    """A field that the suite may give (must, without a default). `check` gives the value or raises `ValueError`."""
    return dataclasses.field(default=default, metadata={"check": check})


def read(cls: type[T], raw: Mapping[str, Any], place: str, **given: Any) -> T:
    """An instance of the dataclass `cls` out of `raw`; `given` are the fields that are not read from it."""
    fields = {f.name: f for f in dataclasses.fields(cls) if "check" in f.metadata}  # type: ignore[arg-type]
    values = dict(given)
    for key, value in raw.items():
        if key not in fields:
            raise RequestError(
                f"{place}: unknown key {key!r}{did_you_mean(key, fields)}; known are {', '.join(fields)}"
            )
        try:
            values[key] = fields[key].metadata["check"](value)
        except ValueError as error:
            raise RequestError(f"{place}.{key}: expected {error}, not {_shown(value)}") from None
    for name, field in fields.items():
        if name not in values and field.default is dataclasses.MISSING:
            raise RequestError(f"{place}: needs {name!r}")
    return cls(**values)


def text(value: Any) -> str:
    """Text that is not empty."""
    if not isinstance(value, str) or not value:
        raise ValueError("text")
    return value


def any_text(value: Any) -> str:
    """Text that may be empty."""
    if not isinstance(value, str):
        raise ValueError("text")
    return value


def text_or_null(value: Any) -> str | None:
    """Text, or null."""
    return None if value is None else text(value)


def texts(value: Any) -> tuple[str, ...]:
    """A list of texts."""
    if not isinstance(value, list) or not value or not all(isinstance(one, str) and one for one in value):
        raise ValueError("a list of texts (quote yes, no and numbers)")
    return tuple(value)


def distinct(value: Any) -> tuple[str, ...]:
    """A list of texts that differ."""
    found = texts(value)
    if len(set(found)) < len(found):
        raise ValueError("texts that differ")
    return found


def column_or_texts(value: Any) -> str | tuple[str, ...]:
    """The name of a column, or a list of texts."""
    if isinstance(value, list):
        return texts(value)
    try:
        return text(value)
    except ValueError:
        raise ValueError("the name of a column or a list of texts") from None


def count(value: Any) -> int:
    """A whole number of 1 or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("a whole number of 1 or more")
    return value


def truth(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def one_of(*known: str) -> Check:
    """One of some words."""

    def check(value: Any) -> str:
        if value not in known or not isinstance(value, str):
            raise ValueError(f"one of {', '.join(known)}")
        return value

    return check


def some_of(*known: str) -> Check:
    """A list of some words."""

    def check(value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or any(one not in known or not isinstance(one, str) for one in value):
            raise ValueError(f"a list of {', '.join(known)}")
        return tuple(value)

    return check


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
