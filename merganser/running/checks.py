"""A model that returns NaN or Inf is an error, told with the row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from merganser.errors import NonFiniteError

if TYPE_CHECKING:
    import torch


def finite(values: torch.Tensor, *, what: str, model: str, rows: Sequence[int]) -> torch.Tensor:
    """`values` [rows, ...] as they are, or `NonFiniteError` naming the model and the first row that is not finite.

    `rows` are the numbers of the rows in the data (from 0; told from 1), `what` is what the values are.
    """
    good = values.isfinite().reshape(len(rows), -1).all(1)
    if bool(good.all()):
        return values
    # The first in the data: a batch is in the order of lengths.
    bad = min((~good).nonzero().flatten().tolist(), key=lambda at: rows[at])
    kind = "NaN" if bool(values[bad].isnan().any()) else "Inf"
    raise NonFiniteError(
        f"{model}: {what} of row {rows[bad] + 1} hold {kind} ({int((~good).sum())} of {len(rows)} rows of "
        "that batch are not finite). `merganser verify MODEL` finds damaged files, `merganser info MODEL` its tensors"
    )
