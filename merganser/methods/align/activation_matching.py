"""Git Re-Basin's activation matching: units are brought together by what they do on the same inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from merganser.algebra import Weights
from merganser.algebra.labelled import in_label_order
from merganser.architectures import Axis, Reading
from merganser.methods.align._descent import Block, Factor, Matching, Values, assigned, match
from merganser.methods.align._paired import Moments, as_matrix, factors
from merganser.methods.align.weight_matching import _Models, _moved, _permuted, _read
from merganser.methods.steps import STAYS, step

By = Literal["correlation", "products"]
Part = tuple[Factor, ...]
Piece = tuple[slice, Part]


@step("align_activations", paper="arXiv:2209.04836 (Git Re-Basin, 3.1); P063; P311", claim=STAYS)
def align_activations(
    weights: Weights,
    *,
    to: Weights,
    statistics: Weights,
    axes: Sequence[str] | None = None,
    by: By = "correlation",
    family: Path | None = None,
    inferred: bool = False,
) -> Weights:
    """Align to another model by activations: permute units so that they do the same on the same inputs.

    For each axis a linear assignment maximises the sum over pairs of C[i, j], A being `to`. C sums over the layers that
    read the axis the correlation of A's unit i with B's unit j, both taken where they enter the layer (after the
    nonlinearity or the norm). An axis that no layer reads (the elements of queries and keys) is taken where it leaves
    the layers that write it. Axes inside others (the elements of a head) are matched anew for every pair of elements of
    the outer one, as in `align`. The function stays. Unlike weights, activations do not depend on the order of other
    axes: there is one solution and no rounds.

    to: a model of the same family and sizes. statistics: what `merganser observe-pair TO MODEL DATA` wrote, for these
    two models in this order. axes: names (default: all that are free and were observed). by: "correlation" (default;
    means and scales taken out) or "products", the uncentred inner products of the paper (3.1), whose assignment is the
    one with the smallest sum of squared distances. family, inferred: as in `align`.

    Raises `RequestError` for statistics of other models, `AlgebraError` for models of other families or sizes. The
    report has by axis the share of elements that moved, and the axes without statistics, which stay. Papers:
    arXiv:2209.04836, 3.1; P063 uses it as its first half.
    """
    moments = Moments(statistics, to, weights, "align_activations")
    weights, to = _read(weights, to, family, inferred)
    to = in_label_order(to, weights)
    models = _Models(to, weights)
    found, without = solve(models, moments, models.free(axes), by)
    result = _permuted(weights, found, models.copied)
    return result.with_note(
        {
            "step": "align_activations",
            "to": to.label,
            "by": by,
            "axes": _moved(found),
            "without_statistics": sorted(map(str, without)),
        }
    )


def solve(models: _Models, moments: Moments, free: Sequence[Axis], by: By) -> tuple[Matching, list[Axis]]:
    """The best order of B's elements for every axis that was observed, and the axes that were not."""
    pieces = list(_pieces(models, moments, free))
    nested = _nested(pieces, free)
    blocks: list[Block] = []
    products: dict[Axis, Values] = {}
    for part, joint in pieces:
        axis = next(factor for factor in part if factor in free)
        assert isinstance(axis, Axis)
        if axis in nested:
            blocks.append(_block(part, joint, models, by))
        else:
            found = _products(part, part.index(axis), joint, models, by)
            products[axis] = products[axis] + found if axis in products else found
    orders = {axis: assigned(products[axis]) for axis in products}
    if nested:
        orders |= match(blocks, models.sizes, nested, seed=0, rounds=20).orders
    return Matching(orders, 1, True), [axis for axis in free if axis not in orders]


def _nested(pieces: Sequence[tuple[Part, Values]], free: Sequence[Axis]) -> list[Axis]:
    """Axes that share a dimension with another one of them, and with that one's others."""
    inside = [{factor for factor in part if factor in free} for part, _ in pieces]
    return [axis for axis in free if any(axis in one and len(one) > 1 for one in inside)]


def _pieces(models: _Models, moments: Moments, free: Sequence[Axis]) -> Iterator[tuple[Part, Values]]:
    """The products of axes that layers read (or only write), with the joint moments of their elements."""
    a, b = models.readings
    read: set[Factor] = set()
    for key in models.shared:
        read |= {factor for _, part in side(a, models.names[0][key], "reads") for factor in part}
    seen: set[tuple[str, str, int]] = set()
    for key in models.shared:
        name, theirs = models.names[0][key], models.names[1][key]
        for role, axes in (("reads", set(free)), ("writes", set(free) - read)):
            joint: Values | None = None
            for k, (cut, part) in enumerate(side(a, name, role)):
                place = (moments.own(name), name if role == "writes" else role, k)
                if not axes.intersection(part) or place in seen:  # what several layers take in counts once
                    continue
                if joint is None:
                    joint = moments.joint(name, (lengths(a, name, "reads"), lengths(b, theirs, "reads")))
                    if joint is None:
                        break
                    if role == "writes":
                        joint = _given(joint, models, name, theirs)
                seen.add(place)
                size = lengths(a, name, role)
                rows = np.arange(cut.start, cut.stop)
                rows = np.concatenate([rows, rows + size, [2 * size]])
                yield part, joint[np.ix_(rows, rows)]


def _given(joint: Values, models: _Models, name: str, theirs: str) -> Values:
    """The joint moments of what a layer gives, from those of what it takes in."""
    parts = []
    for weights, reading, own in zip((models.a, models.b), models.readings, (name, theirs), strict=True):
        matrix = as_matrix(np.asarray(weights.compute(own, allow_nonfinite=False), np.float64), reading, own)
        bias = own.removesuffix("weight") + "bias"
        added = (
            np.asarray(weights.compute(bias, allow_nonfinite=False), np.float64)
            if bias in weights
            else np.zeros(len(matrix))
        )
        parts.append((matrix, added))
    (first, one), (second, two) = parts
    whole = np.zeros((len(first) + len(second) + 1, len(joint)))
    whole[: len(first), : first.shape[1]] = first
    whole[len(first) : -1, first.shape[1] : -1] = second
    whole[:, -1] = [*one, *two, 1.0]
    return whole @ joint @ whole.T


def _block(part: Part, joint: Values, models: _Models, by: By) -> Block:
    """Elements of both models as rows of numbers whose products are the moments."""
    shape = [f if isinstance(f, int) else models.sizes[f] for f in part]
    first, second, _ = factors(joint, len(joint) // 2, by == "correlation")
    if by == "correlation":
        first, second = (_unit(rows, np.linalg.norm(rows, axis=1)) for rows in (first, second))
    x, y = (rows.reshape(*shape, -1) for rows in (first, second))
    return Block((part, (x.shape[-1],)), lambda: x, lambda _: y)


def _products(part: Part, at: int, joint: Values, models: _Models, by: By) -> Values:
    """`out[i, j]`: A's element i times B's element j of one axis, summed over the other factors."""
    shape = [f if isinstance(f, int) else models.sizes[f] for f in part]
    cross = similarities(joint, len(joint) // 2, by)
    before, size, after = int(np.prod(shape[:at])), shape[at], int(np.prod(shape[at + 1 :]))
    grid = cross.reshape(before, size, after, before, size, after)
    return np.asarray(np.einsum("aibajb->ij", grid))


def similarities(joint: Values, size: int, by: str) -> Values:
    """[in_A, in_B] out of joint moments, A having `size` elements: correlations, or the products as they are."""
    cross = joint[:size, size:-1]
    if by != "correlation":
        return cross
    mean = joint[-1, :-1]
    spread = np.sqrt(np.maximum(np.diag(joint)[:-1] - mean**2, 0.0))
    moved = cross - np.outer(mean[:size], mean[size:])
    return _unit(_unit(moved, spread[:size]).T, spread[size:]).T


def _unit(rows: Values, length: Values) -> Values:
    """Rows divided by their lengths; those of units that never change are 0."""
    floor = 1e-6 * float(length.max(initial=0.0))
    kept = length > floor
    return np.where(kept[:, None], rows / np.where(kept, length, 1.0)[:, None], 0.0)


def side(reading: Reading, name: str, role: str) -> list[Piece]:
    """The pieces of the dimension that a linear tensor reads or writes: where each lies, and its factors."""
    spec = reading.tensors[name].spec
    dim = spec.reads if role == "reads" else spec.writes
    if spec.reads is None or spec.writes is None or dim is None or len(spec.dims) != 2:
        return []
    found, at = [], 0
    for part in reading.parts(name)[dim]:
        length = reading.length(part)
        found.append((slice(at, at + length), part))
        at += length
    return found


def lengths(reading: Reading, name: str, role: str) -> int:
    """The size of that dimension."""
    return sum(reading.length(part) for _, part in side(reading, name, role))
