"""Ranking mixtures of data by averages of models that were each trained on a part of it (P109)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from merganser.algebra import Weights
from merganser.errors import RequestError, did_you_mean
from merganser.evaluate.metrics import spearman
from merganser.recipe import as_saved
from merganser.search.evaluator import Evaluator, Progress, Score
from merganser.search.fitness import Fitness
from merganser.search.space import is_number

MOST_SETS = 255
DRAWS = 2000


@dataclass(frozen=True)
class PartSet:
    """A mixture of parts: their names and shares, and what a model really trained on it scored, where that is known."""

    name: str
    parts: tuple[str, ...]
    weights: tuple[float, ...]
    true: float | None = None


@dataclass(frozen=True)
class Agreement:
    """How a proxy orders mixtures beside their true scores: Spearman's rho, Kendall's tau-b, and rho's 95 % interval.

    The interval is the percentile bootstrap's over mixtures; null where draws without a rank (all equal) are
    half of all.
    """

    proxy: str
    count: int
    spearman: float | None
    kendall: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class RankedMixtures:
    """Sets with the score of the parts' average and the mean of the parts' own scores, the best average first."""

    rows: Sequence[tuple[PartSet, Score, float]]
    agreement: Sequence[Agreement] = field(default_factory=tuple)

    def as_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            "sets": [
                {
                    "name": one.name,
                    "parts": list(one.parts),
                    "weights": list(one.weights),
                    "score": score.fitness,
                    "tasks": dict(score.tasks),
                    "mean_of_parts": mean,
                    "true": one.true,
                    **({"failed": score.failed} if score.failed else {}),
                }
                for one, score, mean in self.rows
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

    models: by the name of their part; sets: the mixtures (default: every set of parts). Beside each stands the cheapest
    rival, the mean of the parts' own scores. Where sets have true scores (higher is better, on the fitness's
    scale or any other), the agreement of both orders with the true one is told; seed: of its bootstrap.

    Paper: P109, its average of parts of equal size; `weights` is the mean over parts of other sizes. Its other
    proxy, the mean of the models' outputs, is not here.
    """
    if len(models) < 2:
        raise RequestError("ranking mixtures takes at least two models, each trained on a part of the data")
    wanted = list(every_set(list(models)) if sets is None else sets)
    fitness.check()
    evaluator = Evaluator(fitness, journal)
    alone = [PartSet(name, (name,), (1.0,)) for name in dict.fromkeys(p for one in wanted for p in one.parts)]
    total, done = len(alone) + len(wanted), 0

    def score(one: PartSet) -> Score:
        nonlocal done
        found = evaluator(_mixed(models, one), {"weights": list(one.weights)}, {"parts": list(one.parts)})
        done += 1
        if progress is not None:
            progress(done, total)
        return found

    for one in wanted:
        _mixed(models, one)  # shapes that differ are told before anything runs
    singles = {one.name: score(one).fitness for one in alone}
    rows = []
    for one in wanted:
        weights = np.array(one.weights) / sum(one.weights)
        rows.append(
            (one, score(one), float(sum(w * singles[p] for w, p in zip(weights, one.parts, strict=True))))
        )
    rows.sort(key=lambda row: -row[1].fitness)
    known = [row for row in rows if row[0].true is not None and math.isfinite(row[1].fitness)]
    agreement = []
    if len(known) > 2:
        true = np.array([row[0].true for row in known], float)
        for proxy, values in (
            ("average of parts", np.array([row[1].fitness for row in known])),
            ("mean of the parts' scores", np.array([row[2] for row in known])),
        ):
            agreement.append(_agreement(proxy, values, true, seed))
    return RankedMixtures(rows, agreement)


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
    for _ in range(DRAWS):
        chosen = draws.integers(0, len(true), len(true))
        if (rho := spearman(values[chosen], true[chosen])) is not None:
            found.append(rho)
    low, high = map(float, np.quantile(found, [0.025, 0.975])) if len(found) > DRAWS // 2 else (None, None)
    tau = float(kendall([values.tolist(), true.tolist()])[0, 1])
    return Agreement(proxy, len(true), spearman(values, true), None if math.isnan(tau) else tau, low, high)
