"""Scoring merges: each once, failures included."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merganser.algebra import Weights
from merganser.errors import NonFiniteError
from merganser.search.fitness import Fitness, Measured
from merganser.search.journal import Journal, Keys


@dataclass(frozen=True)
class Score:
    """What a merge is worth, and each task of it. A merge that failed (it holds or returns NaN) is worth -inf."""

    fitness: float
    tasks: Mapping[str, float]
    failed: str | None = None


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
        return Score(self.fitness.score(measured), self.fitness.tasks(measured))
