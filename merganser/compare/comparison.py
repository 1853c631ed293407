"""Models' results on the same samples, compared: the whole comparison as one JSON document."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser._version import __version__
from merganser.compare.concordance import concordance
from merganser.compare.flips import flips, graded_flips, only_merged, seed_flips
from merganser.compare.inference import (
    bootstrap_p,
    detectable_mean,
    detectable_share,
    holm,
    mcnemar,
    percentile_interval,
    resamples,
    student_t,
    welch,
)
from merganser.compare.outputs import calibration, divergence
from merganser.compare.samples import Array, Run, Task, line_up
from merganser.compare.scores import Measure, Ratio, measures_of
from merganser.errors import RequestError, did_you_mean

if TYPE_CHECKING:
    from merganser.evaluate import Suite

Row = dict[str, Any]
FEW = 30
"""Samples below which a percentile interval is known to be too short."""


def compare(
    models: Mapping[str, Run | Sequence[Run]],
    *,
    reference: str | None = None,
    base: str | None = None,
    parents: Sequence[str] = (),
    resampled: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
    examples: int = 20,
    allow_missing: bool = False,
    suite: Suite | None = None,
) -> Row:
    """Compare models by their results on the same samples.

    `models`: a run or several (seeds) by the model's name; the first is the reference unless `reference`
    names another. With `parents` (and `base`) the other models are merges of them. Of every task and of all
    tasks together:

    - scores and differences from the reference: see `scores.measures_of`; several runs' scores are averaged.
      low, high: the percentile interval at `confidence` from `resampled` bootstrap resamples of the samples,
      the same for all models, seeded by `seed` and the task's name. Over tasks: mean of tasks (each resampled
      by itself), and pooled (all samples in one).
    - p: for right and wrong of two single runs McNemar's exact test (p_mid: mid-p); for other means and
      ratios the paired t test on samples' influences (of several runs, their mean); for correlations and over
      tasks twice the bootstrap's smaller tail. p_holm: Holm-adjusted over the tasks of a measure, for each
      model. detectable: the smallest difference that would be found with power 80 % at level 5 % unadjusted,
      from the observed discordance or standard error.
    - flips and inconsistency (P045), KL divergence, agreement, calibration, cases right only after the merge
      (P312, P036), spread over runs (P161), rank agreement between tasks (P098): see `flips`, `outputs`,
      `concordance`.

    With `suite`, the one that the results are of, examples have `given`: the first 300 characters of what the
    models were given.

    Raises `RequestError` for names that are not there, for samples that do not pair (see `samples.line_up`),
    and for a suite that does not have them (see `given.with_inputs`).
    """
    groups = {name: [run] if isinstance(run, Run) else list(run) for name, run in models.items()}
    names = list(groups)
    reference = names[0] if reference is None and names else reference
    _check(groups, reference, base, parents, resampled, confidence, examples)
    assert reference is not None
    runs = [run for group in groups.values() for run in group]
    lined = line_up(runs, allow_missing=allow_missing)
    columns, start = {}, 0
    for name, group in groups.items():
        columns[name] = list(range(start, start + len(group)))
        start += len(group)
    plan = _Plan(names, columns, reference, resampled, seed, confidence, examples)
    notes = list(lined.notes)
    paired = lined.tasks
    if suite is not None:
        from merganser.compare.given import with_inputs

        paired = with_inputs(paired, suite)
    rated = [(task, measures_of(task)) for task in paired]
    tasks = [_Scored(task, measures, plan, notes) for task, measures in rated if measures]
    if not tasks:
        raise RequestError("no task has a score (right, loss, nats, similarity) in all models")
    notes += [
        f"task {task.name!r} has no score that all models have and is left out"
        for task, measures in rated
        if not measures
    ]
    merged = [name for name in names if name not in parents and name != base] if parents else []
    described = [
        {"name": name, "runs": [{k: getattr(run, k) for k in _RUN} for run in group]}
        for name, group in groups.items()
    ]
    names_of_measures = list(dict.fromkeys(one.name for scored in tasks for one in scored.measures))
    document: Row = {
        "merganser": __version__,
        "reference": reference,
        "base": base,
        "parents": list(parents),
        "merged": merged,
        "resamples": resampled,
        "seed": seed,
        "confidence": confidence,
        "models": described,
        "samples": sum(len(scored.task) for scored in tasks),
        "unpaired": lined.unpaired,
        "notes": notes,
        "tasks": [scored.document() for scored in tasks],
    }
    _adjust(document["tasks"])
    document["overall"] = [
        row for name in names_of_measures if (row := _overall(name, tasks, plan)) is not None
    ]
    document["after_merge"] = _after_merge(tasks, plan, merged, parents, base)
    if merged and tasks and not document["after_merge"]:
        _why_no_merge(plan, merged, parents, base, notes)
    document["seeds"] = _seeds(tasks, plan)
    document["concordance"] = concordance(
        [scored.task.name for scored in tasks],
        names,
        [(scored.estimates[0] * scored.measures[0].better).tolist() for scored in tasks],
        [{pair: scored.test(0, *pair)["p"] for pair in plan.pairs()} for scored in tasks],
    )
    return document


_RUN = ("name", "path", "identity", "suite", "suite_digest")


def _check(
    groups: Mapping[str, list[Run]],
    reference: str | None,
    base: str | None,
    parents: Sequence[str],
    resampled: int,
    confidence: float,
    examples: int,
) -> None:
    if len(groups) < 2:
        raise RequestError("at least two models are compared")
    for name, group in groups.items():
        if not group:
            raise RequestError(f"{name} has no runs")
    for role, named in (("reference", reference), ("base", base), *(("parent", p) for p in parents)):
        if named is not None and named not in groups:
            raise RequestError(
                f"the {role} {named!r} is none of the models ({', '.join(groups)})"
                f"{did_you_mean(named, groups)}"
            )
    if base is not None and base in parents:
        raise RequestError(f"{base!r} is given as base and as parent")
    if len(set(parents)) < len(parents):
        raise RequestError("a parent is given twice")
    if parents and not [name for name in groups if name not in parents and name != base]:
        raise RequestError("all models are parents or the base; none is left that could be their merge")
    if resampled < 100:
        raise RequestError(f"{resampled} resamples are too few for an interval; take 100 or more")
    if not 0.5 <= confidence < 1:
        raise RequestError(f"confidence is {confidence}; it must be at least 0.5 and below 1")
    if examples < 0:
        raise RequestError("examples cannot be negative")


@dataclass(frozen=True)
class _Plan:
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


class _Scored:
    """A task with its measures, their draws, and what is told of it."""

    def __init__(self, task: Task, measures: list[Measure], plan: _Plan, notes: list[str]) -> None:
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
        self.estimates = [found @ average for found in self.by_run]
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
        self.draws = [found @ average for found in draws[: len(self.measures)]]
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
            "difference": _number(self.estimates[measure][b] - self.estimates[measure][a]),
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

    def _interval(self, draws: Array, count: int) -> tuple[float | None, float | None]:
        return percentile_interval(draws, self.plan.confidence) if count > 1 else (None, None)

    def document(self) -> Row:
        plan, task = self.plan, self.task
        measures = []
        for k, measure in enumerate(self.measures):
            scores = []
            for j, name in enumerate(plan.names):
                low, high = self._interval(self.draws[k][:, j], len(measure.rows))
                scores.append(
                    {"model": name, "score": _number(self.estimates[k][j]), "low": low, "high": high}
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


def _adjust(tasks: list[Row]) -> None:
    """Holm over the tasks that have a measure, one family for each model and measure."""
    families: dict[tuple[str, str], list[Row]] = {}
    for task in tasks:
        for measure in task["measures"]:
            for row in measure["differences"]:
                families.setdefault((measure["measure"], row["model"]), []).append(row)
    for rows in families.values():
        for row, adjusted in zip(rows, holm([row["p"] for row in rows]), strict=True):
            row["p_holm"] = adjusted


def _overall(name: str, tasks: Sequence[_Scored], plan: _Plan) -> Row | None:
    """A measure over the tasks that have it; None for fewer than two."""
    held = [
        (scored, k)
        for scored in tasks
        for k, measure in enumerate(scored.measures)
        if measure.name == name and len(measure.rows)
    ]
    if len(held) < 2:
        return None
    better = held[0][0].measures[held[0][1]].better
    ways = {"mean of tasks": _mean(held)}
    if all(scored.weights[k] is not None for scored, k in held):
        ways["pooled"] = _pooled(held, plan.average())
    found: Row = {"measure": name, "better": "higher" if better > 0 else "lower"}
    found["tasks"] = [scored.task.name for scored, _ in held]
    a = plan.names.index(plan.reference)
    for way, (points, draws) in ways.items():
        scores, differences = [], []
        for b, model in enumerate(plan.names):
            low, high = percentile_interval(draws[:, b], plan.confidence)
            scores.append({"model": model, "score": _number(points[b]), "low": low, "high": high})
            if b != a:
                apart = draws[:, b] - draws[:, a]
                low, high = percentile_interval(apart, plan.confidence)
                row: Row = {"model": model, "difference": _number(points[b] - points[a])}
                kept = apart[np.isfinite(apart)]
                row |= {"low": low, "high": high, "test": "bootstrap", "p": bootstrap_p(apart)}
                row["detectable"] = detectable_mean(float(kept.std(ddof=1))) if len(kept) > 1 else None
                differences.append(row)
        found[way.replace(" ", "_")] = {"scores": scores, "differences": differences}
    return found


def _mean(held: Sequence[tuple[_Scored, int]]) -> tuple[Array, Array]:
    points = np.mean([scored.estimates[k] for scored, k in held], axis=0)
    return points, np.mean([scored.draws[k] for scored, k in held], axis=0)


def _pooled(held: Sequence[tuple[_Scored, int]], average: Array) -> tuple[Array, Array]:
    parts, wholes = [], []
    for scored, k in held:
        measure = scored.measures[k]
        assert isinstance(measure, Ratio)
        wholes.append(measure.wholes.sum(axis=0) @ average)
        parts.append(scored.estimates[k] * wholes[-1])
    points = np.sum(parts, axis=0) / np.sum(wholes, axis=0)
    above: Array = np.zeros(())
    below: Array = np.zeros(())
    for scored, k in held:
        weights = scored.weights[k]
        assert weights is not None
        above = above + scored.draws[k] * weights
        below = below + weights
    return points, above / below


def _after_merge(
    tasks: Sequence[_Scored], plan: _Plan, merged: Iterable[str], parents: Sequence[str], base: str | None
) -> list[Row]:
    found = []
    for scored in tasks:
        for name in merged:
            row = only_merged(
                scored.task,
                plan.columns[name],
                {parent: plan.columns[parent] for parent in parents},
                None if base is None else plan.columns[base],
                plan.confidence,
                plan.examples,
            )
            if row is not None:
                found.append({"task": scored.task.name, "model": name, **row})
    return found


def _why_no_merge(
    plan: _Plan, merged: Sequence[str], parents: Sequence[str], base: str | None, notes: list[str]
) -> None:
    runs = {name: len(plan.columns[name]) for name in (*merged, *parents, *([base] if base else []))}
    if len(set(runs.values()) - {1}) > 1:
        said = ", ".join(f"{name}: {count}" for name, count in runs.items())
        notes.append(
            "what only the merge gets right is left out: runs are held against each other in their order, "
            f"and the numbers of runs differ ({said})"
        )


def _seeds(tasks: Sequence[_Scored], plan: _Plan) -> list[Row]:
    """Of every model with several runs, by task and measure: how far its runs lie apart (P161).

    sd: standard deviation over runs (n - 1). signal_to_noise: |mean| / sd. sampling: the standard error of
    one run's score from the choice of samples, by the bootstrap of the model's mean.
    """
    found = []
    for name in plan.names:
        columns = plan.columns[name]
        if len(columns) < 2:
            continue
        for scored in tasks:
            row: Row = {"model": name, "task": scored.task.name, "runs": len(columns), "measures": []}
            for k, measure in enumerate(scored.measures):
                values = scored.by_run[k][columns]
                sd = float(values.std(ddof=1))
                draws = scored.draws[k][:, plan.names.index(name)]
                row["measures"].append(
                    {
                        "measure": measure.name,
                        "scores": [_number(value) for value in values],
                        "mean": _number(values.mean()),
                        "sd": _number(sd),
                        "signal_to_noise": abs(float(values.mean())) / sd if sd > 0 else None,
                        "sampling": _number(np.std(draws[np.isfinite(draws)], ddof=1)),
                    }
                )
            found.append(row)
    return found


def _number(value: Any) -> float | None:
    """A float for JSON; None for what is no number (the correlation of constants)."""
    return float(value) if math.isfinite(value) else None
