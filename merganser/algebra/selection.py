"""Choosing tensors by name: shell-style globs, or regular expressions written `re:...`."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any

from merganser.errors import AlgebraError, RequestError, did_you_mean

Pattern = str
Coefficient = float | int | Mapping[Pattern, float] | Callable[[str], float]
"""A number, numbers by name pattern (the first pattern that matches counts), or a function of the tensor's name."""


def matcher(pattern: Pattern) -> Callable[[str], bool]:
    """A test of names. `*` matches any characters, dots too; `re:` starts a regular expression (searched for).

    Raises `RequestError` for a regular expression that does not compile.
    """
    if pattern.startswith("re:"):
        try:
            compiled = re.compile(pattern[3:])
        except re.error as error:
            raise RequestError(f"the pattern {pattern!r} is not a regular expression: {error}") from error
        return lambda name: compiled.search(name) is not None
    return re.compile(fnmatch.translate(pattern)).match  # type: ignore[return-value]


def matching(names: Iterable[str], patterns: tuple[Pattern, ...]) -> list[str]:
    """The names that match at least one pattern. A pattern that matches none is an `AlgebraError`."""
    names = list(names)
    chosen: set[str] = set()
    for pattern in patterns:
        test = matcher(pattern)
        hits = [name for name in names if test(name)]
        if not hits:
            raise AlgebraError(f"no tensor matches {pattern!r}{did_you_mean(pattern, names)}")
        chosen.update(hits)
    return [name for name in names if name in chosen]


def coefficients(value: Coefficient, names: Iterable[str]) -> dict[str, float]:
    """The number for every name.

    Raises `AlgebraError` for a name that no pattern covers, a pattern that matches no name, and what is no number.
    """
    names = list(names)
    if is_number(value):
        return dict.fromkeys(names, _number(value, "the coefficient"))
    if callable(value):
        return {name: _number(value(name), f"the coefficient of tensor {name!r}") for name in names}
    if not isinstance(value, Mapping):
        raise AlgebraError(
            f"a coefficient is a number, numbers by name pattern, or a function of the tensor's name, not {value!r}"
        )
    tests = [
        (matcher(pattern), _number(n, f"the coefficient of {pattern!r}")) for pattern, n in value.items()
    ]
    for pattern, (test, _) in zip(value, tests, strict=True):
        if pattern != "*" and not any(map(test, names)):
            raise AlgebraError(f"no tensor matches {pattern!r}{did_you_mean(pattern, names)}")
    result = {}
    for name in names:
        for test, number in tests:
            if test(name):
                result[name] = number
                break
        else:
            raise AlgebraError(
                f"no coefficient for tensor {name!r}: none of the patterns {', '.join(map(repr, value))} covers it; "
                "add a last pattern '*'"
            )
    return result


def is_number(value: Any) -> bool:
    """Whether a value is one real number, NumPy's too."""
    return isinstance(value, Real)


def _number(value: Any, what: str) -> float:
    if not is_number(value) or not math.isfinite(value):
        raise AlgebraError(f"{what} must be a finite number, not {value!r}")
    return float(value)
