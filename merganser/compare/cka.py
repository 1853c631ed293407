"""Linear centred kernel alignment between layers, unbiased, in feature space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from merganser.errors import RequestError

Values = np.ndarray[Any, Any]


def hsic(x: Values, y: Values) -> float:
    """The unbiased estimator HSIC_1 (Song et al. 2012; arXiv:2010.15327, equation 3) of linear kernels of x and y.

    With K = x x^T and L = y y^T, their diagonals set to 0, and n rows:
    HSIC_1 = (tr(K L) + 1'K1 1'L1 / ((n-1)(n-2)) - 2 1'K L 1 / (n-2)) / (n (n-3)).
    Computed from x [n, p] and y [n, q] without an n by n matrix: tr(K L) = |x^T y|^2 - sum_i |x_i|^2 |y_i|^2 and
    K 1 = x (sum of x) - |x_i|^2.
    """
    n = len(x)
    if n < 4:
        raise RequestError(f"CKA takes 4 rows or more, not {n}")
    own, other = np.einsum("ij,ij->i", x, x), np.einsum("ij,ij->i", y, y)
    trace = float(np.sum((x.T @ y) ** 2) - own @ other)
    first, second = x @ x.sum(0) - own, y @ y.sum(0) - other
    middle = float(first.sum() * second.sum()) / ((n - 1) * (n - 2))
    return (trace + middle - 2.0 * float(first @ second) / (n - 2)) / (n * (n - 3))


def cka(x: Values, y: Values) -> float | None:
    """HSIC_1(x, y) / sqrt(HSIC_1(x, x) HSIC_1(y, y)) of [n, p] and [n, q]; about 0 for unrelated, 1 for equal up to a
    rotation, a shift and a scale. None where one of them does not change over the rows.
    """
    return matrix([x], [y])[0][0]


def matrix(first: Sequence[Values], second: Sequence[Values]) -> list[list[float | None]]:
    """CKA of every layer of one model with every layer of another, [layers, layers]. All rows at once, in f64."""
    xs, ys = [_ready(x) for x in first], [_ready(y) for y in second]
    own, other = [hsic(x, x) for x in xs], [hsic(y, y) for y in ys]
    found: list[list[float | None]] = []
    for x, a in zip(xs, own, strict=True):
        found.append([])
        for y, b in zip(ys, other, strict=True):
            found[-1].append(hsic(x, y) / float(np.sqrt(a * b)) if a > 1e-12 and b > 1e-12 else None)
    return found


def _ready(x: Values) -> Values:
    """Centred, of mean square 1: neither changes CKA, both keep its sums exact."""
    x = np.asarray(x, np.float64)
    x = x - x.mean(0)
    scale = float(np.sqrt(np.mean(np.sum(x**2, 1))))
    return x / scale if scale > 0 else x
