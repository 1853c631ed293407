"""Metrics of a task with their standard errors, from its results per sample."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Metrics = dict[str, float | None]
"""By name; None is a metric that these results leave undefined."""
ROUNDING = 64 * float(np.finfo(np.float32).eps)
"""Radians by which embeddings of one and the same vector differ that a model computes in f32."""
EXTRA = "metric."
"""In front of columns that another tool's metric has in its logs."""
_HEADLINES = {
    "classification": "accuracy",
    "multiple_choice": "accuracy",
    "generation": "exact_match",
    "perplexity": "bits_per_byte",
    "similarity": "spearman",
}
METRICS = {
    "classification": ("accuracy", "macro_f1", "loss"),
    "multiple_choice": ("accuracy", "accuracy_norm", "loss"),
    "generation": ("exact_match",),
    "perplexity": ("nats_per_token", "perplexity", "bits_per_byte"),
    "similarity": ("spearman", "pearson", "cosine"),
}
"""What a kind has where its data allow it."""
HIGHER_IS_BETTER = {"bits_per_byte": False, "perplexity": False, "nats_per_token": False, "loss": False}


def headline(kind: str, metrics: Mapping[str, float | None]) -> str | None:
    """The metric that stands for a task: of its kind (it may be undefined), else the first; None where it has none."""
    wanted = _HEADLINES.get(kind)
    if wanted in metrics:
        return wanted
    return next((name for name in metrics if not name.endswith("_stderr")), None)


def metrics_of(kind: str, columns: Mapping[str, Sequence[Any]]) -> Metrics:
    """Metrics by name, each with `NAME_stderr`, its standard error by the normal approximation, where it has one.

    - accuracy, accuracy_norm, exact_match, loss, cosine: means m of x over n samples; stderr sqrt(sum (x -
      m)² / (n - 1) / n), for shares sqrt(m (1 - m) / (n - 1)).
    - macro_f1: mean of the F1 of the labels that occur as answer or prediction.
    - nats_per_token = sum nats / sum tokens, bits_per_byte = sum nats / ln 2 / sum bytes: ratios r of sums of
      x and y; stderr sqrt(n / (n - 1) sum (x - r y)²) / sum y (linearised). perplexity = exp(nats_per_token),
      its stderr times perplexity.
    - pearson, spearman r (ranks of ties averaged): stderr (1 - r²) s with s = sqrt(1 / (n - 3)) and
      sqrt((1 + r² / 2) / (n - 3)), Fisher's z (Bonett and Wright, 2000, Psychometrika 65). None where all targets are
      equal, or all cosines but for rounding (`told_apart`): there is no such correlation.
    """
    found: Metrics = {}
    name = "exact_match" if kind == "generation" else "accuracy"
    _mean(found, name, columns.get("right"))
    _mean(found, "accuracy_norm", columns.get("right_norm"))
    if kind == "classification":
        found |= _macro_f1(columns)
    if kind == "perplexity":
        found |= _perplexity(columns)
    else:
        _mean(found, "loss", columns.get("loss"))
    if kind == "similarity":
        found |= _similarity(columns)
    for column in columns:
        if column.startswith(EXTRA):
            _mean(found, column.removeprefix(EXTRA), columns[column])
    return found


def _mean(found: Metrics, name: str, values: Sequence[Any] | None) -> None:
    known = np.array([float(value) for value in values or () if value is not None])
    if not len(known):
        return
    found[name] = float(known.mean())
    if len(known) > 1:
        found[f"{name}_stderr"] = float(known.std(ddof=1) / math.sqrt(len(known)))


def _macro_f1(columns: Mapping[str, Sequence[Any]]) -> Metrics:
    pairs = list(zip(columns.get("answer", ()), columns.get("prediction", ()), strict=True))
    if not pairs or any(a is None or p is None for a, p in pairs):
        return {}
    scores = []
    for label in sorted({label for pair in pairs for label in pair}):
        both = sum(a == label and p == label for a, p in pairs)
        either = sum(a == label for a, _ in pairs) + sum(p == label for _, p in pairs)
        scores.append(2 * both / either)
    return {"macro_f1": sum(scores) / len(scores)}


def _perplexity(columns: Mapping[str, Sequence[Any]]) -> Metrics:
    found: Metrics = {}
    nats = np.array(columns["nats"], float)
    if all(value is not None for value in columns["tokens"]):
        mean, error = _ratio(nats, np.array(columns["tokens"], float))
        for name, value, scale in (
            ("perplexity", math.exp(min(mean, 700.0)), None),
            ("nats_per_token", mean, 1.0),
        ):
            found[name] = value
            if error is not None:
                found[f"{name}_stderr"] = error * (value if scale is None else scale)
    if all(value is not None for value in columns["bytes"]):
        mean, error = _ratio(nats / math.log(2), np.array(columns["bytes"], float))
        found["bits_per_byte"] = mean
        if error is not None:
            found["bits_per_byte_stderr"] = error
    return found


def _ratio(x: Array, y: Array) -> tuple[float, float | None]:
    ratio = float(x.sum() / y.sum())
    if len(x) < 2:
        return ratio, None
    error = math.sqrt(len(x) / (len(x) - 1) * float(((x - ratio * y) ** 2).sum())) / float(y.sum())
    return ratio, error


def _similarity(columns: Mapping[str, Sequence[Any]]) -> Metrics:
    found: Metrics = {}
    cosines = np.array(columns["similarity"], float)
    if all(value is not None for value in columns["target"]):
        targets = np.array(columns["target"], float)
        apart = told_apart(cosines)
        for name, r in (("spearman", spearman(apart, targets)), ("pearson", pearson(apart, targets))):
            found[name] = r
            if r is not None and len(cosines) > 3:
                spread = (1 + r * r / 2 if name == "spearman" else 1.0) / (len(cosines) - 3)
                found[f"{name}_stderr"] = (1 - r * r) * math.sqrt(spread)
    _mean(found, "cosine", columns["similarity"])
    return found


def told_apart(cosines: Array) -> Array:
    """The cosines, or zeros where all their angles lie within `ROUNDING`.

    A model that gives every text one embedding gives cosines that differ in their last digits. Their order is that of
    the rounding, and a correlation with it says nothing of the model.
    """
    if not len(cosines) or np.abs(cosines).max() > 1:  # none, or another tool's similarities
        return cosines
    return np.zeros_like(cosines) if np.ptp(np.arccos(cosines)) <= ROUNDING else cosines


def spearman(x: Array, y: Array) -> float | None:
    """Spearman's rank correlation, ranks of ties averaged; None where one side does not vary."""
    return pearson(ranks(x), ranks(y))


def pearson(x: Array, y: Array) -> float | None:
    """Pearson's correlation; None where one side does not vary."""
    if not len(x) or x.min() == x.max() or y.min() == y.max():
        return None  # here, since a mean of equal numbers may differ from them in the last digit
    x, y = x - x.mean(), y - y.mean()
    size = math.sqrt(float((x * x).sum()) * float((y * y).sum()))
    return None if size == 0 else max(-1.0, min(1.0, float((x * y).sum()) / size))


def ranks(values: Array) -> Array:
    """Ranks from 1, ties averaged."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    result: Array = (ends - (counts - 1) / 2)[places]
    return result
