"""Orthogonal matching pursuit: vectors as sums of a few given ones."""

from __future__ import annotations

from typing import Any

import numpy as np

Matrix = np.ndarray[Any, Any]
ENOUGH = 1e-6
"""A residual of this share of the target counts as none."""
DEPENDENT = 1e-5
"""A direction left of an atom by those chosen before, as a share of its length, below which it adds nothing."""


def pursue(targets: Matrix, atoms: Matrix, most: int) -> tuple[Matrix, Matrix, Matrix]:
    """For each target a few atoms and coefficients: their sum is the target, as near as greedy choice brings it.

    targets: f32 [m, d]; atoms: f32 [n, d]. Each round takes the atom with the largest cosine to what is left and solves
    least squares over all chosen ones (by Gram-Schmidt). Gives rows int64 [m, most] (-1: none), coefficients f64 [m,
    most], and what is left as a share of each target's length. Memory: (m n + m most d + n) f32 and m most^2 f64. Time:
    2 m n d most operations in matrix products, and little else.
    """
    m, d = targets.shape
    most = min(most, d, len(atoms))
    lengths = np.linalg.norm(atoms, axis=1)
    scale = np.where(lengths > 0, 1 / np.where(lengths > 0, lengths, 1), 0).astype(np.float32)
    rows = np.full((m, most), -1, np.int64)
    tried = np.zeros((m, most), np.int64)
    basis = np.zeros((m, most, d), np.float32)
    triangle = np.zeros((m, most, most))
    shares = np.zeros((m, most))
    left = targets.astype(np.float32)
    size = np.linalg.norm(targets, axis=1)
    every = np.arange(m)
    counts = np.zeros(m, np.int64)
    for turn in range(most):
        likeness = left @ atoms.T
        np.abs(likeness, out=likeness)
        likeness *= scale
        likeness[every[:, None], tried[:, :turn]] = -1
        best = likeness.argmax(axis=1)
        tried[:, turn] = best
        going = (np.linalg.norm(left, axis=1) > ENOUGH * size) & (likeness[every, best] > 0)
        if not going.any():
            break
        held = basis[:, : int(counts.max())]
        direction = atoms[best].astype(np.float32)
        projected = np.zeros(held.shape[:2])
        # Twice, so that directions stay orthogonal in f32.
        for _ in range(2):
            along = np.matmul(held, direction[:, :, None])
            direction = direction - np.matmul(along.transpose(0, 2, 1), held)[:, 0]
            projected += along[:, :, 0]
        length = np.linalg.norm(direction, axis=1)
        good = going & (length > DEPENDENT * lengths[best])
        at, k = every[good], counts[good]
        direction[good] /= length[good, None]
        triangle[at, : held.shape[1], k] = projected[good]
        triangle[at, k, k] = length[good]
        amount = np.einsum("md,md->m", left[good], direction[good])
        shares[at, k] = amount
        left[good] -= amount[:, None] * direction[good]
        basis[at, k] = direction[good]
        rows[at, k] = best[good]
        counts[good] += 1
    coefficients = np.zeros((m, most))
    for k in range(most - 1, -1, -1):
        rest = shares[:, k] - np.einsum("mj,mj->m", triangle[:, k, k + 1 :], coefficients[:, k + 1 :])
        filled = counts > k
        coefficients[filled, k] = rest[filled] / triangle[filled, k, k]
    residual = np.linalg.norm(left, axis=1) / np.where(size > 0, size, 1)
    return rows, coefficients, residual
