"""What a parent holds is finite, and what a model holds as a variance is none below 0, or it is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np

from merganser.checkpoint import StoredTensor
from merganser.engine.kernels.finite import all_finite
from merganser.engine.plan import Output
from merganser.errors import NonFiniteError, VarianceError

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


VARIANCE = "running_var"
"""What torch's batch norms call the buffer under whose square root they divide."""


def refuse_negative_variance(output: Output, start: int, view: memoryview) -> None:
    """Raise `VarianceError` where a computed running variance of a model, elements `start` and on, is below 0.

    Torch would take the root of it and give NaN. Means of variances are never negative, sums of differences can be.
    """
    if output.name.rpartition(".")[2] != VARIANCE or output.is_copy:
        return
    values = np.frombuffer(view, output.dtype.numpy).astype(np.float64)
    wrong = np.flatnonzero(values < 0)
    if len(wrong):
        at = int(wrong[0])
        raise VarianceError(
            f"tensor {output.name!r} would hold {values[at]:.6g} at [{start + at}]: a batch norm's variance "
            "is never below 0, and the model would give NaN. Changes that are added do not keep it positive. "
            "Nothing was sealed. Keep the base's running statistics, in a recipe with weight: "
            "[{filter: running_, value: 0}, {value: ...}], average the models (method: linear), or have them computed "
            "anew on rows of data (merganser merge --batch-norm DATA)"
        )


def read_whole(tensor: StoredTensor) -> np.ndarray[Any, Any]:
    """A float tensor in memory, in its stored dtype. Raises `NonFiniteError` where it holds NaN or Inf."""
    values = tensor.numpy()
    refuse_nonfinite(tensor, values.reshape(-1).view(np.uint8).data, 0)
    return values
