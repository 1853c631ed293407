"""What a formula over single elements cannot say: numbers from several numbers, rows from rows, tensors from tensors.

The functions held here are plain NumPy functions of a module, pure and deterministic; a node is known by the function's
name, its constants and its arguments. The engine calls them while it streams: `Derived` once per tensor, `ByRows` on
blocks of rows, `Whole` on tensors held in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from merganser.algebra.expression import Expression, Load
from merganser.checkpoint import DType
from merganser.checkpoint.dtypes import BOOL, F32, F64
from merganser.errors import AlgebraError

Function = Callable[..., Any]
Plain = int | float | str | bool
"""What a constant of a function may be."""


@dataclass(frozen=True, slots=True, eq=False)
class Derivation:
    """A function of scalars with several numbers as its result."""

    function: Function
    operands: tuple[Expression, ...]
    constants: tuple[Plain, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Derived(Expression):
    """One of the numbers of a derivation."""

    derivation: Derivation
    index: int

    @property
    def arguments(self) -> tuple[Expression, ...]:
        """The scalars it is computed from."""
        return self.derivation.operands

    @property
    def is_scalar(self) -> bool:
        """True."""
        return True


@dataclass(frozen=True, slots=True, eq=False)
class ByRows(Load):
    """`function(*blocks, *constants)` on blocks of rows, [rows, width] each in f32 (f64 where an argument is wide).

    The arguments are seen as matrices of `width` columns. The function returns as many rows: [rows, width] for a tensor
    of the arguments' shape, or with `reduces` [rows], one number a row. Rows must not depend on one another. With
    `flags` it returns bools, which count as 0 and 1; where several steps need them, they are kept as bits.
    """

    function: Function
    operands: tuple[Expression, ...]
    constants: tuple[Plain, ...]
    width: int
    reduces: bool
    flags: bool = False

    @property
    def arguments(self) -> tuple[Expression, ...]:
        """The tensors."""
        return self.operands

    @property
    def shape(self) -> tuple[int, ...]:
        """The arguments', or [rows]."""
        return (self.operands[0].size // max(self.width, 1),) if self.reduces else self.operands[0].shape

    @property
    def wide(self) -> bool:
        """Whether an argument is."""
        return any(operand.wide for operand in self.operands)

    @property
    def dtype(self) -> DType:
        """That of arithmetic, or of bools."""
        return BOOL if self.flags else F64 if self.wide else F32


@dataclass(frozen=True, slots=True, eq=False)
class ColumnSums(Load):
    """Sums over the rows of a tensor seen as a matrix of `width` columns, added up in f64, one number a column."""

    source: Expression
    width: int

    @property
    def arguments(self) -> tuple[Expression, ...]:
        """The source."""
        return (self.source,)

    @property
    def shape(self) -> tuple[int, ...]:
        """One number a column."""
        return (self.width,)

    @property
    def wide(self) -> bool:
        """As the source's."""
        return self.source.wide

    @property
    def dtype(self) -> DType:
        """That of arithmetic."""
        return F64 if self.wide else F32


@dataclass(frozen=True, slots=True, eq=False)
class Making:
    """`function(*tensors, *constants)` on whole tensors in f32 (f64 where wide), giving one array or several.

    `shapes` are those of its results; `workspace` the bytes it needs beside arguments and results.
    """

    function: Function
    operands: tuple[Expression, ...]
    constants: tuple[Plain, ...]
    shapes: tuple[tuple[int, ...], ...]
    workspace: int
    dtype: DType | None = None
    """Of the results, where it is not that of arithmetic (packed bytes)."""


@dataclass(frozen=True, slots=True, eq=False)
class Whole(Load):
    """One of the tensors that a function makes of whole tensors; all its arguments are held in memory for that."""

    making: Making
    index: int

    @property
    def arguments(self) -> tuple[Expression, ...]:
        """The tensors, and scalars among them."""
        return self.making.operands

    @property
    def shape(self) -> tuple[int, ...]:
        """As the function was said to give."""
        return self.making.shapes[self.index]

    @property
    def wide(self) -> bool:
        """Whether an argument is."""
        return any(operand.wide for operand in self.making.operands)

    @property
    def dtype(self) -> DType:
        """That of arithmetic, or as the function was said to give."""
        return self.making.dtype or (F64 if self.wide else F32)

    @property
    def carried(self) -> bool:
        """True for integers: what was packed is not computed with."""
        return not self.dtype.is_float


def function_name(function: Function) -> str:
    """What a function is known by: it must be one of a module, so that the name says which it is."""
    return f"{function.__module__}.{function.__qualname__}"


def derive(
    function: Function, operands: Sequence[Expression], *constants: Plain, count: int
) -> list[Expression]:
    """The `count` numbers of `function(*numbers, *constants)`, computed in f64 from scalar expressions."""
    _check(function, operands)
    if not all(operand.is_scalar for operand in operands):
        raise AlgebraError(f"{function.__name__} is a function of numbers, not of tensors")
    derivation = Derivation(function, tuple(operands), constants)
    return [Derived(derivation, index) for index in range(count)]


def by_rows(
    function: Function,
    operands: Sequence[Expression],
    *constants: Plain,
    width: int = 0,
    reduces: bool = False,
    flags: bool = False,
) -> Expression:
    """`function` on the rows of tensors of one shape; a row is the last dimension, or `width` elements.

    `reduces`: it returns one number a row. `flags`: it returns bools.
    """
    _check(function, operands)
    shape = operands[0].shape
    width = width or (shape[-1] if shape else 1)
    if any(operand.shape != shape for operand in operands):
        shapes = ", ".join(str(list(operand.shape)) for operand in operands)
        raise AlgebraError(f"{function.__name__} works on tensors of one shape, not {shapes}")
    if math.prod(shape) % max(width, 1):
        raise AlgebraError(f"a tensor of shape {list(shape)} has no rows of {width}")
    return ByRows(function, tuple(operands), constants, width, reduces, flags)


def numbers(node: Expression) -> Expression:
    """A node as it is; of integers and bools (0 and 1) their values in f32, to compute with."""
    if not node.carried:
        return node
    return ByRows(_values, (node,), (), max(node.shape[-1] if node.shape else 1, 1), False)


def _values(rows: Any) -> Any:
    return rows


def column_sums(source: Expression, width: int = 0) -> Expression:
    """Sums over all but the last dimension (or over rows of `width`)."""
    width = width or (source.shape[-1] if source.shape else 1)
    if source.size % max(width, 1):
        raise AlgebraError(f"a tensor of shape {list(source.shape)} has no rows of {width}")
    return ColumnSums(source, width)


def whole(
    function: Function,
    operands: Sequence[Expression],
    *constants: Plain,
    shapes: Sequence[Sequence[int]],
    workspace: int = 0,
    dtype: DType | None = None,
) -> list[Expression]:
    """The tensors that `function(*arrays, *constants)` makes; scalar operands arrive as Python floats.

    The function returns one array, or a tuple of as many as there are `shapes`. `workspace` is in bytes;
    `dtype` is that of the results, where it is not that of arithmetic.
    """
    _check(function, operands)
    making = Making(
        function,
        tuple(operands),
        constants,
        tuple(tuple(map(int, shape)) for shape in shapes),
        int(workspace),
        dtype,
    )
    return [Whole(making, index) for index in range(len(shapes))]


def _check(function: Function, operands: Sequence[Expression]) -> None:
    if "<" in getattr(function, "__qualname__", "<"):
        raise AlgebraError(
            "the function of a node must be one of a module, not a lambda or an inner function"
        )
    for operand in operands:
        if operand.carried:
            raise AlgebraError(f"{function.__name__} computes; integer and bool tensors are only carried")
