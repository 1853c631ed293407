"""Width: fewer elements of an axis, by their weights' norms."""

from __future__ import annotations

from typing import Literal

import numpy as np

from merganser._facade import compute
from merganser.algebra import Weights, axes
from merganser.algebra.axes import element_norms, reading_of
from merganser.errors import RequestError
from merganser.methods.steps import step
from merganser.methods.vocabulary._shared import VOCAB, refuse_with_tokenizer, rows_moved


@step("narrow")
def narrow(
    weights: Weights,
    *,
    axis: str,
    size: int | None = None,
    share: float | None = None,
    norm: Literal["l2", "l1"] = "l2",
) -> Weights:
    """Fewer elements of an axis: those whose weights have the largest norm stay, in their old order.

    axis: neurons, heads, kv_heads ... size: how many stay, or share: which part of them (0 to 1), the same for every
    layer. norm: over all weights of all tensors that carry an element (rows that write it and columns that read it), l2
    (default) or l1; ties go to the lower index. Reads every tensor with the axis once before the plan, one at a time in
    f32. This is pruning: the function changes.
    """
    refuse_with_tokenizer(weights, axis, "narrow")
    reading = reading_of(weights)
    instances = reading.instances(axis)
    if (size is None) == (share is None):
        raise RequestError("narrow needs one of size and share")
    if share is not None and not 0 < share <= 1:
        raise RequestError(f"share must be above 0 and at most 1, not {share}")
    keep = {}
    norms = element_norms(weights, axis, norm, lambda name: compute(weights, name, allow_nonfinite=False))
    for one in instances:
        old = reading.sizes[one]
        count = size if size is not None else max(1, round(old * (share or 0)))
        if not 1 <= count <= old:
            raise RequestError(f"narrow: {one} has {old} elements, so {count} cannot stay")
        order = np.lexsort((np.arange(old), -norms[one]))
        keep[one.at] = np.sort(order[:count])
    kept = sum(float((norms[one][keep[one.at]] ** 2).sum()) for one in instances)
    whole = sum(float((norms[one] ** 2).sum()) for one in instances)
    result = axes.take(weights, axis, keep)
    if axis == VOCAB:
        result = rows_moved(weights, result, keep[()].tolist())
    return result.with_note(
        {
            "step": "narrow",
            "axis": axis,
            "elements": len(keep[instances[0].at]),
            "kept_share_of_squares": kept / (whole or 1),
        }
    )
