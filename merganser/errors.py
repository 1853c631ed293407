"""The errors a user can meet.

Every message says what is wrong, where (file, tensor, parent) and what to do about it. The class decides
the exit status of the command: a `RequestError` is 2 (the request is wrong), anything else is 1 (the work failed).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MerganserError(Exception):
    """Base of every error raised on purpose."""

    exit_status = 1


class RequestError(MerganserError):
    """The recipe, the arguments or the combination of parents cannot work. Nothing was written."""

    exit_status = 2


class CheckpointError(MerganserError):
    """A file from outside is malformed, hostile, missing or of a kind that is not read."""


class QuantizedError(CheckpointError):
    """A checkpoint whose tensors are codes was asked to take part in arithmetic."""


class AlgebraError(RequestError):
    """An expression over weights that cannot be: names, shapes, dtypes or degree do not fit."""


class NonFiniteError(MerganserError):
    """A result holds NaN or Inf."""


class VarianceError(MerganserError):
    """A variance of the result is below 0."""


class SpellingError(AlgebraError, TypeError):
    """A word of Python or NumPy that means something else on weights that are not computed; says how it is spelled."""


class OutputError(MerganserError):
    """The output cannot be written: it exists, the disk is full, another process holds it."""


class VerificationError(MerganserError):
    """A sealed checkpoint does not match its manifest."""


def did_you_mean(name: str, known: Iterable[str], alike: float = 0.6) -> str:
    """`"; did you mean 'x'?"` for the nearest of `known`, or an empty string when nothing is `alike` (0 to 1)."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=alike)
    return f"; did you mean {near[0]!r}?" if near else ""


def listing(names: Iterable[str], most: int = 5) -> str:
    """The first few of `names` and how many more there are."""
    names = list(names)
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


class MerganserWarning(UserWarning):
    """Something that a user should know of a result that is made all the same."""
