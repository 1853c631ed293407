"""Expressions: what an output tensor is, as a graph over stored tensors. Nothing here computes.

A node is either a *tensor* (it has elements) or a *scalar* (shape `()`: a number, a reduction, or arithmetic on those).
Scalars combine with any tensor; two tensors must have the same shape. Graphs are immutable and shared freely.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, NoReturn

from merganser.algebra import spelling
from merganser.algebra.operations import OPERATIONS, Operation
from merganser.architectures.constants import is_constant
from merganser.checkpoint import AdapterDelta, DType, StoredTensor
from merganser.checkpoint.dtypes import F32
from merganser.errors import AlgebraError, SpellingError

Number = int | float


class Expression:
    """A node of the graph. Arithmetic on nodes builds nodes."""

    __slots__ = ()
    __hash__ = object.__hash__

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape; `()` for scalars, and for tensors without dimensions."""
        return ()

    @property
    def wide(self) -> bool:
        """Whether arithmetic on this node runs in f64 (an input is F64) rather than f32."""
        return False

    @property
    def is_scalar(self) -> bool:
        """Whether the node is one number rather than a tensor (which may have one element and no dimensions)."""
        return False

    @property
    def carried(self) -> bool:
        """Whether nothing computes with the node: it is carried from one parent, bit for bit.

        So it is with integer and bool tensors and with constants (rotary speeds, positions), which are no weights.
        """
        return False

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def arguments(self) -> tuple[Expression, ...]:
        """The nodes that this one is computed from."""
        return ()

    def __add__(self, other: Expression | Number) -> Expression:
        return apply("add", self, other)

    def __radd__(self, other: Number) -> Expression:
        return apply("add", other, self)

    def __sub__(self, other: Expression | Number) -> Expression:
        return apply("sub", self, other)

    def __rsub__(self, other: Number) -> Expression:
        return apply("sub", other, self)

    def __mul__(self, other: Expression | Number) -> Expression:
        return apply("mul", self, other)

    def __rmul__(self, other: Number) -> Expression:
        return apply("mul", other, self)

    def __truediv__(self, other: Expression | Number) -> Expression:
        return apply("div", self, other)

    def __rtruediv__(self, other: Number) -> Expression:
        return apply("div", other, self)

    def __neg__(self) -> Expression:
        return apply("neg", self)

    def __abs__(self) -> Expression:
        return apply("abs", self)

    def __lt__(self, other: Expression | Number) -> Expression:
        return apply("lt", self, other)

    def __le__(self, other: Expression | Number) -> Expression:
        return apply("le", self, other)

    def __gt__(self, other: Expression | Number) -> Expression:
        return apply("gt", self, other)

    def __ge__(self, other: Expression | Number) -> Expression:
        return apply("ge", self, other)

    def __eq__(self, other: object) -> Expression:  # type: ignore[override]
        return _compared("eq", self, other)

    def __ne__(self, other: object) -> Expression:  # type: ignore[override]
        return _compared("ne", self, other)

    def __and__(self, other: Expression | Number) -> Expression:
        return apply("and", self, other)

    def __rand__(self, other: Number) -> Expression:
        return apply("and", other, self)

    def __or__(self, other: Expression | Number) -> Expression:
        return apply("or", self, other)

    def __ror__(self, other: Number) -> Expression:
        return apply("or", other, self)

    def __invert__(self) -> Expression:
        return apply("not", self)

    # What Python and NumPy would make of an object that is not computed ------------------------------------------

    def __bool__(self) -> NoReturn:
        spelling.no_truth(_called(self))

    def __float__(self) -> NoReturn:
        spelling.no_number(_called(self), "value", f"{spelling.SCALARS}; for math.sqrt(x) write mg.sqrt(x)")

    __int__ = __index__ = __complex__ = __trunc__ = __floor__ = __ceil__ = __float__

    def __round__(self, digits: int | None = None) -> NoReturn:
        spelling.no_number(_called(self), "digits", "mg.cast(x, dtype) rounds to what a dtype holds")

    def __len__(self) -> NoReturn:
        spelling.no_number(_called(self), "length", "x.shape and x.size are known")

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        spelling.no_array(_called(self))

    def __array_ufunc__(self, function: Any, method: str, *inputs: Any, **options: Any) -> Expression:
        name = spelling.UFUNCS.get(function.__name__)
        if name is None or method != "__call__" or options:
            spelling.no_function(_called(self), function.__name__)
        return apply(name, *inputs)

    def __array_function__(self, function: Callable[..., Any], *_: Any) -> NoReturn:
        spelling.no_function(_called(self), function.__name__)


class Load(Expression):
    """A tensor node whose elements a kernel finds ready in memory: stored ones, or made tile by tile from others."""

    __slots__ = ()

    @property
    def dtype(self) -> DType:
        """The dtype in which the elements lie in memory."""
        raise NotImplementedError

    @property
    def identity(self) -> int:
        """Equal for nodes that read the same."""
        return id(self)


@dataclass(frozen=True, slots=True, eq=False)
class Leaf(Load):
    """A tensor at rest."""

    tensor: StoredTensor

    @property
    def dtype(self) -> DType:
        """The stored dtype."""
        return self.tensor.dtype

    @property
    def identity(self) -> int:
        """That of the stored tensor."""
        return id(self.tensor)

    @property
    def shape(self) -> tuple[int, ...]:
        """The stored shape."""
        return self.tensor.shape

    @property
    def wide(self) -> bool:
        """True for F64."""
        return self.tensor.dtype.name == "F64"

    @property
    def carried(self) -> bool:
        """True for integers and bools, and for constants."""
        tensor = self.tensor
        return not tensor.dtype.is_float or is_constant(tensor.name, len(tensor.shape))


@dataclass(frozen=True, slots=True, eq=False)
class LowRank(Load):
    """The change a LoRA adapter makes to one tensor: `scale * left @ right`."""

    delta: AdapterDelta

    @property
    def dtype(self) -> DType:
        """F32."""
        return F32

    @property
    def identity(self) -> int:
        """That of the delta."""
        return id(self.delta)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor it changes."""
        return self.delta.shape

    @property
    def wide(self) -> bool:
        """Factors are computed with in f32."""
        return False


@dataclass(frozen=True, slots=True, eq=False)
class Constant(Expression):
    """A number."""

    value: float

    @property
    def is_scalar(self) -> bool:
        """True."""
        return True


@dataclass(frozen=True, slots=True, eq=False)
class Draw(Expression):
    """Uniform random numbers in [0, 1), one per element, a function of `key` and the element's flat index only.

    With `in_f64`, arithmetic on them is in f64; the numbers are the same.
    """

    key: tuple[str, ...]
    dimensions: tuple[int, ...]
    in_f64: bool = False

    @property
    def wide(self) -> bool:
        """As it was asked for."""
        return self.in_f64

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the tensor the numbers are for."""
        return self.dimensions


@dataclass(frozen=True, slots=True, eq=False)
class Apply(Expression):
    """An elementwise operation, or arithmetic on scalars when all arguments are scalars."""

    operation: Operation
    operands: tuple[Expression, ...]
    dimensions: tuple[int, ...]
    in_f64: bool
    scalar: bool

    @property
    def arguments(self) -> tuple[Expression, ...]:
        """The operands."""
        return self.operands

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the tensors among the operands."""
        return self.dimensions

    @property
    def wide(self) -> bool:
        """Whether an operand is wide."""
        return self.in_f64

    @property
    def is_scalar(self) -> bool:
        """Whether all operands are scalars."""
        return self.scalar


@dataclass(frozen=True, slots=True, eq=False)
class Round(Expression):
    """The argument rounded to `dtype` and widened again (to nearest, ties to even)."""

    dtype: DType
    argument: Expression

    @property
    def arguments(self) -> tuple[Expression, ...]:
        """The rounded node."""
        return (self.argument,)

    @property
    def shape(self) -> tuple[int, ...]:
        """As the argument's."""
        return self.argument.shape

    @property
    def wide(self) -> bool:
        """As the argument's."""
        return self.argument.wide

    @property
    def is_scalar(self) -> bool:
        """As the argument's."""
        return self.argument.is_scalar


@dataclass(frozen=True, slots=True, eq=False)
class Written(Round):
    """A rounding that is the last of a tensor: to the dtype that it is written in, where `save` is given none."""


@dataclass(frozen=True, slots=True, eq=False)
class Reduce(Expression):
    """A scalar from all elements of one tensor, or of several (whole-model scope).

    kind: `sum` (in f64, in a fixed order), `max` (of magnitudes) or `kth_magnitude` (the exact `rank`-th largest
    magnitude, rank from 1). `at`, a scalar, stands for the rank where that too must be computed (over one tensor); rank
    0 gives infinity, which nothing reaches.
    """

    kind: str
    operands: tuple[Expression, ...]
    rank: int = 0
    at: Expression | None = None

    @property
    def arguments(self) -> tuple[Expression, ...]:
        """The tensors reduced, and the rank where it is computed."""
        return self.operands if self.at is None else (*self.operands, self.at)

    @property
    def is_scalar(self) -> bool:
        """True."""
        return True


def _compared(name: str, node: Expression, other: Any) -> Expression:
    """Equality entry by entry; with what is no node and no number (None, a text) Python's own answer, False."""
    if not isinstance(other, Expression) and not isinstance(other, Real):
        return NotImplemented  # type: ignore[no-any-return]
    return apply(name, node, other)  # type: ignore[arg-type]


def as_expression(value: Any) -> Expression:
    """A node, or a number as a node. Raises `SpellingError` for anything else, an array or a text among them."""
    if isinstance(value, Expression):
        return value
    if spelling.is_array(value):
        raise SpellingError(
            "an array cannot stand in a formula with a tensor of weights: save it as a checkpoint and mg.open that, or "
            "compute with mg.compute(weights, name), which is an array too"
        )
    if isinstance(value, Real) or (hasattr(value, "__array__") and hasattr(value, "item")):
        try:
            return Constant(float(value))
        except OverflowError:
            raise AlgebraError("a number in a formula is too large for f64") from None
    raise SpellingError(
        f"a formula takes tensors of weights and numbers, not {type(value).__name__}: of weights take one tensor by "
        "its name, weights[name], or combine weights with weights"
    )


def _called(node: Expression) -> str:
    """What an error calls a node."""
    if isinstance(node, Leaf):
        return f"tensor {node.tensor.name!r} of {node.tensor.parent!r}"
    return "a number that is not computed" if node.is_scalar else "a formula over tensors"


def apply(name: str, *operands: Expression | Number) -> Expression:
    """The elementwise operation `name` on nodes and numbers.

    Raises `AlgebraError` for tensors of different shapes, and for integer or bool tensors.
    """
    operation = OPERATIONS[name]
    nodes = tuple(as_expression(operand) for operand in operands)
    shape: tuple[int, ...] | None = None
    for node in nodes:
        if node.carried:
            leaf = next(below for below in walk([node]) if isinstance(below, Leaf))
            kind = "a constant" if leaf.tensor.dtype.is_float else str(leaf.tensor.dtype)
            raise AlgebraError(
                f"tensor {leaf.tensor.name!r} of {leaf.tensor.parent!r} is {kind}: integer and bool tensors and "
                "constants are carried from one parent, never computed with"
            )
        if node.is_scalar:
            continue
        if shape is not None and node.shape != shape:
            raise AlgebraError(f"shapes {list(shape)} and {list(node.shape)} differ in {operation.name!r}")
        shape = node.shape
    if shape is not None and operation.host_only:
        raise AlgebraError(f"{operation.name!r} works on scalars (norms, dot products), not on whole tensors")
    return Apply(operation, nodes, shape or (), any(node.wide for node in nodes), shape is None)


def walk(roots: list[Expression]) -> list[Expression]:
    """Every node below `roots`, arguments before their users, each once."""
    seen: set[int] = set()
    order: list[Expression] = []
    stack: list[tuple[Expression, bool]] = [(root, False) for root in reversed(roots)]
    while stack:
        node, ready = stack.pop()
        if ready:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack.extend((argument, False) for argument in reversed(node.arguments))
    return order
