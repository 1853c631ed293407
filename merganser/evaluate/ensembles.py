"""The ensemble of models, out of their results per sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from merganser.errors import RequestError, listing
from merganser.evaluate.metrics import Array
from merganser.evaluate.results import Results, TaskResult

KINDS = ("classification", "multiple_choice")
"""Kinds of tasks whose results have log-probabilities of every choice."""


def ensemble(
    results: Sequence[Results], weights: Sequence[float] | None = None, *, label: str = "ensemble"
) -> Results:
    """Results of the mean of models' probabilities, of their results on one suite: nothing is run again.

    For each sample p(choice) = sum w_k softmax(l_k)(choice) / sum w_k, where l_k are model k's log-probabilities of the
    choices; the first of equals is predicted, and the loss is -log p(answer). weights: one a model, from 0
    (default: all 1). Classification and multiple choice (by whole choices, not by their length) only.

    Raises `RequestError` for other kinds, samples that differ, or weights that do not fit.
    """
    shares = np.ones(len(results)) if weights is None else np.array(weights, float)
    if not results or shares.shape != (len(results),) or not (np.isfinite(shares) & (shares >= 0)).all():
        raise RequestError(f"an ensemble of {len(results)} models takes as many weights, numbers from 0")
    if not shares.sum() > 0:
        raise RequestError("the weights of an ensemble are all 0")
    first = results[0]
    for one in results[1:]:
        if list(one.tasks) != list(first.tasks):
            raise RequestError(
                f"an ensemble takes results on one suite: {first.model.get('label')} has {listing(first.tasks)}, "
                f"{one.model.get('label')} {listing(one.tasks)}"
            )
    tasks = {
        name: _task(name, [one.tasks[name] for one in results], shares / shares.sum()) for name in first.tasks
    }
    return Results({"label": label, "identity": None}, first.suite, tasks)


def _task(name: str, parts: Sequence[TaskResult], shares: Array) -> TaskResult:
    first = parts[0]
    if first.kind not in KINDS:
        raise RequestError(
            f"task {name!r} ({first.kind}) has no probabilities of choices, so outputs are not averaged"
        )
    for column in ("id", "input_digest", "choices"):
        if any(part.column(column) != first.column(column) for part in parts[1:]):
            raise RequestError(f"task {name!r}: the results are not of the same samples (column {column})")
    logs = [part.column("log_probabilities") for part in parts]
    columns: dict[str, list[Any]] = {key: [] for key in ("prediction", "right", "loss", "log_probabilities")}
    answers, choices = first.column("answer"), first.column("choices")
    for row, (answer, names) in enumerate(zip(answers, choices, strict=True)):
        if names is None or any(one[row] is None for one in logs):
            raise RequestError(f"task {name!r}, sample {row + 1}: has no probabilities of choices")
        each = np.array([one[row] for one in logs], float)
        each -= each.max(1, keepdims=True)
        mixed = shares @ (np.exp(each) / np.exp(each).sum(1, keepdims=True))
        with np.errstate(divide="ignore"):
            found = np.log(mixed).tolist()
        best = int(np.argmax(mixed))
        columns["prediction"].append(names[best])
        columns["right"].append(None if answer is None else names[best] == answer)
        columns["loss"].append(None if answer is None else -found[names.index(answer)])
        columns["log_probabilities"].append(found)
    kept = {key: first.column(key) for key in ("id", "input_digest", "answer", "choices")}
    return TaskResult.of(first.kind, kept | columns, data=first.data, data_digest=first.data_digest)
