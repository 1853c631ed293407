"""Tensors made from others by moving elements or by a matrix along one dimension. Nothing here computes.

They are lazy like every other node: the engine makes them tile by tile. Where an argument is a stored tensor, elements
keep their bits; where it is a formula, the formula is evaluated for the elements that are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from merganser.algebra.expression import Apply, Expression, Leaf, Load, Round
from merganser.checkpoint import DType
from merganser.checkpoint.dtypes import F32, F64, I64
from merganser.errors import AlgebraError

Indices = np.ndarray[Any, np.dtype[np.int64]]
Matrix = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Array(Load):
    """A tensor held in memory, f32 or f64 (or i64, which is carried)."""

    values: Matrix

    def __post_init__(self) -> None:
        if self.values.dtype not in (np.float32, np.float64, np.int64):
            raise AlgebraError(
                f"an array of {self.values.dtype} cannot be among weights; make it f32, f64 or i64"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's."""
        return tuple(self.values.shape)

    @property
    def wide(self) -> bool:
        """Whether it is f64."""
        return bool(self.values.dtype == np.float64)

    @property
    def carried(self) -> bool:
        """True for integers."""
        return not self.dtype.is_float

    @property
    def dtype(self) -> DType:
        """F32, F64 or I64."""
        return {"f": F64 if self.values.dtype.itemsize == 8 else F32, "i": I64}[self.values.dtype.kind]


@dataclass(frozen=True, slots=True, eq=False)
class Taken(Load):
    """Elements of another tensor by their index in each dimension: `out[i, j] = source[rows[i], columns[j]]`.

    `indices` has an array or None (all, in order) for each dimension. An index of -1 gives zero.
    """

    source: Expression
    indices: tuple[Indices | None, ...]

    @property
    def arguments(self) -> tuple[Expression, ...]:
        """The source."""
        return (self.source,)

    @property
    def shape(self) -> tuple[int, ...]:
        """As many as are taken."""
        pairs = zip(self.source.shape, self.indices, strict=True)
        return tuple(size if index is None else len(index) for size, index in pairs)

    @property
    def wide(self) -> bool:
        """As the source's."""
        return self.source.wide

    @property
    def carried(self) -> bool:
        """As the source's."""
        return self.source.carried

    @property
    def dtype(self) -> DType:
        """The source's where it lies ready, else that of arithmetic."""
        return _dtype(self.source)


@dataclass(frozen=True, slots=True, eq=False)
class Joined(Load):
    """Tensors one after the other along a dimension."""

    parts: tuple[Expression, ...]
    dim: int

    @property
    def arguments(self) -> tuple[Expression, ...]:
        """The parts."""
        return self.parts

    @property
    def shape(self) -> tuple[int, ...]:
        """The first part's, with the sum along the dimension."""
        shape = list(self.parts[0].shape)
        shape[self.dim] = sum(part.shape[self.dim] for part in self.parts)
        return tuple(shape)

    @property
    def wide(self) -> bool:
        """Whether a part is wide."""
        return any(part.wide for part in self.parts)

    @property
    def carried(self) -> bool:
        """Whether the parts are integers or bools."""
        return self.parts[0].carried

    @property
    def dtype(self) -> DType:
        """The parts' where they agree, else that of arithmetic."""
        found = {_dtype(part) for part in self.parts}
        return found.pop() if len(found) == 1 else F64 if self.wide else F32


@dataclass(frozen=True, slots=True, eq=False)
class Spread(Load):
    """A vector repeated over a larger shape: `out[.., i, ..] = vector[i]`, i the index in dimension `dim`."""

    vector: Expression
    dimensions: tuple[int, ...]
    dim: int

    @property
    def arguments(self) -> tuple[Expression, ...]:
        """The vector."""
        return (self.vector,)

    @property
    def shape(self) -> tuple[int, ...]:
        """The larger shape."""
        return self.dimensions

    @property
    def wide(self) -> bool:
        """As the vector's."""
        return self.vector.wide

    @property
    def dtype(self) -> DType:
        """That of arithmetic."""
        return F64 if self.wide else F32


@dataclass(frozen=True, slots=True, eq=False)
class Mixed(Load):
    """Rows as sums of a few weighted rows: `out[i] = sum_j weights[i, j] * source[rows[i, j]]`, -1 for no row."""

    source: Expression
    rows: Indices
    weights: Matrix

    @property
    def arguments(self) -> tuple[Expression, ...]:
        """The source."""
        return (self.source,)

    @property
    def shape(self) -> tuple[int, ...]:
        """As many rows as `rows` has."""
        return (len(self.rows), *self.source.shape[1:])

    @property
    def dtype(self) -> DType:
        """F32."""
        return F32


@dataclass(frozen=True, slots=True, eq=False)
class Product(Load):
    """A matrix along one dimension: `out[.., i, ..] = sum_j matrix[i, j] * source[.., j, ..]`, in f32.

    Rows are multiplied in blocks of a fixed size, so the result does not depend on tiles or threads; between machines
    it depends on the BLAS library.
    """

    source: Expression
    matrix: Expression
    dim: int

    @property
    def arguments(self) -> tuple[Expression, ...]:
        """The source and the matrix."""
        return (self.source, self.matrix)

    @property
    def shape(self) -> tuple[int, ...]:
        """The source's, with the matrix's rows along the dimension."""
        shape = list(self.source.shape)
        shape[self.dim] = self.matrix.shape[0]
        return tuple(shape)

    @property
    def dtype(self) -> DType:
        """F32."""
        return F32


@dataclass(frozen=True, slots=True, eq=False)
class Reshaped(Load):
    """The same elements in the same order under another shape."""

    source: Expression
    dimensions: tuple[int, ...]

    @property
    def arguments(self) -> tuple[Expression, ...]:
        """The source."""
        return (self.source,)

    @property
    def shape(self) -> tuple[int, ...]:
        """The other shape."""
        return self.dimensions

    @property
    def wide(self) -> bool:
        """As the source's."""
        return self.source.wide

    @property
    def carried(self) -> bool:
        """As the source's."""
        return self.source.carried

    @property
    def dtype(self) -> DType:
        """The source's where it lies ready."""
        return _dtype(self.source)


def _dtype(node: Expression) -> DType:
    if isinstance(node, Load):
        if node.dtype.packed:
            what = (
                f"tensor {node.tensor.name!r} of {node.tensor.parent!r}"
                if isinstance(node, Leaf)
                else "a tensor"
            )
            raise AlgebraError(
                f"{what} is {node.dtype}, whose elements share bytes: it is carried whole, and nothing takes it apart"
            )
        return node.dtype
    return F64 if node.wide else F32


# Making them ----------------------------------------------------------------------------------------------------------


def taken(node: Expression, indices: Sequence[Indices | None]) -> Expression:
    """Elements by index, moved below elementwise arithmetic so that only what is kept is computed."""
    wanted = tuple(None if i is None else np.asarray(i, np.int64) for i in indices)
    for size, index in zip(node.shape, wanted, strict=True):
        if index is not None and len(index) and not (index.min() >= -1 and index.max() < size):
            raise AlgebraError(f"index {int(index.max())} of a dimension of {size}")
    return _taken(node, wanted, fills=any(i is not None and bool((i < 0).any()) for i in wanted), memo={})


def _taken(
    node: Expression, indices: tuple[Indices | None, ...], *, fills: bool, memo: dict[int, Expression]
) -> Expression:
    if node.is_scalar or all(index is None for index in indices):
        return node
    found = memo.get(id(node))
    if found is not None:
        return found
    result: Expression
    if isinstance(node, Apply) and not fills:
        operands = tuple(_taken(a, indices, fills=fills, memo=memo) for a in node.operands)
        shape = next(a.shape for a in operands if not a.is_scalar)
        result = Apply(node.operation, operands, shape, node.in_f64, node.scalar)
    elif isinstance(node, Round) and not fills:
        result = type(node)(node.dtype, _taken(node.argument, indices, fills=fills, memo=memo))
    elif isinstance(node, Taken):
        result = Taken(node.source, tuple(map(_composed, node.indices, indices)))
    else:
        result = Taken(node, indices)
    memo[id(node)] = result
    return result


def _composed(inner: Indices | None, outer: Indices | None) -> Indices | None:
    if inner is None or outer is None:
        return outer if inner is None else inner
    return np.where(outer < 0, -1, inner[outer])


def joined(parts: Sequence[Expression], dim: int) -> Expression:
    """Tensors one after the other along `dim`. Raises `AlgebraError` where another dimension differs."""
    first = parts[0].shape
    for part in parts[1:]:
        if len(part.shape) != len(first) or any(
            a != b for k, (a, b) in enumerate(zip(first, part.shape, strict=True)) if k != dim
        ):
            raise AlgebraError(
                f"shapes {list(first)} and {list(part.shape)} cannot be joined along dimension {dim}"
            )
    return parts[0] if len(parts) == 1 else Joined(tuple(parts), dim)


def spread(vector: Expression, shape: Sequence[int], dim: int) -> Expression:
    """A vector repeated over `shape`, its elements along dimension `dim`."""
    if vector.shape != (shape[dim],):
        raise AlgebraError(f"a vector of shape {list(vector.shape)} along dimension {dim} of {list(shape)}")
    return Spread(vector, tuple(shape), dim)


def product(source: Expression, matrix: Expression | Matrix, dim: int) -> Expression:
    """`matrix` applied along dimension `dim` of `source`."""
    node = matrix if isinstance(matrix, Expression) else Array(np.ascontiguousarray(matrix, np.float32))
    if len(node.shape) != 2 or node.shape[1] != source.shape[dim]:
        raise AlgebraError(
            f"a matrix of shape {list(node.shape)} along dimension {dim} of {list(source.shape)}"
        )
    return Product(source, node, dim)


def reshaped(node: Expression, shape: Sequence[int]) -> Expression:
    """The same elements under another shape."""
    if math.prod(shape) != node.size:
        raise AlgebraError(f"shape {list(node.shape)} cannot become {list(shape)}")
    return node if tuple(shape) == node.shape else Reshaped(node, tuple(shape))
