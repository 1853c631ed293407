"""Results per sample as arrays, and several runs lined up on the samples that they share."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from merganser.errors import RequestError, did_you_mean, listing
from merganser.evaluate.metrics import EXTRA

if TYPE_CHECKING:
    from pathlib import Path

Array = NDArray[np.float64]
Rows = NDArray[np.intp]
NUMBERS = ("right", "right_norm", "loss", "nats", "bytes", "tokens", "similarity", "target")
TEXTS = ("answer", "prediction", "text")


@dataclass(frozen=True)
class Samples:
    """One run's results on one task, an entry a sample. Numbers that are not there are NaN, texts are None.

    `right` is 1 or 0; `loss` and `nats` are in nats; `log_probabilities` is [samples, most choices], -inf
    beyond a sample's own choices, normalised so that a row's probabilities sum to 1, NaN in rows without
    choices.
    """

    kind: str
    ids: list[str]
    digests: list[str]
    numbers: dict[str, Array]
    texts: dict[str, list[str | None]]
    choices: list[tuple[str, ...]]
    log_probabilities: Array

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, kind: str, columns: Mapping[str, Sequence[Any]]) -> Samples:
        """From the columns of a results file; only `id` must be there, all must be of one length.

        Raises `RequestError` for columns of other lengths.
        """
        ids = ["" if value is None else str(value) for value in columns["id"]]
        count = len(ids)
        for name, column in columns.items():
            if len(column) != count:
                raise RequestError(f"column {name!r} has {len(column)} entries and id has {count}")
        nothing: list[Any] = [None] * count
        extra = [name for name in columns if name.startswith(EXTRA)]
        numbers = {name: _numbers(columns.get(name, nothing)) for name in (*NUMBERS, *extra)}
        texts = {name: [None if v is None else str(v) for v in columns.get(name, nothing)] for name in TEXTS}
        choices = [tuple(map(str, row)) if row is not None else () for row in columns.get("choices", nothing)]
        logs = _log_probabilities(columns.get("log_probabilities", nothing))
        digests = [str(value) for value in columns.get("input_digest", [""] * count)]
        return cls(kind, ids, digests, numbers, texts, choices, logs)

    def take(self, rows: Rows) -> Samples:
        """These rows, in this order."""

        def some(values: Sequence[Any]) -> list[Any]:
            return [values[k] for k in rows]

        return Samples(
            self.kind,
            some(self.ids),
            some(self.digests),
            {name: values[rows] for name, values in self.numbers.items()},
            {name: some(values) for name, values in self.texts.items()},
            some(self.choices),
            self.log_probabilities[rows],
        )

    def outputs(self) -> list[str | None]:
        """What the model said: the prediction, and where there is none the text it wrote."""
        pairs = zip(self.texts["prediction"], self.texts["text"], strict=True)
        return [text if prediction is None else prediction for prediction, text in pairs]


@dataclass(frozen=True)
class Run:
    """One evaluated model."""

    name: str
    tasks: dict[str, Samples]
    identity: str = ""
    suite: str = ""
    suite_digest: str = ""
    path: str = ""


@dataclass(frozen=True)
class Task:
    """One task with every run's samples in one order, which does not depend on that of the files.

    `given`: the start of what models were given, an entry a sample, where the suite is known.
    """

    name: str
    kind: str
    samples: list[Samples]
    given: list[str] | None = None

    def __len__(self) -> int:
        return len(self.samples[0])

    @cached_property
    def places(self) -> Rows:
        """Where each sample stands in a list of all by `id_order`; the resamples keep the order that samples are in."""
        ids = self.samples[0].ids
        key = id_order(ids)
        places = np.empty(len(ids), np.intp)
        places[sorted(range(len(ids)), key=lambda row: key(ids[row]))] = np.arange(len(ids))
        return places

    def number(self, name: str) -> Array:
        """[samples, runs]"""
        nothing = np.full(len(self), np.nan)
        return np.stack([one.numbers.get(name, nothing) for one in self.samples], axis=1)

    @property
    def extra(self) -> list[str]:
        """The columns of metrics of other tools that all runs have."""
        first, *others = self.samples
        return [
            name
            for name in first.numbers
            if name.startswith(EXTRA) and all(name in one.numbers for one in others)
        ]


@dataclass(frozen=True)
class Lined:
    """What can be compared, what could not be paired, and what a reader should know of it."""

    tasks: list[Task]
    unpaired: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def id_order(ids: Iterable[str]) -> Callable[[str], tuple[int, str]]:
    """The key that lists of samples are sorted by: as numbers where all ids are whole numbers, else as text."""
    numbers = all(re.fullmatch("[+-]?[0-9]{1,18}", one) for one in ids)
    return lambda one: (int(one) if numbers else 0, one)


def read_run(path: str | Path, name: str | None = None) -> Run:
    """A directory of results: what `merganser evaluate` writes, or the samples that lm-eval logs.

    Raises what `merganser.evaluate.read_results` raises for files that are missing or damaged.
    """
    from merganser.evaluate import read_results

    results = read_results(path)
    tasks = {}
    for task, found in results.tasks.items():
        table = found.table
        columns = {column: table.column(column).to_pylist() for column in table.column_names}
        try:
            tasks[task] = Samples.of(found.kind, columns)
        except (KeyError, TypeError, ValueError) as error:
            raise RequestError(f"{path}: task {task!r}: a column cannot be read: {error}") from error
    label = name or str(path)
    return Run(label, tasks, **_description(results), path=str(path))


def _description(results: Any) -> dict[str, str]:
    model, suite = results.model or {}, results.suite or {}
    return {
        "identity": str(model.get("identity") or ""),
        "suite": str(suite.get("name") or ""),
        "suite_digest": str(suite.get("digest") or ""),
    }


def line_up(runs: Sequence[Run], *, allow_missing: bool = False) -> Lined:
    """Pair the runs' samples by task, id and digest of the input.

    Raises `RequestError` where tasks or samples have no partner (with `allow_missing` they are counted and
    listed instead), where a task's samples repeat, and where nothing is shared.
    """
    shared = [task for task in runs[0].tasks if all(task in run.tasks for run in runs)]
    notes = _suites(runs)
    for run in runs:
        for task in run.tasks:
            lacking = [other for other in runs if task not in other.tasks]
            if not lacking:
                continue
            said = f"task {task!r} is in {run.name} and not in {listing(other.name for other in lacking)}"
            if not allow_missing:
                near = did_you_mean(task, lacking[0].tasks)
                raise RequestError(f"{said}{near}. --allow-missing compares the tasks that all have")
            if said not in notes:
                notes.append(said)
    if not shared:
        raise RequestError(f"{runs[0].name} and {runs[1].name} have no task in common")
    unpaired: list[dict[str, Any]] = []
    tasks = [_line_up(name, runs, allow_missing, unpaired) for name in sorted(shared)]
    return Lined(tasks, unpaired, notes)


def _line_up(name: str, runs: Sequence[Run], allow_missing: bool, unpaired: list[dict[str, Any]]) -> Task:
    samples = [run.tasks[name] for run in runs]
    kinds = sorted({one.kind for one in samples})
    if len(kinds) > 1:
        raise RequestError(f"task {name!r} is {' in one model and '.join(kinds)} in another")
    places = []
    for run, one in zip(runs, samples, strict=True):
        keys = list(zip(one.ids, one.digests, strict=True))
        where = {key: k for k, key in enumerate(keys)}
        if len(where) < len(keys):
            (repeated, _), times = Counter(keys).most_common(1)[0]
            raise RequestError(f"{run.name}: task {name!r} has the sample {repeated!r} {times} times")
        places.append(where)
    common = set(places[0]).intersection(*places[1:])
    for run, where in zip(runs, places, strict=True):
        by_id = id_order(id_ for id_, _ in where)
        alone = sorted(set(where) - common, key=lambda key: (by_id(key[0]), key[1]))
        if not alone:
            continue
        elsewhere = {key[0] for other in places if other is not where for key in other}
        other = sum(key[0] in elsewhere for key in alone)
        row = {"task": name, "model": run.name, "samples": len(where), "unpaired": len(alone)}
        row |= {"same_id_other_input": other, "examples": [key[0] for key in alone[:10]]}
        if not allow_missing or not common:
            said = (
                f"task {name!r}: {len(alone)} of the {len(where)} samples of {run.name} have no partner in "
                f"every other model (ids {listing([repr(key[0]) for key in alone])})"
            )
            if other:
                said += (
                    f"; {other} of them have a sample of the same id with another input or answer: the data, "
                    "the prompt or the length limit differs"
                )
            raise RequestError(
                said + (". --allow-missing compares the others" if common else "; no sample pairs")
            )
        unpaired.append(row)
    order = sorted(common)
    lined = [
        one.take(np.array([where[key] for key in order], dtype=np.intp))
        for one, where in zip(samples, places, strict=True)
    ]
    if not order:
        raise RequestError(f"task {name!r} has no samples")
    return Task(name, kinds[0], _same_width(lined))


def _same_width(samples: list[Samples]) -> list[Samples]:
    width = max(one.log_probabilities.shape[1] for one in samples)
    found = []
    for one in samples:
        logs = one.log_probabilities
        more = np.full((len(one), width - logs.shape[1]), -np.inf)
        if logs.shape[1]:
            more[np.isnan(logs).any(axis=1)] = np.nan
        else:
            more[:] = np.nan
        found.append(replace(one, log_probabilities=np.concatenate([logs, more], axis=1)))
    return found


def _suites(runs: Sequence[Run]) -> list[str]:
    notes = []
    if len({run.suite_digest for run in runs}) > 1:
        said = "; ".join(
            f"{run.name}: {run.suite or 'none'} ({run.suite_digest or 'no digest'})" for run in runs
        )
        notes.append(f"the suites differ ({said}); only samples of equal input are paired")
    seen: dict[str, str] = {}
    for run in runs:
        if run.identity and run.identity in seen:
            notes.append(f"{seen[run.identity]} and {run.name} are results of the same weights")
        seen.setdefault(run.identity, run.name)
    return notes


def _numbers(column: Sequence[Any]) -> Array:
    return np.array([math.nan if value is None else float(value) for value in column], dtype=np.float64)


def _log_probabilities(column: Sequence[Any]) -> Array:
    width = max((len(row) for row in column if row is not None), default=0)
    logs = np.full((len(column), width), np.nan)
    for k, row in enumerate(column):
        if row is not None and len(row):
            logs[k, : len(row)] = [math.nan if value is None else value for value in row]
            logs[k, len(row) :] = -np.inf
    bad = np.isnan(logs).any(axis=1) | (np.isposinf(logs)).any(axis=1) | np.isneginf(logs).all(axis=1)
    top = np.where(bad[:, None], 0.0, logs).max(axis=1, initial=-np.inf, keepdims=True)
    with np.errstate(divide="ignore"):
        logs = logs - top
        total = np.log(np.exp(logs, where=~bad[:, None], out=np.ones_like(logs)).sum(axis=1, keepdims=True))
    logs = logs - total
    logs[bad] = np.nan
    return np.asarray(logs, dtype=np.float64)
