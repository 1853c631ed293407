"""The change a LoRA adapter makes, tile by tile: the full matrix is never held.

Sums over the rank run in a fixed order, so that the result does not depend on tiles, threads or a BLAS library.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from merganser.checkpoint import AdapterDelta, StoredTensor
from merganser.engine.finite import read_whole
from merganser.engine.kernels.product import product


class Factors:
    """The two factors of a delta in memory, f32, and the tiles of their product."""

    def __init__(self, delta: AdapterDelta, allow_nonfinite: bool = False) -> None:
        """Raises `NonFiniteError` where a factor holds NaN or Inf, unless they are allowed."""
        self.left = _matrix(delta.left, delta.left_transposed, allow_nonfinite)
        self.right = _matrix(delta.right, delta.right_transposed, allow_nonfinite)
        self.scale = delta.scale

    def fill(self, start: int, out: np.ndarray[Any, Any]) -> None:
        """Elements `start` and on of the flattened product, as many as `out` has."""
        product(self.left, self.right, self.scale, start, out)


def _matrix(tensor: StoredTensor, transposed: bool, allow_nonfinite: bool) -> np.ndarray[Any, Any]:
    stored = tensor.numpy() if allow_nonfinite else read_whole(tensor)
    matrix = stored.astype(np.float32)
    return np.ascontiguousarray(matrix.T if transposed else matrix)
