"""Scoring merges: each once, failures included."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merganser.algebra import Weights
from merganser.errors import NonFiniteError, listing
from merganser.search.fitness import Fitness, Measured
from merganser.search.journal import Journal, Keys


@dataclass(frozen=True)
class Score:
    """What a merge is worth, and each task of it (NaN: undefined).

    A merge that failed is worth -inf: it holds or returns NaN, or its metric is undefined. `failed` says why.
    """

    fitness: float
    tasks: Mapping[str, float]
    failed: str | None = None

    def as_json(self) -> dict[str, Any]:
        """For --json: null stands for what is undefined, and `failed` says why there is no fitness."""
        tasks = {name: _known(value) for name, value in self.tasks.items()}
        found: dict[str, Any] = {"fitness": _known(self.fitness), "tasks": tasks}
        return found | ({"failed": self.failed} if self.failed else {})


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


class Evaluator:
    """Measures merges through a journal and scores them."""

    def __init__(self, fitness: Fitness, journal: Path | None = None) -> None:
        self.fitness = fitness
        self.journal = Journal(journal)
        self.keys = Keys(fitness.identity)

    def __call__(
        self,
        weights: Weights,
        recipe: Any,
        values: Mapping[str, Any] | None = None,
        measure: Callable[[Weights], Measured] | None = None,
    ) -> Score:
        """The score of a merge that `recipe` (canonical) makes; `values` are noted in the journal.

        measure: in place of the fitness's own, where it is not in the journal.
        """
        key = self.keys.key(weights, recipe)
        measured = self.journal.find(key)
        if measured is None:
            try:
                measured = (measure or self.fitness.measure)(weights)
            except NonFiniteError as error:
                measured = {"failed": str(error)}
            self.journal.add(key, values or {}, measured)
        if "failed" in measured:
            return Score(-math.inf, {}, str(measured["failed"]))
        score, tasks = self.fitness.score(measured), self.fitness.tasks(measured)
        if score != -math.inf:
            return Score(score, tasks)
        missing = [name for name, value in tasks.items() if math.isnan(value)]
        what = f"the metric of {listing(missing)}" if missing else "its fitness"
        return Score(score, tasks, f"{what} is undefined for it")
