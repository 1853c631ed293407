"""A model that returns NaN or Inf is an error, told with the row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from merganser.errors import NonFiniteError

if TYPE_CHECKING:
    import torch

    from merganser.running.model import Model


def finite(values: torch.Tensor, *, what: str, model: Model | str, rows: Sequence[int]) -> torch.Tensor:
    """`values` [rows, ...] as they are, or `NonFiniteError` naming the model and the first row that is not finite.

    Where the model itself holds NaN or Inf, the tensor is named. `rows` are the numbers of the rows in the data (from
    0; told from 1), `what` is what the values are.
    """
    good = values.isfinite().reshape(len(rows), -1).all(1)
    if bool(good.all()):
        return values
    # The first in the data: a batch is in the order of lengths.
    bad = min((~good).nonzero().flatten().tolist(), key=lambda at: rows[at])
    kind = "NaN" if bool(values[bad].isnan().any()) else "Inf"
    label = model if isinstance(model, str) else model.label
    cause = "" if isinstance(model, str) else guilty(model)
    raise NonFiniteError(
        f"{label}: {what} of row {rows[bad] + 1} hold {kind} ({int((~good).sum())} of {len(rows)} rows of "
        f"that batch are not finite){cause or REMEDY}"
    )


REMEDY = ". `merganser verify MODEL` finds damaged files, `merganser info MODEL` its tensors"


def guilty(model: Model) -> str:
    """`: its tensor ... holds NaN or Inf` by the checkpoint's name for it, empty where all that is loaded is finite."""
    for place, value in model.module.named_parameters():  # not buffers: a mask's -Inf is meant
        if not value.is_meta and place in model.names and not bool(value.isfinite().all()):
            kind = "NaN" if bool(value.isnan().any()) else "Inf"
            return f": its tensor {model.names[place]!r} holds {kind}{REMEDY}"
    return ""
