"""What a merge is worth: measured on a suite of tasks, or by any function."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merganser.algebra import Weights
from merganser.errors import RequestError, did_you_mean
from merganser.search.live import Live

if TYPE_CHECKING:
    from merganser.evaluate import Results, Suite

Measured = dict[str, Any]
"""What was measured of a merge, in plain JSON: {"tasks": {task: {"kind", "metrics"}}} or {"value": number}."""
COMBINATIONS = ("mean", "worst")


class Fitness(ABC):
    """What a merge is worth. Measuring is dear and kept in journals; scoring what was measured costs nothing.

    `identity` is what a measurement depends on beside the merge, `told` what is written into recipes.
    """

    identity: str
    told: Mapping[str, Any]

    @abstractmethod
    def measure(self, weights: Weights) -> Measured:
        """Run the merge. Raises what running raises."""

    @abstractmethod
    def score(self, measured: Measured) -> float:
        """The fitness, higher is better."""

    def tasks(self, measured: Measured) -> dict[str, float]:
        """The score of each task, where there are tasks."""
        return {}

    def check(self) -> None:  # noqa: B027
        """Raise `RequestError` for what cannot work, before anything runs."""


class CallableFitness(Fitness):
    """The number that a function gives for a merge, higher is better.

    name: what journals and recipes call it; evaluations of one name are taken to be of one function.
    """

    def __init__(self, function: Callable[[Weights], float], name: str) -> None:
        self.function = function
        self.identity = f"function {name}"
        self.told = {"fitness": name}

    def measure(self, weights: Weights) -> Measured:
        """Call the function."""
        return {"value": float(self.function(weights))}

    def score(self, measured: Measured) -> float:
        """The function's value; NaN is a failure."""
        value = float(measured["value"])
        return -math.inf if math.isnan(value) else value


class SuiteFitness(Fitness):
    """Scores of a suite's tasks, combined.

    A task's score is its metric, turned round (minus it) where less is better: accuracy of classification and multiple
    choice, exact_match of generation, spearman of similarity, minus bits_per_byte of perplexity; `metric` names another
    for all tasks, or by task. combine: "mean" (default), "worst" (the least), or weights by task, of which sum(w x) /
    sum(w) is taken; a task without weight is not run.
    """

    def __init__(
        self,
        suite: Suite | str | Path | Mapping[str, Any],
        *,
        combine: str | Mapping[str, float] = "mean",
        metric: str | Mapping[str, str] | None = None,
        live: Live | None = None,
    ) -> None:
        from merganser.evaluate import Suite
        from merganser.evaluate.metrics import METRICS

        self.suite = suite if isinstance(suite, Suite) else Suite.open(suite)
        names = [task.name for task in self.suite.tasks]
        if isinstance(combine, str):
            if combine not in COMBINATIONS:
                raise RequestError(
                    f"unknown fitness {combine!r}{did_you_mean(combine, COMBINATIONS)} (known: "
                    f"{', '.join(COMBINATIONS)}, or weights by task, as in imdb=2,mail=1)"
                )
        else:
            _known(combine, names, f"suite {self.suite.name!r}")
            if any(not math.isfinite(w) or w < 0 for w in combine.values()) or not sum(combine.values()) > 0:
                raise RequestError(
                    f"weights of tasks are numbers from 0, one of them above 0, not {dict(combine)}"
                )
            kept = tuple(task for task in self.suite.tasks if combine.get(task.name, 0.0) > 0)
            self.suite = Suite(self.suite.name, kept)
        if isinstance(metric, Mapping):
            _known(metric, names, f"suite {self.suite.name!r}")
        for task in self.suite.tasks:
            wanted = metric.get(task.name) if isinstance(metric, Mapping) else metric
            _has(task.name, task.kind, wanted, METRICS[task.kind])
        self.combine = combine
        self.metric = metric
        self.live = live or Live()
        self._digest: str | None = None

    @property
    def identity(self) -> str:  # type: ignore[override]
        """The suite's digest: settings and data."""
        if self._digest is None:
            self._digest = self.suite.digest
        return f"suite {self._digest}"

    @property
    def told(self) -> Mapping[str, Any]:  # type: ignore[override]
        """The suite and how its tasks are combined."""
        how = self.combine if isinstance(self.combine, str) else dict(sorted(self.combine.items()))
        metric = dict(sorted(self.metric.items())) if isinstance(self.metric, Mapping) else self.metric
        found = {
            "suite": self.suite.name,
            "suite_digest": self.identity.removeprefix("suite "),
            "fitness": how,
        }
        return found | ({"metric": metric} if metric is not None else {})

    def check(self) -> None:
        """See `Fitness`."""
        self.suite.check()

    def measure(self, weights: Weights) -> Measured:
        """Metrics by task."""
        return self.measured(self.results(weights))

    def results(self, weights: Weights) -> Results:
        """Results per sample of the merge; whose they are is not worked out."""
        from merganser.evaluate import evaluate

        return evaluate(self.live.model_of(weights), self.suite, identify=False)

    def measured(self, results: Results) -> Measured:
        """What `measure` keeps of results per sample."""
        return {
            "tasks": {
                name: {
                    "kind": task.kind,
                    "metrics": {k: v for k, v in task.metrics.items() if not k.endswith("_stderr")},
                }
                for name, task in results.tasks.items()
            }
        }

    def tasks(self, measured: Measured) -> dict[str, float]:
        """Each task's metric, turned so that higher is better."""
        from merganser.evaluate import headline
        from merganser.evaluate.metrics import HIGHER_IS_BETTER

        found = {}
        for name, task in measured["tasks"].items():
            wanted = self.metric.get(name) if isinstance(self.metric, Mapping) else self.metric
            wanted = str(wanted or headline(task["kind"], task["metrics"]))
            _has(name, task["kind"], wanted, task["metrics"])
            value = task["metrics"][wanted]
            if value is None:  # undefined: no score, and never a good one
                found[name] = math.nan
                continue
            found[name] = value if HIGHER_IS_BETTER.get(wanted, True) else -value
        return found

    def score(self, measured: Measured) -> float:
        """The combination of the tasks' scores."""
        scores = self.tasks(measured)
        if any(math.isnan(value) for value in scores.values()):
            return -math.inf
        if self.combine == "worst":
            return min(scores.values())
        weights = dict.fromkeys(scores, 1.0) if isinstance(self.combine, str) else self.combine
        return sum(weights[n] * value for n, value in scores.items()) / sum(weights[n] for n in scores)

    def same(self, other: SuiteFitness) -> list[str]:
        """Data files that both suites read: what is reported on must not have been chosen on."""
        mine = {task.rows.digest: str(task.path) for task in self.suite.tasks}
        return [str(task.path) for task in other.suite.tasks if task.rows.digest in mine]

    def shared(self, other: SuiteFitness) -> list[tuple[str, int, int]]:
        """Data of the other suite with samples that this one has too, in any order or file: how many of how many."""
        mine = {mark for task in self.suite.tasks for mark in task.digests()}
        found = []
        for task in other.suite.tasks:
            marks = task.digests()
            if count := sum(mark in mine for mark in marks):
                found.append((str(task.path), count, len(marks)))
        return found


def _known(given: Mapping[str, Any], names: list[str], where: str) -> None:
    for name in given:
        if name not in names:
            raise RequestError(
                f"{where} has no task {name!r}{did_you_mean(name, names)} (it has {', '.join(names)})"
            )


def _has(task: str, kind: str, wanted: str | None, metrics: Iterable[str]) -> None:
    if wanted is not None and wanted not in (known := list(metrics)):
        raise RequestError(
            f"task {task!r} ({kind}) has no metric {wanted!r}{did_you_mean(wanted, known)} (it has {', '.join(known)})"
        )
