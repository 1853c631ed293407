"""Lazy weights as tensors in memory, for models that run without being written."""

from __future__ import annotations

from typing import Any

import numpy as np

from merganser.algebra import Weights
from merganser.engine import compute_all


def live_tensors(
    weights: Weights, *, threads: int = 0, memory: int | None = None
) -> dict[str, np.ndarray[Any, Any]]:
    """All tensors of a lazy model, computed by the engine in one plan: f32, integers as stored.

    memory: bytes that the process may hold while they are computed, the tensors themselves apart (None: 1 GiB more than
    it holds now).
    Raises `AlgebraError` where the weights are not one model, `NonFiniteError` where they hold NaN or Inf.
    """
    return compute_all(weights, threads=threads, memory=memory)
