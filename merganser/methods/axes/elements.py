"""The operations on named axes, as steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from merganser.algebra import Weights, axes
from merganser.algebra.axes import reading_of
from merganser.architectures.notation import NORMS
from merganser.errors import RequestError
from merganser.methods._configs import with_differing_configs
from merganser.methods.steps import STAYS, Claim, step
from merganser.methods.vocabulary._shared import VOCAB, refuse_with_tokenizer, rows_moved, rows_of

Numbers = Sequence[int] | Mapping[int, Sequence[int]]
_OF_ZEROS = Claim(
    "stays",
    holds=lambda weights, settings: (
        not settings.get("allow_inexact") and _of_zeros(weights, settings["axis"])
    ),
    words="for neurons, heads and groups that no norm averages over",
)
"""Elements of zeros write nothing; other axes are averaged over, or chosen from."""


def _of_zeros(weights: Weights, axis: str) -> bool:
    family = reading_of(weights).family
    normed = any(spec.kind in NORMS and any(axis in dim.axes for dim in spec.dims) for spec in family.tensors)
    return axis.endswith(("neurons", "heads", "groups")) and axis not in family.inexact and not normed


def _moved(weights: Weights, changed: Weights, axis: str, order: Any) -> Weights:
    """Rows of a vocabulary take the ids that configs name with them; `order` holds their old numbers."""
    return rows_moved(weights, changed, list(order)) if axis == VOCAB and changed is not weights else changed


@step("take")
def take(weights: Weights, *, axis: str, keep: Sequence[int] | Mapping[int, Sequence[int]]) -> Weights:
    """Only these elements of an axis, in this order.

    axis: a name of the family's file (`merganser architecture MODEL` lists them); layers and experts are axes too.
    keep: distinct numbers from 0, as `0-63, 70`, or by layer as `{0: 0-63, 1: 8-71}`.
    """
    refuse_with_tokenizer(weights, axis, "take")
    return _moved(weights, axes.take(weights, axis, keep), axis, keep)


@step("drop")
def drop(weights: Weights, *, axis: str, elements: Sequence[int] | Mapping[int, Sequence[int]]) -> Weights:
    """All elements of an axis but these.

    axis and elements: as in `take`.
    """
    refuse_with_tokenizer(weights, axis, "drop")
    changed = axes.drop(weights, axis, elements)
    if axis != VOCAB:
        return changed
    rows = rows_of(reading_of(weights))
    return _moved(weights, changed, axis, np.setdiff1d(np.arange(rows), np.asarray(elements, np.int64)))


@step("permute", claim=STAYS)
def permute(weights: Weights, *, axis: str, order: Sequence[int] | Mapping[int, Sequence[int]]) -> Weights:
    """The elements of an axis in another order; the function stays.

    order: element k of the result is element order[k]; or by layer.
    """
    refuse_with_tokenizer(weights, axis, "permute")
    return _moved(weights, axes.permute(weights, axis, order), axis, order)


@step("repeat")
def repeat(weights: Weights, *, axis: str, times: int, interleave: bool = False) -> Weights:
    """Every element of an axis `times` times: 0 1 0 1, or with interleave 0 0 1 1.

    Sums over the axis grow by `times`; `widen` keeps the function.
    """
    refuse_with_tokenizer(weights, axis, "repeat")
    changed = axes.repeat(weights, axis, times, interleave=interleave)
    if axis != VOCAB or not interleave:
        return changed
    return _moved(weights, changed, axis, np.repeat(np.arange(rows_of(reading_of(weights))), times))


@step("resize")
def resize(weights: Weights, *, axis: str, size: int, allow_inexact: bool = False) -> Weights:
    """The first `size` elements of an axis, or zeros after the last.

    allow_inexact: as in `pad`.
    """
    refuse_with_tokenizer(weights, axis, "resize")
    changed = axes.resize(weights, axis, size, allow_inexact=allow_inexact)
    return _moved(weights, changed, axis, range(size)) if axis == VOCAB else changed


@step("pad", claim=_OF_ZEROS)
def pad(weights: Weights, *, axis: str, size: int, allow_inexact: bool = False) -> Weights:
    """Zeros after the last element of an axis, up to `size` elements.

    Zero neurons and heads change nothing in the function; zero channels of the residual do, where norms take a mean.
    allow_inexact: add them too where the number of elements enters the function itself, as under a norm over all heads
    (default false: refused).
    """
    refuse_with_tokenizer(weights, axis, "pad")
    return axes.pad(weights, axis, size, allow_inexact=allow_inexact)


@step("scale", claim=Claim(words="(stays with side: both where the model is linear in the elements)"))
def scale(
    weights: Weights, *, axis: str, by: Sequence[float], side: Literal["both", "read", "write"] = "both"
) -> Weights:
    """Elements of an axis times numbers, one per element.

    side: write (what produces the axis), read (the matrices that sum over it), both (times on one, divided by on the
    other; default).
    """
    return axes.scale(weights, axis, by, side=side)


@step("concat")
def concat(weights: Weights, *, axis: str, models: Sequence[Weights]) -> Weights:
    """Other models' elements of an axis after those of this one; all else is this model's.

    models: models of the same family that agree in every other axis.
    """
    refuse_with_tokenizer(weights, axis, "concat")
    return with_differing_configs(axes.concat([weights, *models], axis), "concat", [weights, *models])


@step("fold_norms", claim=STAYS)
def fold_norms(weights: Weights) -> Weights:
    """The weights of norms multiplied into the matrices that read them; the function stays."""
    return axes.fold_norms(weights)


@step("rotate", claim=STAYS)
def rotate(weights: Weights, *, axis: str = "residual", matrix: Path | None = None, seed: int = 0) -> Weights:
    """An orthogonal matrix on an axis (residual or value_dim); the function stays.

    matrix: a .npy file with an orthogonal f32 or f64 matrix Q, by which a vector x on the axis becomes Q @ x (for what
    SliceGPT and others call x @ Q, with x as a row, give the transpose); without it a random one by `seed` (default 0),
    that keeps the vector of ones where the family's norms subtract the mean. Norms on the stream are folded first.
    """
    reading = reading_of(weights)
    sizes: set[int] = {reading.sizes[one] for one in reading.instances(axis)}
    if len(sizes) != 1:
        raise RequestError(f"rotate: the sizes of {axis} differ: {sorted(sizes)}")
    size = sizes.pop()
    if matrix is not None:
        try:
            values: Any = np.load(matrix, allow_pickle=False, mmap_mode="r")
        except (ValueError, OSError) as error:
            raise RequestError(f"{matrix}: is no .npy file of numbers: {error}") from None
        return axes.rotate(weights, axis, values)
    centred = axis in reading.family.centred or any(
        spec.kind.startswith("layernorm") and any(axis in dim.axes for dim in spec.dims)
        for spec in reading.family.tensors
    )
    return axes.rotate(weights, axis, random_rotation(size, seed, keep_ones=centred))


def random_rotation(size: int, seed: int, *, keep_ones: bool = False) -> np.ndarray[Any, Any]:
    """A random orthogonal matrix [size, size], f64, uniform by Haar's measure; `keep_ones` fixes the vector of ones."""
    generator = np.random.default_rng(seed)

    def haar(n: int) -> np.ndarray[Any, Any]:
        q, r = np.linalg.qr(generator.standard_normal((n, n)))
        turned: np.ndarray[Any, Any] = q * np.sign(np.diag(r))
        return turned

    if not keep_ones:
        return haar(size)
    basis = np.eye(size)
    basis[:, 0] = 1 / np.sqrt(size)
    basis, _ = np.linalg.qr(basis)
    inner = np.eye(size)
    inner[1:, 1:] = haar(size - 1)
    turned: np.ndarray[Any, Any] = basis @ inner @ basis.T
    return turned
