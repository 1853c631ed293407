"""The area under the ROC curve, and its bootstrap over groups of rows that are alike."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def auc(labels: Array, scores: Array) -> float:
    """(R - P (P + 1) / 2) / (P N): P positives, N negatives, R the sum of the positives' ranks among all.

    Equal scores share the mean of their ranks, so that a tie counts as half (Mann and Whitney 1947).
    """
    positives, negatives = _both(labels, scores)
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    over = ranks[labels].sum() - positives * (positives + 1) / 2
    return float(over / (positives * negatives))


def resample(groups: int, draws: int, seed: int) -> Array:
    """How often each group comes, [draws, groups]: as many are drawn as there are, with replacement."""
    return np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), draws)


def resampled(labels: Array, scores: Array, groups: Array, counts: Array) -> Array:
    """The AUC in each draw, [draws]; NaN where a draw lacks one of the classes.

    `groups` numbers each row's group. A draw holds all rows of a group as often as `counts` says, so its AUC is
    c^T W c / (c^T p c^T n), with W[g, h] the pairs of a positive of g and a negative of h that are in order.
    """
    _both(labels, scores)
    member = np.eye(counts.shape[1])[groups]
    positive, negative = member[labels], member[~labels]
    above, below = scores[labels][:, None], scores[~labels][None]
    order = (above > below) + 0.5 * (above == below)
    pairs = positive.T @ order @ negative
    with np.errstate(invalid="ignore"):
        whole = (counts @ positive.sum(0)) * (counts @ negative.sum(0))
        return ((counts @ pairs) * counts).sum(1) / whole


def _both(labels: Array, scores: Array) -> tuple[int, int]:
    positives = int(labels.sum())
    if labels.dtype != bool or not 0 < positives < len(labels) or not np.isfinite(scores).all():
        raise ValueError("an AUC takes rows of two classes, labelled False and True, and finite scores")
    return positives, len(labels) - positives
