"""What tasks of every kind share: where their data lie, how samples are named, and how a run is prepared."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import xxhash

from merganser.errors import RequestError
from merganser.evaluate.settings import count, setting, text, text_or_null
from merganser.running import Rows, check_causal, read_rows

if TYPE_CHECKING:
    from merganser.running import Model

Columns = dict[str, list[Any]]
"""Columns of results by name, a value a sample, in the order of the data."""


@dataclass(frozen=True)
class Prepared:
    """A task that was checked against a model. `run` takes what is called after some samples are done."""

    samples: int
    run: Callable[[Callable[[int], None]], Columns]


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """A task of a suite.

    name: what results call it; data: the file of samples; id: the column that names samples (default: the
    number of the row, from 0); limit: only the first rows; batch: samples that run at once, which changes no
    result beyond rounding.
    """

    kind: ClassVar[str]
    runs_on: ClassVar[tuple[str, ...]] = ()
    """Kinds of models it can be run on; empty: every kind that reads text."""

    name: str = setting(text)
    data: str = setting(text)
    id: str | None = setting(text_or_null, None)
    limit: int | None = setting(count, None)
    batch: int = setting(count, 32)
    folder: Path
    """Where the suite lies."""

    @cached_property
    def path(self) -> Path:
        """The file of samples."""
        return self.inside(self.data, "data")

    def inside(self, written: str, key: str) -> Path:
        """A path of the suite, relative to the suite's file; `RequestError` where there is no such plain file."""
        path = self.folder / written
        if "\0" in written or "://" in written:
            raise RequestError(f"task {self.name!r}: {key}: {written!r} is no path of this machine")
        if not path.exists():
            from merganser.document import neighbour

            raise RequestError(f"task {self.name!r}: {key}: there is no {str(path)!r}{neighbour(path)}")
        if not path.is_file():
            raise RequestError(f"task {self.name!r}: {key}: {str(path)!r} is no file")
        return path

    @cached_property
    def rows(self) -> Rows:
        """The samples."""
        found = read_rows(self.path)
        return found if self.limit is None else found.head(self.limit)

    @cached_property
    def ids(self) -> list[str]:
        """A name for each sample."""
        if self.id is None:
            return [str(number) for number in range(len(self.rows))]
        found: dict[str, int] = {}
        for number, value in enumerate(self.rows.column(self.id), 1):
            if not isinstance(value, str | int) or isinstance(value, bool):
                raise self.wrong(number, self.id, "is no text and no whole number", value)
            if (first := found.setdefault(str(value), number)) != number:
                raise RequestError(
                    f"{self.path}: rows {first} and {number} have the same {self.id!r}: {value!r}"
                )
        return list(found)

    def texts(self, column: str) -> list[str]:
        """A column of texts, none of them empty."""
        values = self.rows.column(column)
        for number, value in enumerate(values, 1):
            if not isinstance(value, str):
                raise self.wrong(number, column, "is no text", value)
            if not value:
                raise self.wrong(number, column, "is empty", value)
        return values

    def wrong(self, row: int, column: str, what: str, value: Any) -> RequestError:
        """An error about a value of the data, rows counted from 1."""
        shown = repr(value)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return RequestError(f"{self.path}: row {row}: {column!r} {what}: {shown}")

    def what(self, values: str) -> str:
        """How `finite` calls what a model returned for this task."""
        return f"task {self.name!r}: {values}"

    def fits(self, model: Model) -> None:
        """Raise `RequestError` where the model is of a kind that this task cannot run on."""
        if self.runs_on and model.kind not in self.runs_on:
            raise RequestError(
                f"task {self.name!r} ({self.kind}) runs on {' or '.join(self.runs_on)} models, and {model.label} is "
                f"run as {model.kind}, as the architecture in its config.json says"
            )
        check_causal(model)
        if not self.runs_on and model.kind in ("image_classifier", "series_classifier"):
            raise RequestError(f"task {self.name!r} ({self.kind}) gives texts, and {model.label} takes none")

    def check(self) -> None:
        """Raise `RequestError` for what is wrong with files and rows, before any model is opened."""
        _ = self.ids
        self.read()

    @abstractmethod
    def read(self) -> Any:
        """The samples, checked."""

    @abstractmethod
    def prepare(self, model: Model) -> Prepared:
        """Everything that can be known before the model runs; raises `RequestError` for what cannot work."""

    @abstractmethod
    def digests(self) -> list[str]:
        """The input digest of each sample."""

    @abstractmethod
    def shown(self, row: int) -> str:
        """What a model is given of one sample, rows counted from 0, as a person reads it."""

    def described(self) -> dict[str, Any]:
        """What makes the task the one it is: its settings, and what lies in its files instead of where they lie."""
        left_out = ("folder", "data", "batch")
        found = {key: getattr(self, key) for key in self.__dataclass_fields__ if key not in left_out}
        return {**found, "kind": self.kind, "data_digest": self.rows.digest}


def digest(*given: Any) -> str:
    """XXH3-128 of what a model is given and of the right answer, as compact JSON."""
    raw = json.dumps(given, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return xxhash.xxh3_128_hexdigest(raw.encode("utf-8", "surrogatepass"))


def too_long(task: Task, row: int, length: int, limit: int, model: str) -> RequestError:
    """The error of a row that the model has no positions for."""
    return RequestError(
        f"{task.path}: row {row} has {length} tokens and {model} takes {limit}; shorten it, or give task "
        f"{task.name!r} a max_length to cut to"
    )


def in_order(count: int, parts: Sequence[tuple[Sequence[int], Sequence[Any]]]) -> list[Any]:
    """Values of batches put back at their rows."""
    found: list[Any] = [None] * count
    for rows, values in parts:
        for row, value in zip(rows, values, strict=True):
            found[row] = value
    return found
