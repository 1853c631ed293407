"""Arcee Fusion: of a fine-tune only the changes that stand out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from merganser.algebra import Expression, Weights, apply
from merganser.algebra.computed import by_rows, whole
from merganser.algebra.expression import Reduce
from merganser.algebra.rearranged import reshaped, spread
from merganser.algebra.weights import combine_named
from merganser.engine.kernels import divergence as kernels
from merganser.errors import RequestError
from merganser.methods.merge._gram import points
from merganser.methods.registry import Mergekit, method


@method(
    "arcee_fusion",
    paper="Arcee AI, Arcee Fusion, https://arcee.ai (no paper)",
    max_models=1,
    mergekit=Mergekit(settable=()),
)
def arcee_fusion(
    base: Weights, models: Sequence[Weights], *, spread_factor: float = 1.5, eps: float = 1e-8
) -> Weights:
    """Arcee Fusion: base + mask * (m - base), the mask taking entries of outstanding importance.

    The importance of an entry is |m - base| times the divergence KL(p || q) of its row, with p and q the
    softmax (plus eps) of the model's and the base's row along the last dimension. Taken are the entries whose
    importance reaches median + spread_factor * (upper - lower quartile) over the tensor; the k-th of n sorted
    entries is the quantile int(q (n - 1)), k from 0. spread_factor: at least 0, default 1.5. eps: above 0,
    default 1e-8.

    Quartiles are exact. One model with the base's names and shapes (`AlgebraError`), or a LoRA adapter of it;
    spread_factor < 0 or eps <= 0 is a `RequestError`. Source: Arcee AI; there is no paper.

    mergekit 0.1.5: quartiles of tensors of more than a million entries come from a random sample of a million;
    the divergence of close models loses most of its digits there (a logarithm near 1, in f32).
    """
    if not spread_factor >= 0.0 or not eps > 0.0:
        raise RequestError(
            f"arcee_fusion: spread_factor must be at least 0 and eps above 0, not {spread_factor} and {eps}"
        )

    def one(_: str, origin: Expression, model: Expression) -> Expression:
        if not origin.size:
            return model
        change = model - origin
        looked_at, taken = (abs(change) * d for d in _divergences(origin, model, eps))
        # The k-th of n ascending is the (n - k)-th largest.
        ranks = [origin.size - int(share * (origin.size - 1)) for share in (0.25, 0.5, 0.75)]
        lower, median, upper = (Reduce("kth_magnitude", (looked_at,), rank) for rank in ranks)
        threshold = median + spread_factor * (upper - lower)
        return origin + apply("where", taken < threshold, 0.0, change)

    return combine_named([base, *points(base, models)], one)


def _divergences(origin: Expression, model: Expression, eps: float) -> list[Expression]:
    """The divergence of its row for every entry, twice: the quartiles are found from one, the mask from the other.

    Two results of one function, so that the rows are gone through once.
    """
    shape = origin.shape
    width = shape[-1] if shape else 1
    rows = origin.size // width
    each = by_rows(divergence, [model, origin], eps, reduces=True)
    pair = whole(twice, [each], shapes=[(rows,), (rows,)])
    return [reshaped(spread(vector, (rows, width), 0), shape) for vector in pair]


NEAR = {np.dtype(np.float32): 2.0**-4, np.dtype(np.float64): 2.0**-10}
"""Rows whose p and q differ by no larger share go by the series, which keeps digits that the logarithm would cancel."""
SERIES = (1 / 30, -1 / 20, 1 / 12, -1 / 6, 1 / 2)
"""Of ((1 + r) log(1 + r) - r) / r**2, highest power first."""


def divergence(model: Any, origin: Any, eps: float) -> Any:
    """sum(p log(p / q)) of each row, p = softmax(model) + eps and q = softmax(origin) + eps.

    Taken as sum(p log(p / q) - (p - q)), as sum(p) = sum(q): terms of one sign, so that f32 suffices.
    """
    if model.dtype != np.float32:
        return _divergence(model, origin, eps)
    found, left = kernels.divergence(model, origin, eps, NEAR[model.dtype], SERIES)
    if left.any():
        found[left] = _divergence(model[left], origin[left], eps)
    return found


def _divergence(model: Any, origin: Any, eps: float) -> Any:
    change, q = _softmax(model), _softmax(origin)
    change -= q
    q += q.dtype.type(eps)
    near = (np.abs(change) <= q.dtype.type(NEAR[q.dtype]) * q).all(axis=1)
    found = np.empty(len(q), q.dtype)
    for rows, function in ((near, _by_series), (~near, _by_logarithm)):
        if rows.any():
            found[rows] = function(change[rows], q[rows])
    return found


def _softmax(rows: Any) -> Any:
    raised = rows - rows.max(axis=1, keepdims=True)
    np.exp(raised, out=raised)
    raised /= raised.sum(axis=1, keepdims=True)
    return raised


def _by_series(change: Any, q: Any) -> Any:
    ratio = change / q
    terms = ratio * ratio.dtype.type(SERIES[0])
    for factor in SERIES[1:-1]:
        terms += ratio.dtype.type(factor)
        terms *= ratio
    terms += ratio.dtype.type(SERIES[-1])
    terms *= ratio
    terms *= change
    return terms.sum(axis=1)


def _by_logarithm(change: Any, q: Any) -> Any:
    p = change + q
    return np.maximum((p * np.log(p / q) - change).sum(axis=1), 0)


def twice(vector: Any) -> Any:
    """The vector, and the vector."""
    return vector, vector
