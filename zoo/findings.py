"""What papers found about comparing models, beside the zoo's kept scores: nothing is run for it."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.candidates import MEAN, SUM
from zoo.figures import Figure

if TYPE_CHECKING:
    from zoo.report import Plan
    from zoo.scores import Score

Rights = dict[str, np.ndarray[Any, Any]]
"""By task, whether a model is right, a sample each."""
LOSS = {"minilm": "loss", "llama": "nats_per_token"}
ABOUT = (
    "Out of the scores above, means over tasks, intervals of 95 % over seeds. Of merges the plain average, task "
    "arithmetic and the one with the best mean on validation rows, {best}, are shown."
)


def section(plans: Sequence[Plan]) -> list[str]:
    """Its lines."""
    lines = ["## Findings of papers on comparing, at this scale", ""]
    minilm = next((plan for plan in plans if plan.family == "minilm"), None)
    rows = [] if minilm is None else over_samples(minilm)
    for plan in plans:
        rows += [*noise(plan), *orders(plan)]
    if not rows or minilm is None:
        return [*lines, "Too little is scored yet.", ""]
    lines += [ABOUT.format(best=best(minilm)), "", "| paper | what it says | here |", "|---|---|---|"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def best(plan: Plan) -> str:
    """The candidate of one model with the best mean on validation rows; task_arithmetic before there are any."""
    means = {
        one.name: max(plan.worth(score.mean()) for scores in plan.choices(one) for score in scores)
        for one in plan.candidates
        if len(one.settings) > 1 and not one.per_task and plan.chosen(one) is not None
    }
    return max(means, key=means.__getitem__, default=SUM)


def rights(score: Score) -> Rights | None:
    """What a scored model is right on."""
    from merganser.evaluate import read_results

    if score.metrics() is None:
        return None
    tasks = read_results(score.folder).tasks
    return {name: np.array(task.column("right"), bool) for name, task in tasks.items()}


def merges(plan: Plan) -> dict[str, dict[int, Rights]]:
    """By name and seed: the average, task arithmetic and the best."""
    wanted = dict.fromkeys((MEAN, SUM, best(plan)))
    found: dict[str, dict[int, Rights]] = {}
    for one in plan.candidates:
        if one.name in wanted:
            scored = {score.seed: rights(score) for score in plan.test(one)}
            found[one.name] = {seed: right for seed, right in scored.items() if right is not None}
    return {name: found[name] for name in wanted if found.get(name)}


def _mean(shares: Mapping[str, Any]) -> float:
    return float(np.mean([np.mean(value) for value in shares.values()]))


def over_samples(plan: Plan) -> list[tuple[str, str, str]]:
    """What takes results of single samples."""
    base = rights(plan.roles(plan.seeds[0])[0])
    merged = merges(plan)
    return [] if base is None else [*flips(base, merged), *after_merging(plan, base, merged)]


def flips(base: Rights, merged: Mapping[str, Mapping[int, Rights]]) -> list[tuple[str, str, str]]:
    """P045: answers lost and won when the base is replaced by a merge, beside those between seeds of one merge."""
    told = []
    for name, seeds in merged.items():
        lost = [_mean({t: base[t] & ~new[t] for t in base}) for new in seeds.values()]
        won = [_mean({t: ~base[t] & new[t] for t in base}) for new in seeds.values()]
        text = f"{name}: {Figure.of(lost).show(100, 1)} % lost, {Figure.of(won).show(100, 1)} % won"
        pairs = list(itertools.permutations(seeds.values(), 2))
        if pairs:
            floor = statistics.fmean(_mean({t: a[t] & ~b[t] for t in a}) for a, b in pairs)
            text += f" (between seeds {100 * floor:.1f} %)"
        told.append(text)
    says = "An update that is better on the whole loses answers that were right (negative flips); here from the base"
    return [("P045", says, "; ".join(told))] if told else []


def after_merging(
    plan: Plan, base: Rights, merged: Mapping[str, Mapping[int, Rights]]
) -> list[tuple[str, str, str]]:
    """P036, P312: samples that only the merge gets right, its base and all parents wrong, and the reverse."""
    parents = {seed: [rights(score) for score in plan.ensemble(seed)] for seed in plan.seeds}
    others = {
        seed: [base, *(one for one in each if one is not None)]
        for seed, each in parents.items()
        if each and None not in each
    }
    told = []
    for name, seeds in merged.items():
        pairs = [(right, others[seed]) for seed, right in seeds.items() if seed in others]
        if pairs:
            gained = [
                _mean({t: one[t] & ~np.any([o[t] for o in rest], 0) for t in one}) for one, rest in pairs
            ]
            lost = [_mean({t: ~one[t] & np.all([o[t] for o in rest], 0) for t in one}) for one, rest in pairs]
            told.append(
                f"{name}: {Figure.of(gained).show(100, 2)} % right only after merging, "
                f"{Figure.of(lost).show(100, 2)} % wrong only after it"
            )
    says = "A merge gets right what no parent does; a tiny model need not (P036)"
    return [("P036, P312", says, "; ".join(told))] if told else []


def _scored(plan: Plan, metric: str | None = None) -> dict[str, list[dict[str, float]]]:
    """By candidate, its test scores by task, a seed each; only those with all seeds."""
    found = {}
    for one in plan.candidates:
        scores = [score.metrics(metric) for score in plan.test(one)]
        if len(plan.seeds) > 1 and scores and all(each is not None for each in scores):
            found[one.name] = [each for each in scores if each is not None]
    return found


def noise(plan: Plan) -> list[tuple[str, str, str]]:
    """P161: what differs between methods over what differs between seeds, for the task's metric and the loss."""
    ratios = {}
    for metric in (None, LOSS[plan.family]):
        scored = _scored(plan, metric)
        if len(scored) < 3:
            return []
        means = {name: [statistics.fmean(each.values()) for each in seeds] for name, seeds in scored.items()}
        within = statistics.median(statistics.stdev(values) for values in means.values())
        between = statistics.stdev(statistics.fmean(values) for values in means.values())
        ratios[metric] = (within, between, means)
    within, between, means = ratios[None]
    pairs = list(itertools.combinations(means.values(), 2))
    sure = sum(Figure.of([x - y for x, y in zip(a, b, strict=True)]).sign != 0 for a, b in pairs)
    loss_within, loss_between, _ = ratios[LOSS[plan.family]]
    scale, unit = (100, "points") if plan.family == "minilm" else (1, "bits per byte")
    text = (
        f"{plan.family}, {len(means)} merges: seeds vary by {scale * within:.3g} {unit} (median standard deviation), "
        f"merges by {scale * between:.3g}: ratio {_ratio(between, within)}, of the loss "
        f"{_ratio(loss_between, loss_within)}; {sure} of {len(pairs)} paired differences leave 0 out"
    )
    says = "Many differences are within seed noise; a continuous metric has less of it"
    return [("P161", says, text)]


def _ratio(over: float, under: float) -> str:
    return f"{over / under:.1f}" if under > 0 else "-"


def orders(plan: Plan) -> list[tuple[str, str, str]]:
    """P098: whether tasks put the merges into one order, beside the order of one task with other seeds."""
    from merganser.compare.inference import kendall

    scored = _scored(plan)
    tasks = plan.zoo.over(plan.family)
    if len(scored) < 3:
        return []
    values = np.array([[[each[task] for task in tasks] for each in seeds] for seeds in scored.values()])
    between = kendall(values.mean(1).T.tolist())
    upper = between[np.triu_indices(len(tasks), 1)]
    again = [
        kendall(values[:, :, number].T.tolist())[np.triu_indices(len(plan.seeds), 1)]
        for number in range(len(tasks))
    ]
    first, second = np.unravel_index(int(np.nanargmin(between)), between.shape)
    text = (
        f"{plan.family}: Kendall's tau between two tasks {np.nanmean(upper):.2f} on average, "
        f"least {np.nanmin(upper):.2f} ({tasks[first]}, {tasks[second]}); "
        f"of one task between two seeds {np.nanmean(again):.2f}"
    )
    return [("P098", "Which method is better changes from one test set to another", text)]
