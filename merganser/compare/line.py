"""The straight line between two models: its losses, and the barrier in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser.algebra import Weights
from merganser.algebra.labelled import in_label_order
from merganser.errors import AlgebraError, RequestError
from merganser.running import live_tensors

if TYPE_CHECKING:
    from merganser.evaluate import Task
    from merganser.running import Model

Values = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Score:
    """Mean loss over samples (of perplexity over tokens), in nats; share of right answers where there are any."""

    loss: float
    right: float | None


def score(model: Model, task: Task) -> Score:
    """One task's score. Raises `RequestError` for tasks that have no loss."""
    found = task.prepare(model).run(lambda _: None)
    if "nats" in found:
        return Score(float(np.sum(found["nats"]) / np.sum(found["tokens"])), None)
    losses = [loss for loss in found.get("loss", []) if loss is not None]
    if not losses:
        raise RequestError(f"task {task.name!r} ({task.kind}) has no loss, so there is no barrier in it")
    right = [value for value in found.get("right", []) if value is not None]
    return Score(float(np.mean(losses)), float(np.mean(right)) if right else None)


def barrier(shares: Sequence[float], losses: Sequence[float]) -> tuple[float, float]:
    """The largest excess over the straight line between the first and the last loss, at least 0, and where it is.

    B = max over t of L((1-t) a + t b) - ((1-t) L(a) + t L(b)), over the points given (arXiv:1912.05671, with the line
    between the losses as in arXiv:2209.04836).
    """
    excess = [loss - (1 - t) * losses[0] - t * losses[-1] for t, loss in zip(shares, losses, strict=True)]
    best = int(np.argmax(excess))
    return max(0.0, excess[best]), float(shares[best]) if excess[best] > 0 else 0.0


def line(
    a: Weights,
    b: Weights,
    model: Model,
    tasks: Sequence[Task],
    points: int = 11,
    ends: tuple[Mapping[str, Score], Mapping[str, Score]] | None = None,
    done: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Score (1-t) A + t B at `points` equal steps from 0 to 1, one row a task.

    The points are computed by the engine in memory, put into `model` (which is changed) and run; nothing is written.
    `ends` are the scores of A and B where they are known. Raises `AlgebraError` where the two have other tensors.
    """
    if points < 3:
        raise RequestError(f"a line takes 3 points or more, not {points}")
    check(a, b)
    b = in_label_order(b, a)
    shares = [k / (points - 1) for k in range(points)]
    found: dict[str, list[Score]] = {task.name: [] for task in tasks}
    for k, share in enumerate(shares):
        known = None if ends is None else ends[0] if k == 0 else ends[1] if k == points - 1 else None
        if known is None:
            model.fill(live_tensors(a if k == 0 else b if k == points - 1 else a * (1 - share) + b * share))
        for task in tasks:
            found[task.name].append(known[task.name] if known is not None else score(model, task))
        done()
    rows = []
    for task in tasks:
        scores = found[task.name]
        losses = [one.loss for one in scores]
        height, at = barrier(shares, losses)
        right = [one.right for one in scores]
        drop = None
        if all(value is not None for value in right):
            drop, _ = barrier(shares, [-float(value) for value in right if value is not None])
        rows.append(
            {
                "task": task.name,
                "kind": task.kind,
                "shares": shares,
                "losses": losses,
                "right": right if drop is not None else None,
                "barrier": height,
                "barrier_at": at,
                "right_lost": drop,
            }
        )
    return rows


def check(a: Weights, b: Weights) -> None:
    """Raise `AlgebraError` unless there is a line between the two: the same float tensors with the same shapes."""
    names = {name for name in a if not a.entry(name).carried}
    other = {name for name in b if not b.entry(name).carried}
    if odd := sorted(names ^ other):
        holder = a if odd[0] in names else b
        raise AlgebraError(
            f"no line between {a.label!r} and {b.label!r}: {odd[0]!r} is only in {holder.label!r}"
            + (f", and {len(odd) - 1} more tensors are in one only" if len(odd) > 1 else "")
        )
    for name in sorted(names):
        if a[name].shape != b[name].shape:
            raise AlgebraError(
                f"no line between {a.label!r} and {b.label!r}: {name!r} is {list(a[name].shape)} in one and "
                f"{list(b[name].shape)} in the other"
            )
