"""Weight matching by coordinate descent: one permutation after the other, each the best one while the others stay.

Maximises the sum over all tensors of <A, P(B)>, which is the same as making the L2 distance of A and P(B) smallest.
Arrays come in as they are (f32 or f64); sums are f64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from merganser.architectures import Axis
from merganser.errors import MerganserError, RequestError

Values = np.ndarray[Any, Any]
Order = np.ndarray[Any, np.dtype[np.int64]]
Factor = Axis | int
CHUNK = 1 << 22
"""Elements that are turned into f64 at a time."""
SAME = 1e-9
"""A gain below this share of what is summed is no gain: it may be rounding."""
STEPS = 2.0**40
"""Products are rounded to this many steps of the largest before they are assigned, so that which of two equal elements
is taken does not hang on the last bits of a sum."""


@dataclass(frozen=True, eq=False)
class Block:
    """A product of axes in a tensor: the whole of it, or one part of a fused one.

    `dims` are the factors of each dimension, slowest first; a number is a factor that no permutation moves. `first`
    gives A's elements with one array dimension for each factor. `second` gives B's; where the block lies in copies
    (experts) of an index axis, its argument says which of B's copies is wanted. `copies` says which of A's copies it
    belongs to, `line` is what it has in common with its counterparts in the other copies.
    """

    dims: tuple[tuple[Factor, ...], ...]
    first: Callable[[], Values]
    second: Callable[[Mapping[Axis, int]], Values]
    copies: Mapping[Axis, int] = field(default_factory=dict)
    line: Any = None

    @property
    def factors(self) -> tuple[Factor, ...]:
        """All factors, in the order of the array's dimensions."""
        return tuple(factor for dim in self.dims for factor in dim)


@dataclass(frozen=True)
class Matching:
    """Which element of B goes to each place of A, by axis; the rounds it took; whether the last one changed nothing."""

    orders: Mapping[Axis, Order]
    rounds: int
    settled: bool


def match(
    blocks: Sequence[Block],
    sizes: Mapping[Axis, int],
    free: Sequence[Axis],
    *,
    seed: int,
    rounds: int,
    start: Literal["outside", "identity"] = "outside",
) -> Matching:
    """Permutations of the axes `free`, by Git Re-Basin's algorithm 1: in a new random order each round, until a round
    improves no axis or `rounds` are over.

    From the identity, as the paper starts, an axis that is visited early is fitted to others still in disorder,
    which then keep it there. So a first pass (`start` "outside") goes inwards from what is fixed: of each axis it
    sees only tensors whose other axes it has visited before.

    Two more things go beyond the algorithm. Axes inside another (the elements of a head, the neurons of an expert) are
    matched anew for every pair of elements of the outer one before those are assigned: with the inner ones out of order
    no pair of heads looks alike. And where an axis is in a tensor twice the assignment is linearised, so it is taken
    only if the distance becomes smaller.
    """
    descent = _Descent(blocks, sizes, free)
    random = np.random.default_rng(seed)
    if start == "outside":
        _inwards(blocks, descent, [free[k] for k in random.permutation(len(free))])
    for number in range(1, rounds + 1):
        improved = [descent.improve(free[k]) for k in random.permutation(len(free))]
        if not any(improved):
            return Matching(descent.orders, number, True)
    return Matching(descent.orders, rounds, False)


def _inwards(blocks: Sequence[Block], descent: _Descent, waiting: list[Axis]) -> None:
    """Visit each axis once, those first for which there are tensors whose other axes have been visited."""
    free, done = set(waiting), set[Axis]()
    needs = [(block, free.intersection((*block.factors, *block.copies))) for block in blocks]
    while waiting:
        for axis in waiting:
            group = {axis, *descent.inner[axis]}
            known = [block for block, axes in needs if axis in axes and axes <= done | group]
            if known:
                break
        else:
            axis, known = waiting[0], list(blocks)
            group = {axis, *descent.inner[axis]}
        part = _Descent(known, descent.sizes, descent.free)
        part.orders = descent.orders
        part.improve(axis)
        done |= group
        waiting = [one for one in waiting if one not in done]


def assigned(products: Values) -> Order:
    """The permutation p with the largest sum of `products[k, p[k]]`."""
    return pairs(products)[1]


def pairs(products: Values) -> tuple[Order, Order]:
    """Rows and columns of the pairs with the largest sum of products, as many as the shorter side has; rows ascend."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise MerganserError(
            "align needs scipy for the assignment of elements: pip install 'merganser[align]'"
        ) from None
    largest = np.abs(products).max(initial=0.0)
    if not np.isfinite(largest):
        raise MerganserError("align: the weights hold NaN, Inf or numbers whose products overflow")
    if largest == 0.0:
        count = min(products.shape)
        return np.arange(count), np.arange(count)
    rows, columns = linear_sum_assignment(np.rint(products * (-STEPS / largest)))
    return np.asarray(rows, np.int64), np.asarray(columns, np.int64)


def distance(blocks: Iterable[Block], orders: Mapping[Axis, Order]) -> float:
    """The L2 distance between A and P(B), over all blocks."""
    total = 0.0
    for block in blocks:
        a, b = block.first().reshape(-1), _moved(block, orders).reshape(-1)
        for at in range(0, a.size, CHUNK):
            gap = a[at : at + CHUNK].astype(np.float64) - b[at : at + CHUNK]
            total += float(gap @ gap)
    return float(np.sqrt(total))


class _Descent:
    def __init__(self, blocks: Sequence[Block], sizes: Mapping[Axis, int], free: Sequence[Axis]) -> None:
        self.sizes = sizes
        self.free = list(free)
        self.orders: dict[Axis, Order] = {axis: np.arange(sizes[axis]) for axis in free}
        self.touching: dict[Axis, list[Block]] = {axis: [] for axis in free}
        for block in blocks:
            for axis in dict.fromkeys((*block.factors, *block.copies)):
                if isinstance(axis, Axis) and axis in self.touching:
                    self.touching[axis].append(block)
        self.inner = {axis: self._inside(axis) for axis in free}
        for axis, inner in self.inner.items():
            if other := next((one for one in inner if axis in self.inner[one]), None):
                raise RequestError(
                    f"align: {axis} runs inside {other} in one tensor and outside it in another, by the family's file; "
                    "their elements cannot be matched one inside the other"
                )

    def improve(self, axis: Axis) -> bool:
        """Give an axis (and those inside it) the best order while all others stay. False where none is better."""
        blocks, inner = self.touching[axis], self.inner[axis]
        copied = any(axis in block.copies for block in blocks)
        if not inner and not copied and all(block.factors.count(axis) == 1 for block in blocks):
            products = self._products(axis)
            return self._better(axis, products, assigned(products))
        changed = dict.fromkeys((axis, *inner))
        touched = list(dict.fromkeys(b for one in changed for b in self.touching[one]))
        start = best = {one: self.orders[one] for one in changed}
        value = first = self._value(touched)
        for candidate in (self._of_copies,) if copied else (self._of_itself, self._of_pairs):
            self.orders |= start
            candidate(axis, inner)
            found = self._value(touched)
            if found - value > SAME * (abs(found) + abs(value)):
                value, best = found, {one: self.orders[one] for one in changed}
        self.orders |= best
        return value > first

    # Candidates -------------------------------------------------------------------------------------------------------

    def _of_itself(self, axis: Axis, inner: Sequence[Axis]) -> None:
        """The best order while those inside stay too."""
        self.orders[axis] = assigned(self._products(axis))

    def _of_pairs(self, axis: Axis, inner: Sequence[Axis]) -> None:
        """Pairs of elements compared with what is inside them matched for each pair; then the inside, for all pairs."""
        if not inner:
            return
        parts = [self._by_element(block, axis, inner) for block in self.touching[axis]]
        size = self.sizes[axis]
        products = np.zeros((size, size))
        for i in range(size):
            for j in range(size):
                pair = [_held(dims, a[i], b[j]) for dims, a, b in parts]
                products[i, j] = self._settled(pair, inner)[1]
        self.orders[axis] = assigned(products)
        for one in inner:
            self.improve(one)

    def _of_copies(self, axis: Axis, inner: Sequence[Axis]) -> None:
        """Whole groups of tensors compared with what is inside them matched for each pair."""
        size = self.sizes[axis]
        lines: list[dict[Any, Block]] = [{} for _ in range(size)]
        for block in self.touching[axis]:
            if axis in block.copies:
                lines[block.copies[axis]][block.line] = block
        products = self._products(axis)
        found: dict[tuple[int, int], Mapping[Axis, Order]] = {}
        for i in range(size):
            own = [one for one in inner if any(one in block.factors for block in lines[i].values())]
            for j in range(size):
                pair = [
                    _held(block.dims, block.first(), self._of_b(block, {**self._place(block), axis: j}, own))
                    for block in lines[i].values()
                ]
                found[i, j], value = self._settled(pair, own)
                products[i, j] += value
        self.orders[axis] = assigned(products)
        for i, j in enumerate(self.orders[axis].tolist()):
            self.orders |= found[i, j]

    def _settled(self, pair: Sequence[Block], axes: Sequence[Axis]) -> tuple[Mapping[Axis, Order], float]:
        """The best orders for a pair of elements alone, and the sum that they reach."""
        inside = _Descent(pair, self.sizes, axes)
        apart = all(sum(factor in axes for factor in block.factors) < 2 for block in pair)
        for _ in range(1 if apart else 8):
            improved = [inside.improve(axis) for axis in axes]
            if not any(improved):
                break
        return inside.orders, inside._value(pair)

    # Sums -------------------------------------------------------------------------------------------------------------

    def _better(self, axis: Axis, products: Values, order: Order) -> bool:
        rows = np.arange(len(order))
        chosen, held = products[rows, order], products[rows, self.orders[axis]]
        if chosen.sum() - held.sum() <= SAME * np.abs(chosen).sum():
            return False
        self.orders[axis] = order
        return True

    def _products(self, axis: Axis) -> Values:
        """`out[i, j]`: the sum over all tensors of A's slice i times B's slice j, with B's other axes as matched."""
        size = self.sizes[axis]
        total = np.zeros((size, size))
        for block in self.touching[axis]:
            a = block.first()
            for k, factor in enumerate(block.factors):
                if factor == axis:
                    b = self._of_b(block, self._place(block), (), skip=k)
                    _add_products(total, _rows(a, k), _rows(b, k))
        return total

    def _value(self, blocks: Iterable[Block]) -> float:
        total = 0.0
        for block in blocks:
            a = block.first().reshape(-1)
            b = self._of_b(block, self._place(block), ()).reshape(-1)
            for at in range(0, a.size, CHUNK):
                total += float(a[at : at + CHUNK].astype(np.float64) @ b[at : at + CHUNK].astype(np.float64))
        return total

    def _place(self, block: Block) -> dict[Axis, int]:
        return _place(block, self.orders)

    def _of_b(
        self, block: Block, place: Mapping[Axis, int], without: Sequence[Axis], skip: int | None = None
    ) -> Values:
        """B's elements in the present order of all axes but some."""
        return _ordered(block.second(place), block, self.orders, without, skip)

    def _by_element(
        self, block: Block, axis: Axis, inner: Sequence[Axis]
    ) -> tuple[tuple[tuple[Factor, ...], ...], Values, Values]:
        """A and B with an axis first, those inside it next and all else in one last dimension."""
        factors = block.factors
        at = factors.index(axis)
        a, b = block.first(), self._of_b(block, self._place(block), inner, skip=at)
        inside = [k for k, factor in enumerate(factors) if factor in inner]
        shape = (self.sizes[axis], *(a.shape[k] for k in inside), -1)
        moved = [at, *inside, *(k for k in range(len(factors)) if k != at and k not in inside)]
        dims = [tuple(factor for factor in dim if factor in inner) for dim in block.dims]
        kept = (*(dim for dim in dims if dim), (1,))
        return kept, a.transpose(moved).reshape(shape), b.transpose(moved).reshape(shape)

    def _inside(self, axis: Axis) -> list[Axis]:
        """Free axes that run faster than this one in a dimension that they share; of copies, those of one copy only."""
        blocks = self.touching[axis]
        if any(axis in block.copies for block in blocks):
            return [
                one
                for one in self.free
                if one != axis
                and self.touching[one]
                and all(axis in block.copies for block in self.touching[one])
            ]
        found: dict[Axis, None] = {}
        for dim in (dim for block in blocks for dim in block.dims if axis in dim):
            for factor in dim[dim.index(axis) + 1 :]:
                if isinstance(factor, Axis) and factor in self.touching and factor != axis:
                    found[factor] = None
        return list(found)


def _held(dims: tuple[tuple[Factor, ...], ...], a: Values, b: Values) -> Block:
    return Block(dims, lambda: a, lambda _: b)


def _place(block: Block, orders: Mapping[Axis, Order]) -> dict[Axis, int]:
    """Which of B's copies stands where this block is in A."""
    return {axis: int(orders[axis][k]) if axis in orders else k for axis, k in block.copies.items()}


def _moved(block: Block, orders: Mapping[Axis, Order]) -> Values:
    return _ordered(block.second(_place(block, orders)), block, orders, (), None)


def _ordered(
    values: Values, block: Block, orders: Mapping[Axis, Order], without: Sequence[Axis], skip: int | None
) -> Values:
    for k, factor in enumerate(block.factors):
        if not isinstance(factor, Axis) or k == skip or factor in without:
            continue
        order = orders.get(factor)
        if order is not None and not np.array_equal(order, np.arange(len(order))):
            values = values.take(order, axis=k)
    return values


def _rows(values: Values, dim: int) -> Values:
    return np.moveaxis(values, dim, 0).reshape(values.shape[dim], -1)


def _add_products(total: Values, a: Values, b: Values) -> None:
    step = max(1, CHUNK // max(1, len(a)))
    for at in range(0, a.shape[1], step):
        left, right = (x[:, at : at + step].astype(np.float64) for x in (a, b))
        total += left @ right.T
