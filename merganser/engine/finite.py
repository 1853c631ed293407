"""What a parent holds is finite, or it is refused by the names of tensor and parent."""

from __future__ import annotations

from typing import Any

import numpy as np

from merganser.checkpoint import StoredTensor
from merganser.engine.kernels.finite import all_finite
from merganser.errors import NonFiniteError

REMEDY = "Mend or replace that file; where a checkpoint is written, --allow-nonfinite lets NaN and Inf pass"


def refuse_nonfinite(tensor: StoredTensor, view: memoryview, start: int) -> None:
    """Raise `NonFiniteError` where the bytes in `view`, elements `start` and on of a float tensor, hold NaN or Inf."""
    if all_finite(view, tensor.dtype.name):
        return
    values = np.frombuffer(view, tensor.dtype.numpy).astype(np.float64)
    wrong = np.flatnonzero(~np.isfinite(values))
    at = int(wrong[0])
    place = [int(k) for k in np.unravel_index(start + at, tensor.shape)] if tensor.shape else []
    kind = "NaN" if np.isnan(values[at]) else "Inf"
    raise NonFiniteError(
        f"tensor {tensor.name!r} of parent {tensor.parent!r} holds {kind} at {place} "
        f"({len(wrong)} of {len(values)} elements of this stretch are not finite). "
        f"What is made of it is not right, even where it does not show. Nothing was sealed. {REMEDY}"
    )


def read_whole(tensor: StoredTensor) -> np.ndarray[Any, Any]:
    """A float tensor in memory, in its stored dtype. Raises `NonFiniteError` where it holds NaN or Inf."""
    values = tensor.numpy()
    refuse_nonfinite(tensor, values.reshape(-1).view(np.uint8).data, 0)
    return values
