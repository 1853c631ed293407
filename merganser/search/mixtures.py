"""Ranking mixtures of data by averages of models that were each trained on a part of it (P109)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from merganser._progress import Progress
from merganser.algebra import Weights
from merganser.errors import RequestError, did_you_mean
from merganser.evaluate.metrics import spearman
from merganser.recipe import as_saved
from merganser.search.evaluator import Evaluator, Score
from merganser.search.fitness import Fitness, Measured, SuiteFitness
from merganser.search.space import is_number

if TYPE_CHECKING:
    from merganser.evaluate import Results

MOST_SETS = 255
DRAWS = 2000
FEWEST = 5
"""Mixtures that an interval needs: 3 stand in perfect order by chance once in 6 times, 4 once in 24."""


@dataclass(frozen=True)
class PartSet:
    """A mixture of parts: their names and shares, and what a model really trained on it scored, where that is known."""

    name: str
    parts: tuple[str, ...]
    weights: tuple[float, ...]
    true: float | None = None


@dataclass(frozen=True)
class Proxies:
    """What stands in for a model that is trained on a mixture, each a fitness.

    `average`: of the parameter average; `mean`: the mean of the parts' own scores, None where one has none; `ensemble`:
    of the mean of the parts' probabilities, None where the fitness or a part has none.
    """

    mixture: PartSet
    average: Score
    mean: float | None
    ensemble: float | None


@dataclass(frozen=True)
class Agreement:
    """How a proxy orders mixtures beside their true scores: Spearman's rho, Kendall's tau-b, and rho's 95 % interval.

    The interval is the percentile bootstrap's over mixtures. It is null where it would say nothing: for fewer than
    `FEWEST` mixtures, where every draw has the same rank (a perfect order gives 1 to 1, however few its mixtures are),
    and where draws without a rank (all equal) are half of all.
    """

    proxy: str
    count: int
    spearman: float | None
    kendall: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class RankedMixtures:
    """Mixtures with their proxies, the best average first."""

    rows: Sequence[Proxies]
    agreement: Sequence[Agreement] = field(default_factory=tuple)

    def as_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            "sets": [
                {
                    "name": one.mixture.name,
                    "parts": list(one.mixture.parts),
                    "weights": list(one.mixture.weights),
                    **{("score" if k == "fitness" else k): v for k, v in one.average.as_json().items()},
                    "mean_of_parts": one.mean,
                    "ensemble": one.ensemble,
                    "true": one.mixture.true,
                }
                for one in self.rows
            ],
            "agreement": [vars(one) for one in self.agreement],
        }


def every_set(parts: Sequence[str]) -> list[PartSet]:
    """Every set of parts, equal shares. Raises `RequestError` for more than 255."""
    if 2 ** len(parts) - 1 > MOST_SETS:
        raise RequestError(
            f"{len(parts)} parts have {2 ** len(parts) - 1:,} sets; name those to be scored (--sets), at most "
            f"{MOST_SETS} are scored without being asked for"
        )
    found = []
    for count in range(1, len(parts) + 1):
        for chosen in itertools.combinations(parts, count):
            found.append(PartSet("+".join(chosen), chosen, (1.0,) * count))
    return found


def read_sets(path: str | Path, parts: Sequence[str]) -> list[PartSet]:
    """Sets from YAML: {sets: [{parts: [a, b], weights: [2, 1], name: web, true: 0.81}]}; only `parts` is needed.

    weights: shares of the parts (default: equal), for parts of unequal size. Raises `RequestError` naming the place.
    """
    from merganser.document import parse, read_file

    raw = parse(read_file(Path(path), "list of sets"), str(path), "list of sets")
    if (
        not isinstance(raw, dict)
        or list(raw) != ["sets"]
        or not isinstance(raw["sets"], list)
        or not raw["sets"]
    ):
        raise RequestError(f"{path}: expected {{sets: [{{parts: [...]}}, ...]}}")
    known = ("parts", "weights", "name", "true")
    found = []
    for k, one in enumerate(raw["sets"]):
        place = f"{path}: sets[{k}]"
        if not isinstance(one, dict):
            raise RequestError(f"{place}: expected {{parts: [...]}}, not {one!r}")
        for key in one:
            if key not in known:
                raise RequestError(
                    f"{place}.{key}: unknown key{did_you_mean(key, known)} (known: {', '.join(known)})"
                )
        chosen = one.get("parts")
        if not isinstance(chosen, list) or not chosen or len(set(map(str, chosen))) < len(chosen):
            raise RequestError(f"{place}.parts: expected different parts, not {chosen!r}")
        for part in chosen:
            if part not in parts:
                raise RequestError(
                    f"{place}.parts: no model is called {part!r}{did_you_mean(str(part), parts)} (there are "
                    f"{', '.join(parts)})"
                )
        weights = one.get("weights", [1.0] * len(chosen))
        good = (
            isinstance(weights, list)
            and len(weights) == len(chosen)
            and all(is_number(w) and w > 0 for w in weights)
        )
        if not good:
            raise RequestError(f"{place}.weights: expected {len(chosen)} numbers above 0, not {weights!r}")
        true = one.get("true")
        if true is not None and not is_number(true):
            raise RequestError(f"{place}.true: expected a number, not {true!r}")
        name = one.get("name", "+".join(chosen))
        found.append(
            PartSet(
                str(name), tuple(chosen), tuple(map(float, weights)), None if true is None else float(true)
            )
        )
    return found


def rank_mixtures(
    models: Mapping[str, Weights],
    fitness: Fitness,
    sets: Sequence[PartSet] | None = None,
    *,
    seed: int = 0,
    journal: Path | None = None,
    progress: Progress | None = None,
) -> RankedMixtures:
    """Score averages of models trained from one base on separate parts of data, in place of a model for each mixture.

    models: by the name of their part; sets: the mixtures (default: every set of parts). Beside each stand the paper's
    cheap rivals: the mean of the parts' own scores, and, where every task has choices, the score of the mean of the
    parts' probabilities. Where sets have true scores (higher is better, on the fitness's scale or any other), the
    agreement of each order with the true one is told; seed: of its bootstrap.

    Paper: P109, its average of parts of equal size; `weights` makes all three weighted means, for parts of other sizes.
    """
    if len(models) < 2:
        raise RequestError("ranking mixtures takes at least two models, each trained on a part of the data")
    wanted = list(every_set(list(models)) if sets is None else sets)
    fitness.check()
    evaluator = Evaluator(fitness, journal)
    alone = [PartSet(name, (name,), (1.0,)) for name in dict.fromkeys(p for one in wanted for p in one.parts)]
    total, done = len(alone) + len(wanted), 0

    def score(one: PartSet, measure: Callable[[Weights], Measured] | None = None) -> Score:
        nonlocal done
        told = {"weights": list(one.weights)}, {"parts": list(one.parts)}
        found = evaluator(_mixed(models, one), *told, measure=measure)
        done += 1
        if progress is not None:
            progress(done, total)
        return found

    for one in wanted:
        _mixed(models, one)  # shapes that differ are told before anything runs
    outputs = _Outputs(fitness) if _has_choices(fitness) else None
    singles = {one.name: score(one, outputs.measure(one.name) if outputs else None).fitness for one in alone}
    if outputs is not None:
        for one in alone:
            if one.name not in outputs.held and math.isfinite(
                singles[one.name]
            ):  # the journal knew its score
                outputs.measure(one.name)(_mixed(models, one))
    rows = []
    for one in wanted:
        shares = np.array(one.weights) / sum(one.weights)
        mean = float(sum(w * singles[p] for w, p in zip(shares, one.parts, strict=True)))
        known = mean if math.isfinite(mean) else None
        rows.append(Proxies(one, score(one), known, outputs.ensemble(one) if outputs else None))
    rows.sort(key=lambda row: -row.average.fitness)
    return RankedMixtures(rows, _agreements(rows, seed))


def _has_choices(fitness: Fitness) -> TypeGuard[SuiteFitness]:
    from merganser.evaluate.ensembles import KINDS

    return isinstance(fitness, SuiteFitness) and all(task.kind in KINDS for task in fitness.suite.tasks)


class _Outputs:
    """Results per sample of the parts, for the score of the mean of their probabilities."""

    def __init__(self, fitness: SuiteFitness) -> None:
        self.fitness = fitness
        self.held: dict[str, Results] = {}

    def measure(self, part: str) -> Callable[[Weights], Measured]:
        """The fitness's `measure`, which keeps the results."""

        def run(weights: Weights) -> Measured:
            self.held[part] = self.fitness.results(weights)
            return self.fitness.measured(self.held[part])

        return run

    def ensemble(self, one: PartSet) -> float | None:
        """None where a part failed, or the mean of all has no score."""
        from merganser.evaluate import ensemble

        if any(part not in self.held for part in one.parts):
            return None
        made = ensemble([self.held[part] for part in one.parts], one.weights)
        score = self.fitness.score(self.fitness.measured(made))
        return score if math.isfinite(score) else None


def _agreements(rows: Sequence[Proxies], seed: int) -> list[Agreement]:
    """Of each proxy, over the mixtures that have it: what one lacks takes nothing from the others."""
    proxies: dict[str, Callable[[Proxies], float | None]] = {
        "average of parts": lambda row: row.average.fitness if math.isfinite(row.average.fitness) else None,
        "mean of the parts' scores": lambda row: row.mean,
        "ensemble of parts": lambda row: row.ensemble,
    }
    found = []
    for proxy, of in proxies.items():
        known = [(value, row.mixture.true) for row in rows if (value := of(row)) is not None]
        both = np.array([pair for pair in known if pair[1] is not None], float)
        if len(both) >= 3:
            found.append(_agreement(proxy, both[:, 0], both[:, 1], seed))
    return found


def _mixed(models: Mapping[str, Weights], one: PartSet) -> Weights:
    from merganser.methods import get

    chosen = [models[part] for part in one.parts]
    if len(chosen) == 1:
        return as_saved(chosen[0], None)
    return as_saved(get("linear")(None, chosen, weight=list(one.weights)), None)


def _agreement(proxy: str, values: np.ndarray[Any, Any], true: np.ndarray[Any, Any], seed: int) -> Agreement:
    from merganser.compare.inference import kendall

    draws = np.random.default_rng(seed)
    found = []
    for _ in range(DRAWS if len(true) >= FEWEST else 0):
        chosen = draws.integers(0, len(true), len(true))
        if (rho := spearman(values[chosen], true[chosen])) is not None:
            found.append(rho)
    told = len(found) > DRAWS // 2 and max(found) - min(found) > 1e-9
    low, high = map(float, np.quantile(found, [0.025, 0.975])) if told else (None, None)
    tau = float(kendall([values.tolist(), true.tolist()])[0, 1])
    return Agreement(proxy, len(true), spearman(values, true), None if math.isnan(tau) else tau, low, high)
