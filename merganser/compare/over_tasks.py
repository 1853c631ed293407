"""A measure over all tasks that have it: the mean of tasks, and all samples in one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from merganser.compare.inference import bootstrap_p, detectable_mean, percentile_interval
from merganser.compare.samples import Array
from merganser.compare.scored import Plan, Scored, number
from merganser.compare.scores import Ratio

Row = dict[str, Any]


def overall(name: str, tasks: Sequence[Scored], plan: Plan) -> Row | None:
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
            scores.append({"model": model, "score": number(points[b]), "low": low, "high": high})
            if b != a:
                apart = draws[:, b] - draws[:, a]
                low, high = percentile_interval(apart, plan.confidence)
                row: Row = {"model": model, "difference": number(points[b] - points[a])}
                kept = apart[np.isfinite(apart)]
                row |= {"low": low, "high": high, "test": "bootstrap", "p": bootstrap_p(apart)}
                row["detectable"] = detectable_mean(float(kept.std(ddof=1))) if len(kept) > 1 else None
                differences.append(row)
        found[way.replace(" ", "_")] = {"scores": scores, "differences": differences}
    return found


def _mean(held: Sequence[tuple[Scored, int]]) -> tuple[Array, Array]:
    points = np.mean([scored.estimates[k] for scored, k in held], axis=0)
    return points, np.mean([scored.draws[k] for scored, k in held], axis=0)


def _pooled(held: Sequence[tuple[Scored, int]], average: Array) -> tuple[Array, Array]:
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
