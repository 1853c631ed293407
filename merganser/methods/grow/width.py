"""Width: more neurons, heads or residual channels, the same function."""

from __future__ import annotations

from merganser.algebra import Weights, axes
from merganser.algebra.axes import reading_of
from merganser.errors import RequestError
from merganser.methods.steps import Claim, step
from merganser.methods.vocabulary._shared import refuse_with_tokenizer


@step(
    "widen",
    paper="Chen et al. 2016, Net2Net, arXiv:1511.05641",
    claim=Claim(
        "stays", holds=lambda _, settings: not settings.get("allow_inexact"), words="without allow_inexact"
    ),
)
def widen(
    weights: Weights,
    *,
    axis: str,
    size: int | None = None,
    factor: int | None = None,
    allow_inexact: bool = False,
) -> Weights:
    """More elements of an axis, copies of those there are, with the same function (Net2WiderNet).

    axis: neurons, heads, kv_heads, groups, value_dim, residual ... size: the new number of elements, or factor: how
    many times as many. Copies share the weight with which they are read: what is there c times is divided by c. Exact
    for neurons, heads and their groups at any size (within the rounding of the dtype: a third is no number of bf16);
    for the residual at multiples of its size and where the family's file does not say otherwise (allow_inexact: do it
    all the same). A tied output head gets a matrix of its own for the
    residual. Where the config cannot say the new size, the error names the nearest legal ones.
    """
    refuse_with_tokenizer(weights, axis, "widen")
    reading = reading_of(weights)
    sizes = [reading.sizes[one] for one in reading.instances(axis)]
    if (size is None) == (factor is None):
        raise RequestError("widen needs one of size and factor")
    if factor is not None:
        if factor < 1:
            raise RequestError(f"factor must be 1 or more, not {factor}")
        size = max(sizes, default=0) * factor
    assert size is not None
    result = axes.widen(weights, axis, size, allow_inexact=allow_inexact)
    other = reading.family.together.get(axis, "")
    more = {reading.sizes[one] for one in reading.instances(other)} if other else set()
    if not more or not sizes or max(more) * size % max(sizes):
        return result
    result = axes.widen(result, other, max(more) * size // max(sizes), allow_inexact=allow_inexact)
    return result.with_note({"step": "widen", "axis": axis, "widened_with_it": other})
