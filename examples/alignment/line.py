"""The loss on the straight line between two models, before and after one is aligned to the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from merganser import Weights
from merganser.methods.align.weight_matching import align

State = Mapping[str, torch.Tensor]
STARTS = ("outside", "identity")


@dataclass(frozen=True)
class Score:
    """What a model does on held-out data: mean loss in nats, share of right answers, and its first outputs."""

    loss: float
    right: float
    outputs: torch.Tensor


@dataclass(frozen=True)
class Line:
    """L2 distance of the ends, the largest excess of the loss over the straight line between its ends, the middle."""

    distance: float
    barrier: float
    middle: Score


@dataclass(frozen=True)
class Pair:
    """Two models: their own scores, the line as they are and the lines after alignment by way of starting."""

    ends: tuple[Score, Score]
    before: Line
    after: Mapping[str, Line]
    changed: float
    """The largest difference between outputs of the second model and of itself permuted."""


def pair(
    a: Weights,
    b: Weights,
    score: Callable[[State], Score],
    points: int,
    starts: Sequence[str] = STARTS,
    **settings: Any,
) -> Pair:
    """Measure the line with `points` equal steps, ends included."""
    ends = score(state(a)), score(state(b))
    aligned = {start: align(b, to=a, start=start, **settings) for start in starts}  # type: ignore[arg-type]
    notes = {start: weights.notes[-1] for start, weights in aligned.items()}
    before = _line(a, b, ends, score, points, float(notes[starts[0]]["l2_before"]))
    after = {
        start: _line(a, weights, ends, score, points, float(notes[start]["l2_after"]))
        for start, weights in aligned.items()
    }
    permuted = score(state(aligned[starts[0]]))
    return Pair(ends, before, after, float((permuted.outputs - ends[1].outputs).abs().max()))


def _line(
    a: Weights,
    b: Weights,
    ends: tuple[Score, Score],
    score: Callable[[State], Score],
    points: int,
    distance: float,
) -> Line:
    found = {}
    for k in range(1, points - 1):
        share = k / (points - 1)
        found[share] = score(state(a * (1 - share) + b * share))
    excess = [s.loss - (1 - t) * ends[0].loss - t * ends[1].loss for t, s in found.items()]
    return Line(distance, max(0.0, *excess), found[0.5])


def state(weights: Weights) -> State:
    """All tensors in memory."""
    return {name: torch.from_numpy(weights.compute(name).copy()) for name in weights}
