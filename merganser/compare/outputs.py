"""How models' probabilities differ, and how far each can be believed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from merganser.compare.samples import Array, Samples
from merganser.compare.scores import answers, brier, probabilities

BINS = 15
BY_POINT = 50
"""Samples that a point of the drawn curve stands for at least."""


def divergence(p: Samples, q: Samples) -> tuple[Array, int, int]:
    """KL(p || q) = sum over choices of p (ln p - ln q), in nats, of every sample.

    Probabilities are over the choices alone (normalised to sum to 1). NaN where one has no choices, where the
    choices are not the same, and where q gives 0 to a choice that p does not. Also how many samples are NaN
    for the last two reasons.
    """
    a, b = p.log_probabilities, q.log_probabilities
    count = len(p)
    if not a.shape[1]:
        return np.full(count, np.nan), 0, 0
    both = np.isfinite(a).any(axis=1) & np.isfinite(b).any(axis=1)
    same = np.array([x == y for x, y in zip(p.choices, q.choices, strict=True)])
    share = np.exp(a)
    with np.errstate(invalid="ignore"):
        terms = np.where(share > 0, share * (a - b), 0.0)
    sums = np.maximum(terms.sum(axis=1), 0.0)
    endless = both & same & np.isposinf(sums)
    return np.where(both & same & ~endless, sums, np.nan), int((both & ~same).sum()), int(endless.sum())


def calibration(samples: Samples) -> dict[str, Any] | None:
    """Of one run: does it get right what it says it is sure of? None without choices or without right and wrong.

    confidence: the probability of the predicted choice (of the likeliest, where the prediction is none of the
    choices). ece = sum over bins of (samples in it / n) |accuracy - mean confidence| (Naeini et al. 2015; Guo
    et al., arXiv:1706.04599) over 15 bins of equal mass (Nixon et al., arXiv:1904.01685); samples of equal
    confidence are never parted, so there may be fewer bins. It is biased upwards: with n samples even a
    perfect model has about sqrt(bins / n) x 0.4 (a coin's spread). brier: see `scores`. overconfidence: mean
    confidence - accuracy. curve: the same in fewer bins where samples are few, to be drawn.
    """
    right, share = samples.numbers["right"], probabilities(samples)
    rows = np.flatnonzero(np.isfinite(right) & np.isfinite(share).all(axis=1))
    if not share.shape[1] or not len(rows):
        return None
    share, right = share[rows], right[rows]
    predicted = answers(samples, samples.texts["prediction"])[rows]
    predicted = np.where(predicted >= 0, predicted, share.argmax(axis=1))
    sure = share[np.arange(len(share)), predicted]
    _, place, sizes = np.unique(sure, return_inverse=True, return_counts=True)
    middle = np.cumsum(sizes) - sizes / 2

    def binned(count: int) -> list[dict[str, Any]]:
        bins = np.minimum(count - 1, (count * middle / len(sure)).astype(np.intp))[place]
        return [
            {
                "samples": int((bins == one).sum()),
                "confidence": float(sure[bins == one].mean()),
                "accuracy": float(right[bins == one].mean()),
            }
            for one in np.unique(bins)
        ]

    parts = [one["samples"] / len(sure) * abs(one["confidence"] - one["accuracy"]) for one in binned(BINS)]
    scores = brier(samples)[rows]
    return {
        "samples": len(rows),
        "ece": math.fsum(parts),
        "brier": float(np.nanmean(scores)) if np.isfinite(scores).any() else None,
        "overconfidence": float(sure.mean() - right.mean()),
        "curve": binned(min(BINS, max(2, len(sure) // BY_POINT))),
    }
