"""What commands share: sizes, errors, progress, tables, JSON."""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from merganser._progress import Progress
from merganser.errors import MerganserError, MerganserWarning, RequestError

JSON = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
ALLOW_PICKLE = Annotated[
    bool,
    typer.Option(
        "--allow-pickle", help="Read tensors from .bin, .pt and .pth files; nothing in them is run."
    ),
]
MEMORY = Annotated[
    str,
    typer.Option(help="What the whole process may hold, as 256MiB or 1GB.", envvar="MERGANSER_MEMORY"),
]
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_size(text: str, option: str) -> int:
    """Bytes from `256MiB`, `5GB` or a plain number."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?|)b?\s*", text, re.IGNORECASE)
    if match is None:
        raise RequestError(f"{option} {text!r} is not a size; write it as 256MiB, 5GB or a number of bytes")
    count = float(match[1]) * _UNITS[match[2].lower()]
    if not 1 <= count < 2**63:
        raise RequestError(f"{option} must be at least one byte and less than 8 EiB")
    return int(count)


def size(count: float) -> str:
    """Bytes in words."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"


class Interrupted(MerganserError):
    """Ctrl-C while something was written, whose notes the command line's parser would lose."""

    exit_status = 130


def fail(error: BaseException, as_json: bool) -> int:
    """Say what went wrong, once, and give the exit status."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, typer.Exit):
        return error.exit_code
    notes = [note for note in getattr(error, "__notes__", ()) if isinstance(note, str)]
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        kind, status = "Interrupted", 130
        message = "interrupted before anything was written"
    elif isinstance(error, MerganserError):
        kind, message, status = type(error).__name__, str(error), error.exit_status
    elif hasattr(
        error, "format_message"
    ):  # what the command-line parser raises, whichever copy of click it is from
        kind, message, status = "UsageError", f"{error.format_message()} (see --help)", 2
    elif isinstance(error, MemoryError):
        kind, message, status = (
            "MemoryError",
            "the machine has no memory left; lower --memory or --threads",
            1,
        )
    else:
        kind, status = type(error).__name__, 1
        message = f"{error or kind} ({kind}; an unexpected failure, MERGANSER_DEBUG=1 shows where)"
    if os.environ.get("MERGANSER_DEBUG"):
        traceback.print_exception(error)
    if as_json:
        print_json({"error": {"kind": kind, "message": message, "notes": notes}})
    print(f"error: {clean(message)}", file=sys.stderr)
    for note in notes:
        print(clean(note), file=sys.stderr)
    return status


def counted(number: int, what: str) -> str:
    """`1 tensor`, `2 tensors`."""
    return f"{number} {what}" + ("" if number == 1 else "s")


def clean(text: str) -> str:
    """Text without control characters (they come with names from files and could steer a terminal)."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", _escape, text)


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


def say(text: str = "") -> None:
    """A line of the report for a person, on standard output."""
    print(clean(text))


def warn(text: str) -> None:
    """What a user should not miss, on standard error."""
    print(clean(f"warning: {text}"), file=sys.stderr)


def warn_of_keys(ignored: Collection[str]) -> None:
    """Say which keys of a recipe are read over, where there are any."""
    from merganser.recipe.keys import note_of

    if ignored:
        warn(str(note_of(ignored)["warning"]))


@contextmanager
def warnings_told() -> Iterator[None]:
    """Warnings of merganser's own are lines on standard error, each text once; other libraries' go their own way."""
    told: set[str] = set()
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
            if not issubclass(category, MerganserWarning):
                others(message, category, *place)
            elif str(message) not in told:
                told.add(str(message))
                warn(str(message))

        warnings.simplefilter("always", MerganserWarning)
        warnings.showwarning = show  # type: ignore[assignment]
        yield


def print_json(document: Any) -> None:
    """One JSON document. Numbers that JSON lacks (NaN, Inf) become text."""
    print(json.dumps(_plain(document), indent=2, ensure_ascii=False, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A plain table; columns of numbers are set to the right."""
    texts = [[clean(str(cell)) for cell in row] for row in rows]
    widths = [max(len(row[k]) for row in [list(headings), *texts]) for k in range(len(headings))]
    right = [all(isinstance(row[k], int | float) for row in rows) for k in range(len(headings))]

    def line(cells: Sequence[str]) -> str:
        placed = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True)]
        return "  ".join(placed).rstrip()

    print(line(list(headings)))
    print(line(["-" * width for width in widths]))
    for row in texts:
        print(line(row))


@contextmanager
def progress(wanted: bool, what: str, unit: str | None = None) -> Iterator[Progress | None]:
    """A bar with bytes per second (or how many of `unit`) and time left on a terminal; nothing otherwise."""
    if not wanted or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    amount: tuple[ProgressColumn, ...] = (DownloadColumn(), TransferSpeedColumn())
    if unit is not None:
        amount = (MofNCompleteColumn(), TextColumn(unit))
    columns = (TextColumn(what), BarColumn(), *amount, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)
