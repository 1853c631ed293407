"""How the elements of a load get into memory: one source per kind of node, each filling any stretch of elements.

Sources are shared by worker threads: they hold what is small (vectors, factors, matrices) and make the rest anew for
every stretch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from merganser.algebra import Expression, Leaf, LowRank
from merganser.algebra.computed import ByRows, ColumnSums, Whole
from merganser.algebra.expression import Load
from merganser.algebra.rearranged import Array, Joined, Mixed, Product, Reshaped, Spread, Taken
from merganser.checkpoint import DType, StoredTensor
from merganser.checkpoint.dtypes import BF16, F32, F64
from merganser.engine.finite import refuse_nonfinite
from merganser.engine.ledger import Kept, Made
from merganser.engine.lowrank import Factors
from merganser.engine.scratch import Scratch
from merganser.errors import AlgebraError

Elements = np.ndarray[Any, Any]


class Context(Protocol):
    """What sources ask the run for."""

    @property
    def allow_nonfinite(self) -> bool:
        """Whether parents may hold NaN and Inf."""

    def formula(self, node: Expression) -> Source:
        """A source that computes a formula for any stretch of elements."""

    def number(self, node: Expression) -> float:
        """The value of a scalar."""

    def made(self, load: Whole, make: Callable[[], tuple[Elements, ...]]) -> Made:
        """The results of a function of whole tensors, computed by `make` unless they are there."""

    def kept(self, load: ByRows) -> Kept | None:
        """Where the flags of a tensor are kept from step to step, if they are."""


HELD = 1 << 20
"""A source of at most so many elements is read whole when single elements of it are wanted."""
ROWS = 64
"""Rows per matrix product, always: with one shape for all blocks the bytes do not depend on where a tile begins."""
BLOCK = 1 << 16
"""Elements of the rows that are made together."""
MIXED = 16
"""Rows of a mixture that are made together."""
_RAW = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


class Source:
    """Elements of one load, in its dtype, by their flat index."""

    def __init__(self, dtype: DType) -> None:
        self.dtype = dtype

    def read(self, view: memoryview, start: int) -> None:
        """Fill `view` with the elements from `start` on."""
        raise NotImplementedError

    def raw(self, start: int, count: int) -> Elements:
        """`count` elements as unsigned integers of their bits."""
        out = np.empty(count, _RAW[self.dtype.itemsize])
        if count:
            self.read(out.view(np.uint8).data, start)
        return out

    def values(self, start: int, count: int, dtype: Any = np.float32) -> Elements:
        """`count` elements as f32 or f64."""
        out = np.empty(count, dtype)
        self.fill(out, start)
        return out

    def fill(self, out: Elements, start: int) -> None:
        """Fill an array of f32 or f64."""
        if not len(out):
            return
        if self.dtype.numpy == out.dtype:
            self.read(out.view(np.uint8).data, start)
            return
        with Scratch() as scratch:
            raw = scratch.take(len(out) * self.dtype.itemsize)
            self.read(raw.data, start)
            if self.dtype == BF16 and out.dtype == np.float32:
                bits = out.view(np.uint32)
                bits[:] = raw.view(np.uint16)
                bits <<= np.uint32(16)
            else:
                out[:] = raw.view(self.dtype.numpy)


def open_source(load: Load, context: Context) -> Source:
    """The source of a load; `context` opens the formulas inside it."""

    def inner(node: Expression) -> Source:
        return open_source(node, context) if isinstance(node, Load) else context.formula(node)

    if isinstance(load, Leaf):
        return _Stored(load.tensor, checked=not (load.carried or context.allow_nonfinite))
    if isinstance(load, LowRank):
        return _LowRank(load, context.allow_nonfinite)
    if isinstance(load, Array):
        return _Held(load)
    if isinstance(load, Reshaped):
        return inner(load.source)
    if isinstance(load, Taken):
        return _Taken(load, inner(load.source))
    if isinstance(load, Joined):
        return _Joined(load, [inner(part) for part in load.parts])
    if isinstance(load, Spread):
        return _Spread(load, inner(load.vector))
    if isinstance(load, Mixed):
        return _Mixed(load, inner(load.source))
    if isinstance(load, Product):
        return _Product(load, inner(load.source), inner(load.matrix))
    if isinstance(load, ByRows):
        return _ByRows(load, [inner(operand) for operand in load.operands], context.kept(load))
    if isinstance(load, ColumnSums):
        return _ColumnSums(load, inner(load.source))
    assert isinstance(load, Whole)
    return _Whole(load, context, inner)


class _Stored(Source):
    """The one place where a run meets the numbers of a parent: all that is read here is finite, or refused.

    Whatever is made of them, then, a NaN or Inf cannot vanish: in an entry that a method drops, in a comparison, behind
    a threshold, a norm or a matrix function. What is carried is no number: a constant mask of -Inf passes.
    """

    def __init__(self, tensor: StoredTensor, *, checked: bool) -> None:
        super().__init__(tensor.dtype)
        self.tensor = tensor
        self.checked = checked

    def read(self, view: memoryview, start: int) -> None:
        self.tensor.read_into(view, start)
        if self.checked:
            refuse_nonfinite(self.tensor, view, start)


class _LowRank(Source):
    def __init__(self, load: LowRank, allow_nonfinite: bool) -> None:
        super().__init__(load.dtype)
        self.factors = Factors(load.delta, allow_nonfinite)

    def read(self, view: memoryview, start: int) -> None:
        self.factors.fill(start, np.frombuffer(view, np.float32))


class _Held(Source):
    def __init__(self, load: Array) -> None:
        super().__init__(load.dtype)
        self.bytes = np.ascontiguousarray(load.values).reshape(-1).view(np.uint8).data

    def read(self, view: memoryview, start: int) -> None:
        at = start * self.dtype.itemsize
        view[:] = self.bytes[at : at + len(view)]


class _Taken(Source):
    """Rows by index, read in runs of neighbours; then columns by index."""

    def __init__(self, load: Taken, source: Source) -> None:
        super().__init__(load.dtype)
        self.source = source
        self.shape, self.from_shape = load.shape, load.source.shape
        self.rows, *self.others = load.indices
        self.row = math.prod(self.shape[1:])
        self.from_row = math.prod(self.from_shape[1:])
        self.plain = all(index is None for index in self.others)
        size = math.prod(self.from_shape)
        self.whole = source.raw(0, size) if self.rows is not None and size <= HELD else None

    def read(self, view: memoryview, start: int) -> None:
        out = np.frombuffer(view, _RAW[self.dtype.itemsize])
        if self.plain and self.from_row > HELD:
            self._runs(out, start)
            return
        first, last = start // self.row, -(-(start + len(out)) // self.row)
        found = self._whole_rows(first, last)
        skip = start - first * self.row
        out[:] = found.reshape(-1)[skip : skip + len(out)]

    def _runs(self, out: Elements, start: int) -> None:
        """Long rows piece by piece: what is asked for may be a part of one."""
        done = 0
        while done < len(out):
            row, at = divmod(start + done, self.row)
            count = min(self.row - at, len(out) - done)
            place = row if self.rows is None else int(self.rows[row])
            out[done : done + count] = 0 if place < 0 else self.source.raw(place * self.from_row + at, count)
            done += count

    def _whole_rows(self, first: int, last: int) -> Elements:
        places = np.arange(first, last) if self.rows is None else self.rows[first:last]
        found = np.zeros((len(places), self.from_row), _RAW[self.dtype.itemsize])
        if self.whole is not None:
            held = places >= 0
            found[held] = self.whole.reshape(-1, self.from_row)[places[held]]
        else:
            for at, count in _stretches(places):
                if places[at] >= 0:
                    got = self.source.raw(int(places[at]) * self.from_row, count * self.from_row)
                    found[at : at + count] = got.reshape(count, self.from_row)
        found = found.reshape(len(places), *self.from_shape[1:])
        for dim, index in enumerate(self.others, 1):
            if index is not None:
                found = np.take(found, np.maximum(index, 0), axis=dim)
                if (index < 0).any():
                    found[(slice(None),) * dim + (index < 0,)] = 0
        return found


def _stretches(places: Elements) -> Iterator[tuple[int, int]]:
    """Runs of neighbouring rows: where each begins, and its length. Rows that are not there (-1) come one by one."""
    breaks: Any = np.flatnonzero((np.diff(places) != 1) | (places[:-1] < 0)) + 1 if len(places) > 1 else []
    edges = [0, *map(int, breaks), len(places)]
    for at, end in pairwise(edges):
        if end > at:
            yield at, end - at


class _Joined(Source):
    def __init__(self, load: Joined, parts: Sequence[Source]) -> None:
        super().__init__(load.dtype)
        self.parts = parts
        after = math.prod(load.shape[load.dim + 1 :])
        self.widths = [part.shape[load.dim] * after for part in load.parts]
        self.row = sum(self.widths)

    def read(self, view: memoryview, start: int) -> None:
        out = np.frombuffer(view, _RAW[self.dtype.itemsize])
        first, last = start // self.row, -(-(start + len(out)) // self.row)
        if last - first <= 2:
            self._pieces(out, start)
            return
        columns = [
            self._raw(part, first * width, (last - first) * width).reshape(last - first, width)
            for part, width in zip(self.parts, self.widths, strict=True)
        ]
        skip = start - first * self.row
        out[:] = np.concatenate(columns, axis=1).reshape(-1)[skip : skip + len(out)]

    def _pieces(self, out: Elements, start: int) -> None:
        done = 0
        while done < len(out):
            row, at = divmod(start + done, self.row)
            k = 0
            while at >= self.widths[k]:
                at -= self.widths[k]
                k += 1
            count = min(self.widths[k] - at, len(out) - done)
            out[done : done + count] = self._raw(self.parts[k], row * self.widths[k] + at, count)
            done += count

    def _raw(self, part: Source, start: int, count: int) -> Elements:
        """Elements of a part, in the dtype of the whole."""
        if part.dtype == self.dtype:
            return part.raw(start, count)
        return part.values(start, count, self.dtype.numpy).view(_RAW[self.dtype.itemsize])


class _Spread(Source):
    def __init__(self, load: Spread, vector: Source) -> None:
        super().__init__(load.dtype)
        self.vector = vector.values(0, load.vector.size, self.dtype.numpy)
        self.after = math.prod(load.shape[load.dim + 1 :])

    def read(self, view: memoryview, start: int) -> None:
        out = np.frombuffer(view, self.dtype.numpy)
        if self.after == 1:
            size = len(self.vector)
            rolled = np.roll(self.vector, -(start % size))
            whole = len(out) // size
            out[: whole * size].reshape(whole, size)[:] = rolled
            out[whole * size :] = rolled[: len(out) - whole * size]
        else:
            size, (first, at) = len(self.vector), divmod(start, self.after)
            head = min(self.after - at, len(out))
            rows = (len(out) - head) // self.after
            end = head + rows * self.after
            out[:head] = self.vector[first % size]
            whole_rows = self.vector[np.arange(first + 1, first + 1 + rows) % size]
            out[head:end].reshape(rows, self.after)[:] = whole_rows[:, None]
            out[end:] = self.vector[(first + 1 + rows) % size]


class _Mixed(Source):
    """A few rows of the result at a time: the rows they need are read once each, in runs of neighbours."""

    def __init__(self, load: Mixed, source: Source) -> None:
        super().__init__(load.dtype)
        self.source = source
        self.rows, self.weights = load.rows, load.weights.astype(np.float32)
        self.row = math.prod(load.shape[1:])

    def read(self, view: memoryview, start: int) -> None:
        out = np.frombuffer(view, np.float32)
        done = 0
        while done < len(out):
            row, at = divmod(start + done, self.row)
            if at or len(out) - done < self.row:
                count = min(self.row - at, len(out) - done)
                out[done : done + count] = self._sums(row, row + 1, at, count)[0]
            else:
                rows = min((len(out) - done) // self.row, MIXED)
                count = rows * self.row
                out[done : done + count] = self._sums(row, row + rows, 0, self.row).reshape(-1)
            done += count

    def _sums(self, first: int, last: int, at: int, count: int) -> Elements:
        """Elements `at` to `at + count` of some rows of the result, [rows, count]."""
        places = self.rows[first:last]
        needed, where = np.unique(places, return_inverse=True)
        where = where.reshape(places.shape)
        held = np.zeros((len(needed), count), np.float32)
        for k, length in _stretches(needed):
            if needed[k] < 0:
                continue
            if count == self.row:
                got = self.source.values(int(needed[k]) * self.row, length * self.row)
                held[k : k + length] = got.reshape(length, self.row)
            else:
                for j in range(k, k + length):
                    held[j] = self.source.values(int(needed[j]) * self.row + at, count)
        total = np.zeros((last - first, count), np.float32)
        for j in range(places.shape[1]):
            total += (
                np.where(places[:, j] < 0, np.float32(0), self.weights[first:last, j])[:, None]
                * held[where[:, j]]
            )
        return total


class _Product(Source):
    """Along the last dimension, rows in blocks of ROWS; along another, blocks of the matrix's rows."""

    def __init__(self, load: Product, source: Source, matrix: Source) -> None:
        super().__init__(load.dtype)
        self.source = source
        self.matrix = matrix.values(0, load.matrix.size).reshape(load.matrix.shape)
        shape = load.source.shape
        self.before, self.size = math.prod(shape[: load.dim]), shape[load.dim]
        self.after = math.prod(shape[load.dim + 1 :])
        self.last = self.after == 1
        if not self.last:
            held = source.values(0, math.prod(shape))
            self.held = held.reshape(self.before, self.size, self.after)

    def read(self, view: memoryview, start: int) -> None:
        out = np.frombuffer(view, np.float32)
        width = len(self.matrix) if self.last else self.after
        done = 0
        while done < len(out):
            row = (start + done) // width
            block = row // ROWS
            made = self._rows(block) if self.last else self._blocks(block)
            skip = start + done - block * ROWS * width
            got = made.reshape(-1)[skip : skip + len(out) - done]
            out[done : done + len(got)] = got
            done += len(got)

    def _rows(self, block: int) -> Elements:
        count = min(ROWS, self.before - block * ROWS)
        rows = np.zeros((ROWS, self.size), np.float32)
        rows[:count] = self.source.values(block * ROWS * self.size, count * self.size).reshape(
            count, self.size
        )
        made: Elements = (rows @ self.matrix.T)[:count]
        return made

    def _blocks(self, block: int) -> Elements:
        """Rows `block * ROWS` and on of the result seen as (before x matrix rows, after)."""
        height = len(self.matrix)
        row, end = block * ROWS, min((block + 1) * ROWS, self.before * height)
        parts = []
        while row < end:
            outer, inner = divmod(row, height)
            count = min(end - row, height - inner)
            matrix = np.zeros((ROWS, self.size), np.float32)
            matrix[:count] = self.matrix[inner : inner + count]
            parts.append((matrix @ self.held[outer])[:count])
            row += count
        return np.concatenate(parts)


class _ByRows(Source):
    """Blocks of rows, each made for the tile that asks; rows too long to be made twice are made once and kept."""

    def __init__(self, load: ByRows, parts: Sequence[Source], kept: Kept | None) -> None:
        super().__init__(load.dtype)
        self.load, self.parts, self.kept = load, parts, kept
        self.rows = load.operands[0].size // max(load.width, 1)
        self.block = max(1, BLOCK // max(load.width, 1))
        self.row = 1 if load.reduces else load.width
        self.held: Elements | None = None
        if load.width > HELD and not (kept is not None and kept.complete):
            with Scratch() as scratch:
                made = self._rows(0, self.rows, scratch)
                if kept is None:
                    self.held = made.copy()
                else:
                    kept.note(0, made)

    def read(self, view: memoryview, start: int) -> None:
        out = np.frombuffer(view, self.dtype.numpy)
        if self.held is not None:
            out[:] = self.held[start : start + len(out)]
        elif self.kept is None:
            self._make(out, start)
        elif not self.kept.read(start, out):
            self._make(out, start)
            self.kept.note(start, out)

    def _make(self, out: Elements, start: int) -> None:
        stop = start + len(out)
        last = -(-stop // self.row)
        for row in range(start // self.row, last, self.block):
            end, begin = min(row + self.block, last), row * self.row
            low, high = max(start, begin), min(stop, end * self.row)
            with Scratch() as scratch:
                made = self._rows(row, end, scratch)
                out[low - start : high - start] = made[low - begin : high - begin]

    def _rows(self, first: int, last: int, scratch: Scratch) -> Elements:
        load, width = self.load, self.load.width
        dtype = (F64 if load.wide else F32).numpy
        blocks = []
        for part in self.parts:
            block = scratch.take((last - first) * width * dtype.itemsize).view(dtype)
            part.fill(block, first * width)
            blocks.append(block.reshape(last - first, width))
        with np.errstate(all="ignore"):  # what is not finite is found in the result
            made = np.asarray(load.function(*blocks, *load.constants), self.dtype.numpy)
        if made.size != (last - first) * self.row:
            raise AlgebraError(
                f"{load.function.__name__} made {list(made.shape)} of {last - first} rows of {width}"
            )
        return np.ascontiguousarray(made).reshape(-1)


class _ColumnSums(Source):
    def __init__(self, load: ColumnSums, source: Source) -> None:
        super().__init__(load.dtype)
        width, rows = load.width, load.source.size // max(load.width, 1)
        block = max(1, BLOCK // max(width, 1))
        total = np.zeros(width, np.float64)
        for row in range(0, rows, block):
            count = min(block, rows - row)
            values = source.values(row * width, count * width, source.dtype.numpy)
            total += (
                values.astype(self.dtype.numpy, copy=False)
                .reshape(count, width)
                .sum(axis=0, dtype=np.float64)
            )
        self.sums: Elements = total.astype(self.dtype.numpy)

    def read(self, view: memoryview, start: int) -> None:
        out = np.frombuffer(view, self.dtype.numpy)
        out[:] = self.sums[start : start + len(out)]


class _Whole(Source):
    def __init__(self, load: Whole, context: Context, inner: Callable[[Expression], Source]) -> None:
        super().__init__(load.dtype)
        making, dtype = load.making, (F64 if load.wide else F32).numpy

        def argument(node: Expression) -> Any:
            if node.is_scalar:
                return context.number(node)
            source, values = inner(node), np.empty(node.size, dtype)
            for start in range(0, node.size, HELD):
                count = min(HELD, node.size - start)
                values[start : start + count] = source.values(start, count, dtype)
            return values.reshape(node.shape)

        def make() -> tuple[Elements, ...]:
            arrays = list(map(argument, making.operands))
            with np.errstate(all="ignore"):
                found = making.function(*arrays, *making.constants)
            results = found if isinstance(found, tuple) else (found,)
            if [np.shape(result) for result in results] != list(making.shapes):
                raise AlgebraError(
                    f"{making.function.__name__} made {[list(np.shape(result)) for result in results]}, "
                    f"not {[list(shape) for shape in making.shapes]}"
                )
            return tuple(np.ascontiguousarray(result, self.dtype.numpy).reshape(-1) for result in results)

        self.made = context.made(load, make)
        self.own = self.made.arrays[load.index]

    def read(self, view: memoryview, start: int) -> None:
        out = np.frombuffer(view, self.dtype.numpy)
        out[:] = self.own[start : start + len(out)]


def held_bytes(load: Load) -> int:
    """Bytes that the source of a load keeps while its tensor is worked on."""
    inner = sum(held_bytes(a) for a in load.arguments if isinstance(a, Load))
    if isinstance(load, ByRows):
        long = load.width > HELD
        itemsize = 8 if load.wide else 4
        return inner + (load.operands[0].size * itemsize * (len(load.operands) + 4) if long else 0)
    if isinstance(load, ColumnSums):
        return inner + load.width * 16
    if isinstance(load, Whole):
        taken = sum(a.size for a in load.arguments) * (8 if load.wide else 4)
        given = sum(map(math.prod, load.making.shapes)) * load.dtype.itemsize
        return inner + taken + given + load.making.workspace
    if isinstance(load, LowRank):
        left, right = load.delta.left, load.delta.right
        return (left.size + right.size) * 4 + left.nbytes + right.nbytes
    if isinstance(load, Array):
        return load.values.nbytes * 2
    if isinstance(load, Spread):
        return inner + load.vector.size * 8
    if isinstance(load, Taken):
        return inner + (load.source.size * 8 if load.source.size <= HELD else 0)
    if isinstance(load, Product):
        last = math.prod(load.source.shape[load.dim + 1 :]) == 1
        return inner + load.matrix.size * 8 + (0 if last else load.source.size * 8)
    return inner


def scratch_bytes(load: Load, tile: int) -> int:
    """Bytes that one thread needs on top of the tile itself while it fills a tile."""
    if isinstance(load, Leaf | Array | LowRank):
        return 0
    inner = max(
        (scratch_bytes(a, tile) if isinstance(a, Load) else tile * 16 for a in load.arguments), default=0
    )
    itemsize = load.dtype.itemsize
    if isinstance(load, Taken):
        row, from_row = math.prod(load.shape[1:]), math.prod(load.source.shape[1:])
        if from_row > HELD and all(index is None for index in load.indices[1:]):
            return inner + tile * itemsize
        rows = tile // max(1, row) + 2
        return inner + rows * (from_row * 3 + row * 2) * itemsize
    if isinstance(load, Mixed):
        return inner + MIXED * (int(load.rows.shape[1]) + 2) * math.prod(load.shape[1:]) * 8
    if isinstance(load, ByRows | ColumnSums):
        block = max(BLOCK, load.width) if load.width <= HELD else 0
        return inner + block * 8 * (len(load.arguments) + 4)
    if isinstance(load, Product):
        after = math.prod(load.source.shape[load.dim + 1 :])
        width = load.matrix.shape[0] if after == 1 else after
        return inner + ROWS * (load.source.shape[load.dim] + width) * 8 + tile * 4
    return inner + tile * 3 * itemsize
