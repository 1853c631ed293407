"""One task with its scores, their bootstrap draws, and what is told of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from merganser.compare.flips import flips, graded_flips, seed_flips
from merganser.compare.inference import (
    bootstrap_p,
    detectable_mean,
    detectable_share,
    mcnemar,
    percentile_interval,
    resamples,
    student_t,
    welch,
    wilson,
)
from merganser.compare.outputs import calibration, divergence
from merganser.compare.samples import Array, Task
from merganser.compare.scores import Measure, Ratio

Row = dict[str, Any]
FEW = 30
"""Samples below which a percentile interval is known to be too short."""


@dataclass(frozen=True)
class Plan:
    """What is compared: models, their columns among the runs, and how. The options are those of `compare`."""

    names: list[str]
    columns: dict[str, list[int]]
    reference: str
    resampled: int
    seed: int
    confidence: float
    examples: int

    def average(self) -> Array:
        """[runs, models]: of each model the mean of its runs."""
        matrix = np.zeros((sum(map(len, self.columns.values())), len(self.names)))
        for k, name in enumerate(self.names):
            matrix[self.columns[name], k] = 1 / len(self.columns[name])
        return matrix

    def pairs(self) -> list[tuple[int, int]]:
        return list(itertools.combinations(range(len(self.names)), 2))

    @property
    def others(self) -> list[str]:
        return [name for name in self.names if name != self.reference]


def averaged(values: Array, average: Array) -> Array:
    """Values [..., runs] @ average [runs, models]; NaN for a model with a run whose value is none, and for no other."""
    missing = ~np.isfinite(values)
    if not missing.any():
        return np.asarray(values @ average)
    found = np.where(missing, 0.0, values) @ average
    return np.where(missing @ (average > 0), np.nan, found)


class Scored:
    """A task with its measures, their draws, and what is told of it."""

    def __init__(self, task: Task, measures: list[Measure], plan: Plan, notes: list[str]) -> None:
        self.task, self.plan = task, plan
        self.measures = measures
        for measure in self.measures:
            if measure.left_out:
                notes.append(
                    f"task {task.name!r}: {measure.left_out} of {len(task)} samples have no finite "
                    f"{measure.name} in some model; they are left out of it for all"
                )
        if len(task) < FEW:
            notes.append(
                f"task {task.name!r} has {len(task)} samples; below {FEW} the intervals are too short to be "
                f"believed"
            )
        average = plan.average()
        self.by_run = [measure.estimate(np.ones((1, len(task))))[0] for measure in self.measures]
        self.estimates = [averaged(found, average) for found in self.by_run]
        self.extra = self._divergences(notes)
        collected: list[list[Array]] = [[] for _ in (*self.measures, *self.extra)]
        weights: list[list[Array]] = [[] for _ in self.measures]
        for counts in resamples(len(task), plan.resampled, plan.seed, task.name):
            every: list[Measure] = [*self.measures, *self.extra]
            for k, measure in enumerate(every):
                if not isinstance(measure, Ratio):
                    collected[k].append(measure.estimate(counts))
                    continue
                above, below = measure.sums(counts)
                with np.errstate(invalid="ignore", divide="ignore"):
                    collected[k].append(above / below)
                if k < len(self.measures):
                    weights[k].append(below @ average)
        draws = [np.concatenate(parts) for parts in collected]
        self.draws = [averaged(found, average) for found in draws[: len(self.measures)]]
        self.weights = [np.concatenate(parts) if parts else None for parts in weights]
        self.divergence_draws = draws[len(self.measures) :]

    def _divergences(self, notes: list[str]) -> list[Ratio]:
        """A measure for each other model, with the columns KL(reference || model) and KL(model || reference)."""
        found = []
        for name in self.plan.others:
            directions = []
            for old, new in ((self.plan.reference, name), (name, self.plan.reference)):
                sums, seen = np.zeros(len(self.task)), 0
                for i, j in itertools.product(self.plan.columns[old], self.plan.columns[new]):
                    values, other, endless = divergence(self.task.samples[i], self.task.samples[j])
                    sums, seen = sums + values, seen + 1
                    for number, why in ((other, "other choices"), (endless, "a choice of probability 0")):
                        if number:
                            said = (
                                f"task {self.task.name!r}: {number} samples have {why} in {self.plan.reference} or "
                                f"{name} and no KL divergence"
                            )
                            notes.extend([] if said in notes else [said])
                directions.append(sums / seen)
            parts = np.stack(directions, axis=1)
            rows = np.flatnonzero(np.isfinite(parts).all(axis=1))
            found.append(
                Ratio(name, -1, rows, len(self.task) - len(rows), parts[rows], np.ones_like(parts[rows]))
            )
        return found

    def test(self, measure: int, a: int, b: int) -> Row:
        """Model b against model a: the test's name and p."""
        one, plan = self.measures[measure], self.plan
        old, new = plan.columns[plan.names[a]], plan.columns[plan.names[b]]
        if not isinstance(one, Ratio):
            draws = self.draws[measure]
            return {"test": "bootstrap", "p": bootstrap_p(draws[:, b] - draws[:, a])}
        if one.binary and len(old) == len(new) == 1:
            x, y = one.parts[:, old[0]], one.parts[:, new[0]]
            lost, gained = int(((x == 1) & (y == 0)).sum()), int(((x == 0) & (y == 1)).sum())
            p, mid = mcnemar(lost, gained)
            return {"test": "McNemar, exact", "p": p, "p_mid": mid, "lost": lost, "gained": gained}
        found = student_t(self._paired(one, old, new))
        if found is None:
            return {"test": "paired t", "p": None}
        return {"test": "paired t", "p": found[1], "t": found[0]}

    def _paired(self, one: Ratio, old: Sequence[int], new: Sequence[int]) -> Array:
        influence = one.influence()
        scores = one.parts.sum(axis=0) / one.wholes.sum(axis=0)
        shift = scores[list(new)].mean() - scores[list(old)].mean()
        return np.asarray(influence[:, list(new)].mean(axis=1) - influence[:, list(old)].mean(axis=1) + shift)

    def _difference(self, measure: int, name: str) -> Row:
        plan, one = self.plan, self.measures[measure]
        a, b = plan.names.index(plan.reference), plan.names.index(name)
        draws = self.draws[measure][:, b] - self.draws[measure][:, a]
        low, high = self._interval(draws, len(one.rows))
        row: Row = {
            "model": name,
            "difference": number(self.estimates[measure][b] - self.estimates[measure][a]),
        }
        row |= {"low": low, "high": high, **self.test(measure, a, b)}
        if "lost" in row:
            discordance = (row["lost"] + row["gained"]) / len(one.rows)
            row["detectable"] = detectable_share(len(one.rows), discordance)
        elif isinstance(one, Ratio) and len(one.rows) > 1:
            paired = self._paired(one, plan.columns[plan.reference], plan.columns[name])
            row["detectable"] = detectable_mean(float(paired.std(ddof=1)) / math.sqrt(len(paired)))
        else:
            spread = draws[np.isfinite(draws)]
            row["detectable"] = detectable_mean(float(spread.std(ddof=1))) if len(spread) > 1 else None
        runs = [self.by_run[measure][plan.columns[side]] for side in (plan.reference, name)]
        row["seeds"] = welch(*(list(map(float, group)) for group in runs))
        return row

    def _all_alike(self, measure: Measure, model: int) -> float | None:
        """The share, where all samples of a model are right or all wrong: every resample says the same then."""
        if not isinstance(measure, Ratio) or not measure.binary:
            return None
        values = measure.parts[:, self.plan.columns[self.plan.names[model]]]
        return float(values.flat[0]) if (values == values.flat[0]).all() else None

    def _interval(self, draws: Array, count: int) -> tuple[float | None, float | None]:
        return percentile_interval(draws, self.plan.confidence) if count > 1 else (None, None)

    def document(self) -> Row:
        plan, task = self.plan, self.task
        measures = []
        for k, measure in enumerate(self.measures):
            scores = []
            for j, name in enumerate(plan.names):
                low, high = self._interval(self.draws[k][:, j], len(measure.rows))
                if (share := self._all_alike(measure, j)) is not None and low is not None:
                    low, high = wilson(share, len(measure.rows), plan.confidence)
                scores.append(
                    {"model": name, "score": number(self.estimates[k][j]), "low": low, "high": high}
                )
            row: Row = {"measure": measure.name, "better": "higher" if measure.better > 0 else "lower"}
            row |= {"samples": len(measure.rows), "left_out": measure.left_out, "scores": scores}
            measures.append(row | {"differences": [self._difference(k, name) for name in plan.others]})
        found: Row = {"task": task.name, "kind": task.kind, "samples": len(task), "measures": measures}
        for key, tell, names in (
            ("flips", self._flips, plan.others),
            ("outputs", self._outputs, plan.others),
            ("calibration", self._calibration, plan.names),
        ):
            found[key] = [told for name in names if (told := tell(name)) is not None]
        return found

    def _flips(self, name: str) -> Row | None:
        plan = self.plan
        old, new = plan.columns[plan.reference], plan.columns[name]
        found = flips(self.task, old, new, plan.confidence, plan.examples)
        if found is None:
            first = self.measures[0]
            if not isinstance(first, Ratio):
                return None
            each = first.parts / first.wholes.mean(axis=0)
            change = graded_flips(each[:, old].mean(axis=1), each[:, new].mean(axis=1), first.better)
            return {"model": name, "of": first.name, **change}
        floors = {side: seed_flips(self.task, plan.columns[side]) for side in (plan.reference, name)}
        return {"model": name, **found, "negative_between_seeds": floors}

    def _outputs(self, name: str) -> Row | None:
        k = self.plan.others.index(name)
        one, draws = self.extra[k], self.divergence_draws[k]
        if not len(one.rows):
            return None
        row: Row = {"model": name, "samples": len(one.rows), "left_out": one.left_out}
        for side, key in enumerate(("reference_to_model", "model_to_reference")):
            low, high = self._interval(draws[:, side], len(one.rows))
            row[key] = {"mean": float(one.parts[:, side].mean()), "low": low, "high": high}
        return row

    def _calibration(self, name: str) -> Row | None:
        found = [calibration(self.task.samples[k]) for k in self.plan.columns[name]]
        kept = [one for one in found if one is not None]
        if not kept:
            return None
        row: Row = {
            "model": name,
            "samples": kept[0]["samples"],
            "curve": kept[0]["curve"],
            "runs": len(kept),
        }
        for key in ("ece", "brier", "overconfidence"):
            values = [one[key] for one in kept if one[key] is not None]
            row[key] = math.fsum(values) / len(values) if values else None
        return row


def number(value: Any) -> float | None:
    """A float for JSON; None for what is no number (the correlation of constants)."""
    return float(value) if math.isfinite(value) else None
