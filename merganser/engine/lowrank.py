"""The change a LoRA adapter makes, tile by tile: the full matrix is never held.

Sums over the rank run in f32 from the first to the last, one multiplication and one addition each, so that the result
does not depend on tiles, threads or a BLAS library.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from merganser.checkpoint import AdapterDelta, StoredTensor


class Factors:
    """The two factors of a delta in memory, f32, and the tiles of their product."""

    def __init__(self, delta: AdapterDelta) -> None:
        self.left = _matrix(delta.left, delta.left_transposed)
        self.right = _matrix(delta.right, delta.right_transposed)
        self.scale = np.float32(delta.scale)
        self.columns = self.right.shape[1]

    def tile(self, start: int, count: int) -> np.ndarray[Any, Any]:
        """Elements `start` to `start + count` of the flattened product."""
        first, last = start // self.columns, -(-(start + count) // self.columns)
        left = self.left[first:last]
        product = left[:, :1] * self.right[:1]
        for k in range(1, left.shape[1]):
            product += left[:, k : k + 1] * self.right[k : k + 1]
        product *= self.scale
        skip = start - first * self.columns
        flat: np.ndarray[Any, Any] = product.reshape(-1)[skip : skip + count]
        return flat


def _matrix(tensor: StoredTensor, transposed: bool) -> np.ndarray[Any, Any]:
    matrix = tensor.numpy().astype(np.float32)
    return np.ascontiguousarray(matrix.T if transposed else matrix)
