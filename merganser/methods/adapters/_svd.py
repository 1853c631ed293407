"""The leading part of a singular value decomposition, of a matrix or of a product of factors that is never formed.

Functions on NumPy arrays for nodes of whole tensors: pure, and with one BLAS thread the same bits every time on one
machine. `leading` takes block Krylov iteration (Musco and Musco, 2015; 8 more vectors than asked for, a fixed start)
and stops when a step adds less than 1e-5 of the kept energy; where that does not come about in STEPS steps, or where
most of the spectrum is wanted, the eigenvectors of the smaller Gram matrix in f64. Energy is the sum of squared
singular values.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Matrix = np.ndarray[Any, Any]
STEPS = 24
TOLERANCE = 1e-5
_EXTRA = 8
_CHUNK = 512


def leading(matrix: Matrix, rank: int) -> tuple[Matrix, Matrix, Matrix]:
    """(left [m, rank], singular values [rank] in f64, right [rank, n]) of largest energy."""
    if matrix.shape[0] > matrix.shape[1]:
        left, values, right = leading(matrix.T, rank)
        return right.T, values, left.T
    total = energy_of(matrix)
    if not np.isfinite(total):
        m, n = matrix.shape
        return np.full((m, rank), np.nan), np.full(rank, np.nan), np.full((rank, n), np.nan)
    found = _by_krylov(matrix, rank, total) if krylov_fits(matrix.shape, rank) else None
    return found or _by_gram(matrix, rank)


def krylov_fits(shape: tuple[int, ...], rank: int) -> bool:
    """Whether a few steps of the iteration are much smaller than the matrix."""
    return (rank + _EXTRA) * 6 <= min(shape)


def energy_of(matrix: Matrix) -> float:
    """The sum of squares, in f64."""
    rows = range(0, len(matrix), _CHUNK)
    return float(sum(np.square(matrix[row : row + _CHUNK], dtype=np.float64).sum() for row in rows))


def _by_krylov(matrix: Matrix, rank: int, total: float) -> tuple[Matrix, Matrix, Matrix] | None:
    """Blocks Q, D D'Q, (D D')^2 Q ... made orthonormal; singular vectors of D within their span."""
    width, most = rank + _EXTRA, min(STEPS, len(matrix) // (rank + _EXTRA) - 1)
    start = np.random.default_rng(0).standard_normal((matrix.shape[1], width)).astype(matrix.dtype)
    block = np.linalg.qr(matrix @ start)[0]
    basis, images = block, matrix.T @ block
    kept = -1.0
    for step in range(most + 1):
        wide = images.astype(np.float64)
        values, vectors = np.linalg.eigh(wide.T @ wide)
        now = float(values[-rank:].sum())
        if now - kept <= TOLERANCE * now or total - now <= TOLERANCE * total:
            turn = vectors[:, ::-1][:, :rank]
            return _scaled(basis @ turn.astype(basis.dtype), values[::-1][:rank], images, turn)
        kept = now
        if step == most:
            break
        block = matrix @ images[:, -width:]
        for _ in range(2):
            block = np.linalg.qr(block - basis @ (basis.T @ block))[0]
        if float(np.abs(basis.T @ block).max()) > 1e-4:
            return None
        basis = np.hstack([basis, block])
        images = np.hstack([images, matrix.T @ block])
    return None


def _scaled(left: Matrix, squares: Matrix, images: Matrix, turn: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    values = np.sqrt(np.maximum(squares, 0.0))
    right = (images @ turn.astype(images.dtype)).T
    return left, values, _divided(right, values)


def _by_gram(matrix: Matrix, rank: int) -> tuple[Matrix, Matrix, Matrix]:
    squares, vectors = np.linalg.eigh(gram(matrix))
    left = vectors[:, ::-1][:, :rank].astype(matrix.dtype)
    values = np.sqrt(np.maximum(squares[::-1][:rank], 0.0))
    return left, values, _divided(left.T @ matrix, values)


def gram(matrix: Matrix) -> Matrix:
    """`matrix @ matrix.T` in f64, or the other way round where that is smaller."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    found = np.zeros((len(wide), len(wide)))
    for at in range(0, wide.shape[1], _CHUNK):
        part = wide[:, at : at + _CHUNK].astype(np.float64)
        found += part @ part.T
    return found


def _divided(rows: Matrix, values: Matrix) -> Matrix:
    """Rows over singular values; rows of values that are rounding errors become 0."""
    small = values <= (values[0] if len(values) else 0.0) * 1e-7
    inverse = np.where(small, 0.0, 1.0 / np.where(small, 1.0, values))
    divided: Matrix = rows * inverse[:, None].astype(rows.dtype)
    return divided


def balanced(left: Matrix, values: Matrix, right: Matrix) -> tuple[Matrix, Matrix]:
    """(A, B) with `B @ A = left @ diag(values) @ right`, the root of each value on either side.

    The largest entry of each row of A is positive, so that signs do not depend on the path.
    """
    if not right.shape[1]:
        return right, left
    largest = np.take_along_axis(right, np.abs(right).argmax(axis=1)[:, None], axis=1)[:, 0]
    root = np.sqrt(values) * np.where(largest < 0, -1.0, 1.0)
    return root[:, None] * right, left * root[None, :]


def least_rank(squares: Matrix, energy: float) -> int:
    """How many of the squared singular values (largest first) hold the share `energy` of their sum."""
    total = float(squares.sum())
    if not total > 0:
        return 0
    reached = np.cumsum(squares) >= (energy - 1e-12) * total
    return int(np.argmax(reached)) + 1 if reached.any() else len(squares)


def product_svd(lefts: list[Matrix], rights: list[Matrix]) -> tuple[Matrix, Matrix, Matrix]:
    """The decomposition of `sum(left_i @ right_i)` by QR of the stacked factors, in f64; all values they span."""
    left = np.hstack([part.astype(np.float64) for part in lefts])
    right = np.vstack([part.astype(np.float64) for part in rights])
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        span = min(*left.shape, right.shape[1])
        return (
            np.full((len(left), span), np.nan),
            np.full(span, np.nan),
            np.full((span, right.shape[1]), np.nan),
        )
    q, r = np.linalg.qr(left)
    p, s = np.linalg.qr(right.T)
    inner, values, outer = np.linalg.svd(r @ s.T, full_matrices=False)
    return q @ inner, values, outer @ p.T


def workspace(shape: tuple[int, ...], rank: int) -> int:
    """Bytes that `leading` needs beside its matrix, f32."""
    small, large = min(shape), max(shape)
    squares = small * small * 8 * 5 + small * _CHUNK * 16
    if not krylov_fits(shape, rank):
        return squares
    columns = (STEPS + 1) * (rank + _EXTRA)
    return max(squares, (small + large) * columns * 24 + columns * columns * 32)


def gram_workspace(shape: tuple[int, ...]) -> int:
    """Bytes that the spectrum of a matrix needs beside it."""
    small = min(shape)
    return small * small * 8 * 4 + small * _CHUNK * 16


def product_workspace(outputs: int, inputs: int, stacked: int) -> int:
    """Bytes that `product_svd` of factors of `stacked` ranks in all needs beside them."""
    return (outputs + inputs) * stacked * 8 * 5 + stacked * stacked * 8 * 8
