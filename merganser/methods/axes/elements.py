"""The operations on named axes, as steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from merganser.algebra import Weights, axes
from merganser.algebra.axes import reading_of
from merganser.errors import RequestError
from merganser.methods.steps import step

Numbers = Sequence[int] | Mapping[int, Sequence[int]]


def _free_of_tokenizer(weights: Weights, axis: str, name: str) -> None:
    """Refuse to move tokens under a tokenizer that does not follow."""
    companions = {str(path) for path in weights.origin.companions} if weights.origin else set()
    if axis == "vocab" and companions & {"tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json"}:
        raise RequestError(
            f"{name}: the tokenizer beside {weights.label!r} would no longer fit its vocabulary; trim_vocabulary, "
            "extend_vocabulary, pad_vocabulary, union_tokenizers and transplant_tokenizer change both"
        )


@step("take")
def take(weights: Weights, *, axis: str, keep: Sequence[int] | Mapping[int, Sequence[int]]) -> Weights:
    """Only these elements of an axis, in this order.

    axis: a name of the family's file (`merganser architecture MODEL` lists them); layers and experts are axes too.
    keep: distinct numbers from 0, as `0-63, 70`, or by layer as `{0: 0-63, 1: 8-71}`.
    """
    _free_of_tokenizer(weights, axis, "take")
    return axes.take(weights, axis, keep)


@step("drop")
def drop(weights: Weights, *, axis: str, elements: Sequence[int] | Mapping[int, Sequence[int]]) -> Weights:
    """All elements of an axis but these.

    axis and elements: as in `take`.
    """
    _free_of_tokenizer(weights, axis, "drop")
    return axes.drop(weights, axis, elements)


@step("permute")
def permute(weights: Weights, *, axis: str, order: Sequence[int] | Mapping[int, Sequence[int]]) -> Weights:
    """The elements of an axis in another order; the function stays.

    order: element k of the result is element order[k]; or by layer.
    """
    _free_of_tokenizer(weights, axis, "permute")
    return axes.permute(weights, axis, order)


@step("repeat")
def repeat(weights: Weights, *, axis: str, times: int, interleave: bool = False) -> Weights:
    """Every element of an axis `times` times: 0 1 0 1, or with interleave 0 0 1 1.

    Sums over the axis grow by `times`; `widen` keeps the function.
    """
    _free_of_tokenizer(weights, axis, "repeat")
    return axes.repeat(weights, axis, times, interleave=interleave)


@step("resize")
def resize(weights: Weights, *, axis: str, size: int) -> Weights:
    """The first `size` elements of an axis, or zeros after the last."""
    _free_of_tokenizer(weights, axis, "resize")
    return axes.resize(weights, axis, size)


@step("scale")
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
    _free_of_tokenizer(weights, axis, "concat")
    return axes.concat([weights, *models], axis)


@step("fold_norms")
def fold_norms(weights: Weights) -> Weights:
    """The weights of norms multiplied into the matrices that read them; the function stays."""
    return axes.fold_norms(weights)


@step("rotate")
def rotate(weights: Weights, *, axis: str = "residual", matrix: Path | None = None, seed: int = 0) -> Weights:
    """An orthogonal matrix on an axis (residual or value_dim); the function stays.

    matrix: a .npy file with an orthogonal f32 or f64 matrix; without it a random one by `seed` (default 0), that keeps
    the vector of ones where the family's norms subtract the mean. Norms on the stream are folded first.
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
    centred = any(
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
