"""How far two models are apart, and how the singular vectors of their matrices agree."""

from __future__ import annotations

from typing import Any

import numpy as np

from merganser.algebra import Weights
from merganser.algebra.labelled import in_label_order

Values = np.ndarray[Any, Any]
LARGE = 0.3
"""Singular values from this share of the largest on count as large."""
WIDEST = 4096
"""Matrices whose smaller side is longer are left out of the singular vectors."""


def between(a: Weights, b: Weights) -> dict[str, Any]:
    """L2 distance over all tensors, and by matrix how its singular vectors agree (P311).

    For A = sum s_i u_i v_i^T and B = sum s'_j u'_j v'_j^T:
    weighted = sum_ij s_i s'_j <u_i, u'_j> <v_i, v'_j> / sum_i s_i s'_i, which is <A, B> over the largest value that any
    rotation of B's singular vectors could give it (von Neumann); -1 to 1.
    large = sum over the i and j with s_i >= 0.3 s_1, s'_j >= 0.3 s'_1 of <u_i, u'_j> <v_i, v'_j>, over sqrt(n n'), n
    and n' being how many there are; -1 to 1.
    Kernels of convolutions count as matrices [out, all else]. A permutation changes singular vectors and no singular
    value, so all that alignment can change is in these numbers.
    """
    b = in_label_order(b, a)
    total, sizes = 0.0, [0.0, 0.0]
    tensors = []
    sums = [0.0, 0.0]
    for name in a:
        if a.entry(name).carried:
            continue
        first, second = (np.asarray(w.compute(name, allow_nonfinite=False), np.float64) for w in (a, b))
        total += float(np.sum((first - second) ** 2))
        sizes[0] += float(np.sum(first**2))
        sizes[1] += float(np.sum(second**2))
        if first.ndim < 2:
            continue
        row_by_row = first.reshape(len(first), -1), second.reshape(len(second), -1)
        if not 2 <= min(row_by_row[0].shape) <= WIDEST:
            continue
        row = matrices(*row_by_row)
        sums[0] += row.pop("product")
        sums[1] += row.pop("most")
        tensors.append({"tensor": name, "shape": list(first.shape), **row})
    scale = float(np.sqrt(sizes[0] + sizes[1]))
    return {
        "distance": float(np.sqrt(total)),
        "relative_distance": float(np.sqrt(total)) / scale if scale else 0.0,
        "weighted": sums[0] / sums[1] if sums[1] else None,
        "large": float(np.mean([row["large"] for row in tensors])) if tensors else None,
        "tensors": tensors,
    }


def matrices(a: Values, b: Values, large: float = LARGE) -> dict[str, float]:
    """The two agreements of one pair of matrices [m, n], with the sums that the weighted one is made of."""
    (one, s), (two, t) = _polar(a, large), _polar(b, large)
    product, most = float(np.sum(a * b)), float(np.sum(s * t))
    norm = float(np.linalg.norm(one) * np.linalg.norm(two))  # sqrt of how many there are
    return {
        "weighted": product / most if most else 0.0,
        "large": float(np.sum(one * two)) / norm if norm else 0.0,
        "product": product,
        "most": most,
    }


def _polar(matrix: Values, large: float) -> tuple[Values, Values]:
    """Sum of u_i v_i^T over the large singular values, and all of these, by the smaller Gram matrix."""
    tall = matrix.shape[0] >= matrix.shape[1]
    matrix = matrix if tall else matrix.T
    squares, right = np.linalg.eigh(matrix.T @ matrix)
    values = np.sqrt(np.maximum(squares, 0.0))[::-1]
    right = right[:, ::-1]
    kept = values >= large * values[0] if values[0] > 0 else np.zeros(len(values), bool)
    left = matrix @ right[:, kept] / np.where(values[kept] > 0, values[kept], 1.0)
    found = left @ right[:, kept].T
    return found if tall else found.T, values
