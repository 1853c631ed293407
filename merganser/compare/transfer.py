"""The Transfer Score: which classifier suits unlabelled data best (P315)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from merganser.errors import RequestError

Values = np.ndarray[Any, Any]
SHARE = 0.05
DRAWS = 10
FEWEST = 20


def uniformity(weight: Values) -> float:
    """U = mean over pairs of classes of (angle between w_i and w_j - ideal angle)^2, in radians squared; 0 is best.

    weight: [classes K, d]. The ideal angle is arccos(-1/(K-1)), for K <= d + 1 (P315, equations 1 and 2; the mean, the
    second of the two forms that equation 1 gives).
    """
    classes, width = weight.shape
    if classes < 2 or classes > width + 1:
        raise RequestError(
            f"uniformity takes 2 classes or more and at most {width + 1} for features of {width}, not {classes}"
        )
    length = np.linalg.norm(weight, axis=1, keepdims=True)
    if not (length > 0).all():
        raise RequestError("uniformity: the weights of a class are all 0")
    unit = np.asarray(weight, np.float64) / length
    angles = np.arccos(np.clip(unit @ unit.T, -1.0, 1.0))
    gaps = angles[~np.eye(classes, dtype=bool)] - math.acos(-1.0 / (classes - 1))
    return float(np.mean(gaps**2))


def hopkins(features: Values, seed: int = 0, share: float = SHARE, draws: int = DRAWS) -> float:
    """The Hopkins statistic of features [n, d]: near 1/2 for evenly spread points, towards 1 for clusters.

    sum u / (sum u + sum w), over m = share n points each: u is the distance of a point drawn evenly from the box that
    holds the features to the nearest of them, w that of one of them to the nearest other. Mean over `draws` draws. As
    the authors' code has it: all features are neighbours and distances are not raised to the power d, which
    equation 3 of P315 does and which for d in the hundreds leaves 0 or 1.
    """
    x = np.asarray(features, np.float64)
    if len(x) < FEWEST:
        raise RequestError(f"the Hopkins statistic takes {FEWEST} rows or more, not {len(x)}")
    random = np.random.default_rng(seed)
    count = max(1, int(len(x) * share))
    low, high = x.min(0), x.max(0)
    found = []
    for _ in range(draws):
        even = random.uniform(low, high, (count, x.shape[1]))
        chosen = random.choice(len(x), count, replace=False)
        u = _nearest(even, x)
        w = _nearest(x[chosen], x, chosen)
        both = u.sum() + w.sum()
        found.append(float(u.sum() / both) if both > 0 else 0.0)
    return float(np.mean(found))


def mutual_information(logits: Values) -> float:
    """M = H(mean of p) - mean of H(p) in nats, p = softmax of logits [n, K]; 0 to ln K (P315, equation 4)."""
    shifted = np.asarray(logits, np.float64)
    shifted = shifted - shifted.max(1, keepdims=True)
    p = np.exp(shifted)
    p /= p.sum(1, keepdims=True)
    return _entropy(p.mean(0)) - float(np.mean([_entropy(row) for row in p]))


def transfer_score(weight: Values, features: Values, logits: Values, *, seed: int = 0) -> dict[str, float]:
    """T = -U + H + |M| / ln K of a classifier's last layer [K, d], its inputs [n, d] and logits [n, K] (P315, 5)."""
    found = {
        "uniformity": uniformity(weight),
        "hopkins": hopkins(features, seed),
        "mutual_information": mutual_information(logits),
    }
    score = -found["uniformity"] + found["hopkins"]
    score += abs(found["mutual_information"]) / math.log(len(weight))
    return {"score": score, **found}


def _entropy(p: Values) -> float:
    kept = p[p > 0]
    return float(-np.sum(kept * np.log(kept)))


def _nearest(points: Values, others: Values, own: Values | None = None) -> Values:
    """Distance to the nearest of `others`; `own` are the rows of `others` that the points are."""
    squares = (
        np.einsum("ij,ij->i", points, points)[:, None]
        - 2 * points @ others.T
        + np.einsum("ij,ij->i", others, others)
    )
    if own is not None:
        squares[np.arange(len(points)), own] = np.inf
    near = np.argmin(squares, axis=1)
    return np.asarray(np.linalg.norm(points - others[near], axis=1))
