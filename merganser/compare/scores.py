"""What a task's samples are scored by.

A measure's `estimate` takes counts [resamples, samples], how often each sample was drawn, and gives [resamples, runs].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from merganser.compare.samples import Array, Rows, Samples, Task
from merganser.evaluate.metrics import EXTRA, told_apart

HIGHER, LOWER = 1, -1
SHARES = ("accuracy", "accuracy, normalised", "exact match")
"""Measures that are shares of samples, told in percent."""


@dataclass(frozen=True)
class Ratio:
    """sum(parts) / sum(wholes) over samples; a mean where every whole is 1. Arrays are [kept rows, runs]."""

    name: str
    better: int
    rows: Rows
    left_out: int
    parts: Array
    wholes: Array
    binary: bool = False

    def estimate(self, counts: Array) -> Array:
        parts, wholes = self.sums(counts)
        with np.errstate(invalid="ignore", divide="ignore"):
            return parts / wholes

    def sums(self, counts: Array) -> tuple[Array, Array]:
        """Numerators and denominators [resamples, runs]; by the denominators tasks are pooled."""
        counts = _kept(counts, self.rows)
        whole = self.wholes[:, :1] if (self.wholes == self.wholes[:, :1]).all() else self.wholes
        below = counts @ whole
        return counts @ self.parts, np.broadcast_to(below, (len(counts), self.parts.shape[1]))

    def influence(self) -> Array:
        """What each sample adds to the score, first order: mean 0, [kept rows, runs] (the delta method)."""
        score = self.parts.sum(axis=0) / self.wholes.sum(axis=0)
        return np.asarray((self.parts - score * self.wholes) / self.wholes.mean(axis=0))


@dataclass(frozen=True)
class Correlation:
    """Pearson's correlation of x and y, or Spearman's: Pearson's of midranks, ranked anew in every resample."""

    name: str
    better: int
    rows: Rows
    left_out: int
    x: Array
    y: Array
    ranked: bool

    def estimate(self, counts: Array) -> Array:
        counts = _kept(counts, self.rows)
        columns = []
        for run in range(self.x.shape[1]):
            x, y = self.x[:, run], self.y[:, run]
            if self.ranked:
                columns.append(_correlation(counts, _midranks(counts, x), _midranks(counts, y)))
            else:
                x, y = x - x.mean(), y - y.mean()
                columns.append(_from_moments(counts @ np.stack([x**0, x, y, x * x, y * y, x * y], axis=1)))
        return np.stack(columns, axis=1)


Measure = Ratio | Correlation


def measures_of(task: Task) -> list[Measure]:
    """The measures that all runs of a task have, the first is its score.

    accuracy (exact match for generation): the share of samples that are right; normalised: with
    log-probabilities divided by the choices' lengths, where the results have it. spearman, pearson: correlation of
    similarity and target, NaN where a run's similarities are equal but for rounding. bits per byte: sum of nats /
    (ln 2 x sum of bytes); where bytes are missing, nats per token. loss: mean of -ln p(right answer). brier: mean over
    samples of sum over choices of (p - [choice is the answer])^2, from 0 to 2 (Brier 1950). Last the means of another
    tool's metrics (pass@1, f1), which are taken to be better the higher they are. A sample in which some run has no
    finite value is left out for all.
    """
    found: list[Measure] = []

    def add(name: str, better: int, parts: Array, wholes: Array | None = None, binary: bool = False) -> None:
        rows, left_out = _rows(parts)
        if len(rows):
            whole = np.ones_like(parts) if wholes is None else wholes
            found.append(Ratio(name, better, rows, left_out, parts[rows], whole[rows], binary))

    right = task.number("right")
    add("exact match" if task.kind == "generation" else "accuracy", HIGHER, right, binary=True)
    add("accuracy, normalised", HIGHER, task.number("right_norm"), binary=True)
    similarity = task.number("similarity")
    target = task.number("target")
    rows, left_out = _rows(similarity + target)
    if len(rows):
        cosines = np.apply_along_axis(told_apart, 0, similarity[rows])
        for name, ranked in (("spearman", True), ("pearson", False)):
            found.append(Correlation(name, HIGHER, rows, left_out, cosines, target[rows], ranked))
    nats = task.number("nats")
    for name, unit, scale in (("bits per byte", "bytes", math.log(2)), ("nats per token", "tokens", 1.0)):
        wholes = task.number(unit)
        parts = np.where(wholes > 0, nats, np.nan)
        if len(_rows(parts)[0]):
            add(name, LOWER, parts, wholes * scale)
            break
    else:
        add("loss", LOWER, task.number("loss"))
        add("brier", LOWER, np.stack([brier(one) for one in task.samples], axis=1))
    for name in task.extra:
        values = task.number(name)
        held = values[np.isfinite(values)]
        add(name.removeprefix(EXTRA), HIGHER, values, binary=bool(np.isin(held, (0, 1)).all()))
    return found


def probabilities(samples: Samples) -> Array:
    """[samples, choices], 0 beyond a sample's own choices, NaN where there are none."""
    return np.asarray(np.exp(samples.log_probabilities))


def answers(samples: Samples, texts: list[str | None]) -> NDArray[np.intp]:
    """Which choice each text is; -1 where it is none of them."""
    return np.array(
        [row.index(text) if text in row else -1 for row, text in zip(samples.choices, texts, strict=True)],
        dtype=np.intp,
    )


def brier(samples: Samples) -> Array:
    """Brier's score of each sample; NaN where the answer is none of the choices."""
    share = probabilities(samples)
    if not share.shape[1]:
        return np.full(len(samples), np.nan)
    place = answers(samples, samples.texts["answer"])
    aim = np.zeros_like(share)
    known = place >= 0
    aim[np.flatnonzero(known), place[known]] = 1.0
    return np.where(known, ((share - aim) ** 2).sum(axis=1), np.nan)


def _rows(parts: Array) -> tuple[Rows, int]:
    """Rows that are finite in every run, and how many others have a value in some run. No rows where a run has none."""
    finite = np.isfinite(parts)
    if not finite.any(axis=0).all():
        return np.zeros(0, dtype=np.intp), 0
    kept = finite.all(axis=1)
    return np.flatnonzero(kept), int((finite.any(axis=1) & ~kept).sum() + (np.isinf(parts).all(axis=1)).sum())


def _midranks(counts: Array, values: Array) -> Array:
    """Midranks [resamples, samples] within each resample: equal values share the mean of their places."""
    order = np.argsort(values, kind="stable")
    kept = values[order]
    first = np.flatnonzero(np.concatenate([[True], kept[1:] != kept[:-1]]))
    sizes = np.diff(np.append(first, len(kept)))
    groups = np.add.reduceat(counts[:, order], first, axis=1)
    ends = np.cumsum(groups, axis=1)
    middles = ends - groups + (groups + 1) / 2
    ranks = np.empty_like(counts)
    ranks[:, order] = np.repeat(middles, sizes, axis=1)
    return ranks


def _correlation(counts: Array, x: Array, y: Array) -> Array:
    """Of midranks, whose mean is (n + 1) / 2."""
    middle = (counts.sum(axis=1, keepdims=True) + 1) / 2
    x, y = x - middle, y - middle
    sums = [np.einsum("ij,ij,ij->i", counts, one, other) for one, other in ((x, x), (y, y), (x, y))]
    nothing = np.zeros(len(counts))
    return _from_moments(np.stack([counts.sum(axis=1), nothing, nothing, *sums], axis=1))


def _from_moments(sums: Array) -> Array:
    """The correlation from the sums of 1, x, y, x^2, y^2 and xy; NaN where x or y is constant."""
    n, x, y, xx, yy, xy = sums.T
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = np.sqrt(np.maximum(xx - x * x / n, 0) * np.maximum(yy - y * y / n, 0))
        return np.where(spread > 1e-12 * np.sqrt(xx * yy + 1e-300), (xy - x * y / n) / spread, np.nan)


def _kept(counts: Array, rows: Rows) -> Array:
    return counts if len(rows) == counts.shape[1] else np.asarray(counts[:, rows])
