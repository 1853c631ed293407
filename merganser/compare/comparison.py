"""Models' results on the same samples, compared: the whole comparison as one JSON document."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser._version import __version__
from merganser.compare.concordance import concordance
from merganser.compare.flips import only_merged
from merganser.compare.inference import holm
from merganser.compare.over_tasks import overall
from merganser.compare.samples import Run, line_up
from merganser.compare.scored import Plan, Scored, number
from merganser.compare.scores import measures_of
from merganser.errors import RequestError, did_you_mean

if TYPE_CHECKING:
    from merganser.evaluate import Suite

Row = dict[str, Any]


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
    plan = Plan(names, columns, reference, resampled, seed, confidence, examples)
    notes = list(lined.notes)
    paired = lined.tasks
    if suite is not None:
        from merganser.compare.given import with_inputs

        paired = with_inputs(paired, suite)
    rated = [(task, measures_of(task)) for task in paired]
    tasks = [Scored(task, measures, plan, notes) for task, measures in rated if measures]
    if not tasks:
        raise RequestError("no task has a score (right, loss, nats, similarity, a metric) in all models")
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
        row for name in names_of_measures if (row := overall(name, tasks, plan)) is not None
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


def _after_merge(
    tasks: Sequence[Scored], plan: Plan, merged: Iterable[str], parents: Sequence[str], base: str | None
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
    plan: Plan, merged: Sequence[str], parents: Sequence[str], base: str | None, notes: list[str]
) -> None:
    runs = {name: len(plan.columns[name]) for name in (*merged, *parents, *([base] if base else []))}
    if len(set(runs.values()) - {1}) > 1:
        said = ", ".join(f"{name}: {count}" for name, count in runs.items())
        notes.append(
            "what only the merge gets right is left out: runs are held against each other in their order, "
            f"and the numbers of runs differ ({said})"
        )


def _seeds(tasks: Sequence[Scored], plan: Plan) -> list[Row]:
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
                        "scores": [number(value) for value in values],
                        "mean": number(values.mean()),
                        "sd": number(sd),
                        "signal_to_noise": abs(float(values.mean())) / sd if sd > 0 else None,
                        "sampling": number(np.std(draws[np.isfinite(draws)], ddof=1)),
                    }
                )
            found.append(row)
    return found
