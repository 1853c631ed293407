"""Ways through a space of open numbers: a grid, random draws, CMA-ES. They see units (0 to 1) and maximise."""

from __future__ import annotations

import itertools
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from merganser.errors import RequestError, did_you_mean
from merganser.running import require
from merganser.search.space import Dimension

Point = tuple[float, ...]
OPTIMISERS = ("grid", "random", "cma")
SIGMA = 1 / 6
"""CMA-ES's first standard deviation in units (P058)."""
SEPARABLE = 200
"""From so many numbers on CMA-ES learns variances only, no covariances."""


class Optimiser(ABC):
    """Proposes points, and is told what they are worth."""

    @abstractmethod
    def ask(self) -> list[Point]:
        """The next points; none when there are no more."""

    def tell(self, points: Sequence[Point], values: Sequence[float]) -> None:  # noqa: B027
        """What the points are worth (higher is better, -inf is a failure)."""


class Grid(Optimiser):
    """Every combination of evenly spaced points, ends included. Of choices each is a point.

    Numbers without `points` of their own get as many each as the evaluations allow, at least 2.
    """

    def __init__(self, dimensions: Sequence[Dimension], evaluations: int) -> None:
        fixed = math.prod(_count(one) or 1 for one in dimensions)
        free = sum(_count(one) is None for one in dimensions)
        each = 2
        while free and fixed * (each + 1) ** free <= evaluations:
            each += 1
        self.total = fixed * each**free
        if self.total > evaluations:
            raise RequestError(
                f"a grid over {len(dimensions)} open numbers has {self.total:,} points at least, more than "
                f"the {evaluations:,} evaluations allowed; allow more, or search by random or cma"
            )
        self._points = itertools.product(*(_units(one, each) for one in dimensions))

    def ask(self) -> list[Point]:
        """See `Optimiser`."""
        return list(itertools.islice(self._points, 16))


def _count(one: Dimension) -> int | None:
    return len(one.choices) if one.choices is not None else one.points


def _units(one: Dimension, each: int) -> list[float]:
    if one.choices is not None:
        return [(k + 0.5) / len(one.choices) for k in range(len(one.choices))]
    count = one.points or each
    return [k / (count - 1) for k in range(count)]


class Random(Optimiser):
    """Points drawn evenly and independently (PCG64)."""

    def __init__(self, dimensions: Sequence[Dimension], seed: int) -> None:
        self.count = len(dimensions)
        self.draws = np.random.default_rng(seed)

    def ask(self) -> list[Point]:
        """See `Optimiser`."""
        return [tuple(self.draws.random(self.count).tolist()) for _ in range(16)]


class Cma(Optimiser):
    """CMA-ES (the `cma` package) from the start points with standard deviation 1/6, bounded to the units.

    The population is 4 + floor(3 ln n); when a run ends (it has converged or sees no differences) another begins at a
    random point with twice the population. Draws come from a generator of its own, so NumPy's global one is left alone.
    """

    def __init__(self, dimensions: Sequence[Dimension], seed: int) -> None:
        require("cma")
        self.draws = np.random.default_rng(seed)
        self.count = len(dimensions)
        # The package wants two numbers at least; a second that changes nothing is harmless.
        self.size = max(2, self.count)
        self.population = 4 + int(3 * math.log(self.size))
        self._begin([one.start for one in dimensions] + [0.5] * (self.size - self.count))
        self.asked: list[Any] = []

    def _begin(self, start: Sequence[float]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it cannot draw plots
            import cma

        options = {
            "bounds": [0.0, 1.0],
            "seed": math.nan,
            "randn": lambda *shape: self.draws.standard_normal(shape),
            "popsize": self.population,
            "verbose": -9,
            "verb_log": 0,
            "verb_disp": 0,
            "CMA_diagonal": self.size > SEPARABLE,
        }
        self.strategy = cma.CMAEvolutionStrategy([min(max(x, 0.0), 1.0) for x in start], SIGMA, options)

    def ask(self) -> list[Point]:
        """See `Optimiser`."""
        if self.strategy.stop():
            self.population *= 2
            self._begin(self.draws.random(self.size).tolist())
        self.asked = self.strategy.ask()
        return [tuple(float(x) for x in one[: self.count]) for one in self.asked]

    def tell(self, points: Sequence[Point], values: Sequence[float]) -> None:
        """See `Optimiser`."""
        if len(values) < len(self.asked):
            return  # the evaluations ran out inside a population
        finite = [value for value in values if math.isfinite(value)]
        worst = min(finite, default=0.0) - 1.0
        self.strategy.tell(self.asked, [-(value if math.isfinite(value) else worst) for value in values])


def optimiser(by: str, dimensions: Sequence[Dimension], evaluations: int, seed: int) -> Optimiser:
    """The optimiser called `by`. Raises `RequestError` for an unknown one and for a budget that is too small."""
    if isinstance(evaluations, bool) or evaluations < 1:
        raise RequestError(f"a search needs at least one evaluation, not {evaluations}")
    if not 0 <= seed < 2**64:
        raise RequestError(f"the seed is a whole number from 0 to 2**64-1, not {seed}")
    if by == "grid":
        return Grid(dimensions, evaluations)
    if by == "random":
        return Random(dimensions, seed)
    if by == "cma":
        return Cma(dimensions, seed)
    raise RequestError(
        f"unknown optimiser {by!r}{did_you_mean(by, OPTIMISERS)} (known: {', '.join(OPTIMISERS)})"
    )


def optimise(
    dimensions: Sequence[Dimension],
    function: Callable[[Point], float],
    *,
    by: str = "cma",
    evaluations: int = 100,
    seed: int = 0,
) -> tuple[Point, float, int]:
    """The best point of units, what it is worth, and how many points were evaluated.

    function: what a point is worth, higher is better, -inf for one that failed. Of equal points the first counts. Same
    seed, same points. Raises `RequestError` as `optimiser` does.
    """
    way = optimiser(by, dimensions, evaluations, seed)
    best: tuple[Point, float] | None = None
    done = 0
    while done < evaluations and (points := way.ask()):
        values = []
        for point in points[: evaluations - done]:
            value = function(point)
            values.append(value)
            if best is None or value > best[1]:
                best = point, value
        done += len(values)
        way.tell(points, values)
    assert best is not None
    return (*best, done)
