"""Do tasks rank the models alike? P098's question, over tasks instead of compositional splits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from merganser.compare.inference import holm, kendall
from merganser.evaluate.metrics import ranks

LEVEL = 0.05


def concordance(
    tasks: Sequence[str],
    models: Sequence[str],
    scores: Sequence[Sequence[float]],
    tests: Sequence[Mapping[tuple[int, int], float | None]],
) -> dict[str, Any] | None:
    """Kendall's tau-b between each two tasks' orders of the models, and pairs of models whose order turns around.

    `scores` [task][model], more is better; `tests` [task] the p value of each pair of models, Holm-adjusted
    here over the tasks of a pair. reversals: how often a model is better than another on one task and worse on
    another; significant: how many of these are so on both tasks (adjusted p < 0.05): then no single ranking is
    right, and a mean over tasks hides it. turned: the significant ones by pair of models, with their p values.
    ranks: 1 is best, equal scores share the mean of their places, scores that are no number come last. None for
    a single task. With two models tau
    can only be 1, -1 or nothing.
    """
    if len(tasks) < 2:
        return None
    tau = kendall(scores)
    pairs = [
        {"a": tasks[i], "b": tasks[j], "tau": None if math.isnan(tau[i, j]) else float(tau[i, j])}
        for i, j in itertools.combinations(range(len(tasks)), 2)
    ]
    known = [
        float(tau[i, j]) for i, j in itertools.combinations(range(len(tasks)), 2) if tau[i, j] == tau[i, j]
    ]
    reversals, significant, turned = 0, 0, []
    for a, b in itertools.combinations(range(len(models)), 2):
        adjusted = holm([test[a, b] for test in tests])
        better = [k for k, row in enumerate(scores) if row[a] > row[b]]
        worse = [k for k, row in enumerate(scores) if row[a] < row[b]]
        reversals += len(better) * len(worse)
        up, down = ([k for k in side if _sure(adjusted[k])] for side in (better, worse))
        significant += len(up) * len(down)
        if up and down:
            turned.append(
                {
                    "a": models[a],
                    "b": models[b],
                    "better_on": [tasks[k] for k in up],
                    "worse_on": [tasks[k] for k in down],
                    "p": {tasks[k]: adjusted[k] for k in (*up, *down)},
                }
            )
    return {
        "tau": pairs,
        "mean_tau": math.fsum(known) / len(known) if known else None,
        "ranks": [
            {"task": task, "ranks": dict(zip(models, _places(row), strict=True))}
            for task, row in zip(tasks, scores, strict=True)
        ],
        "reversals": reversals,
        "significant": significant,
        "turned": turned,
    }


def _sure(p: float | None) -> bool:
    return p is not None and p < LEVEL


def _places(scores: Sequence[float]) -> list[float]:
    found: list[float] = ranks(-np.asarray(scores, np.float64)).tolist()
    return found
