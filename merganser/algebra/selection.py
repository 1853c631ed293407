"""Choosing tensors by name: shell-style globs, or regular expressions written `re:...`."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping

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
    """The number for every name. A name that no pattern covers is an `AlgebraError`."""
    if isinstance(value, int | float):
        return dict.fromkeys(names, float(value))
    if callable(value):
        return {name: float(value(name)) for name in names}
    tests = [(matcher(pattern), float(number)) for pattern, number in value.items()]
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
