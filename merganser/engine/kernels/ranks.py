"""Ranks within rows, by magnitude: from 0 for the smallest; of equal ones the first, at odd places (from 0) the last.

Float bits without the sign are ordered as the magnitudes they stand for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from merganser.engine.kernels import compiler
from merganser.engine.kernels.elements import F32, I8, I16, I32, I64
from merganser.engine.kernels.writing import Value, Writer, assembly, module

OCTAVES = 4
"""Bins are for the upper 2**OCTAVES powers of two below the largest magnitude; the first takes what is smaller."""
LEAST_BINS, MOST_BINS = 6, 12
"""As powers of two."""
SPARE = 8
"""Bins for zeros, by place: so many neighbours may be zero and not wait for one another's count."""
LANES = 8
FEW = 24
"""Undecided values for which the whole row is counted."""
LONG = 8
"""A row is sorted where its undecided values have this many others in their bins for each value of the row."""
MAGNITUDE = 0x7FFFFFFF
MOST_EXACT = 1 << 24
"""Up to here f32 holds every rank."""
RANKS = ("i64", "i64", "i32*", "i32*", "i32*")
"""Rows, width, bits of the values, bits of the magnitudes in order, result."""
ABOVE = (
    "i64",
    "i64",
    "i32*",
    "f32*",
    "i8*",
    "i8*",
    "i32",
    "i64",
    "i16*",
    "i32*",
    "f32*",
    "i32*",
    "i32*",
    "i32*",
)
"""Rows, width, bits of the values, numbers, result, rows left to a sort, shift to a bin, bins; room: the bin of each
value; of each bin its least rank, in f32 from 1, and a cursor; undecided places; magnitudes by bin."""
Matrix = np.ndarray[Any, Any]


def ranks(values: Matrix) -> Matrix:
    """The rank of each entry in its row: i32, or i64 where the values are f64."""
    if values.dtype != np.float32:
        return _ranks_by_order(values)
    bits = np.ascontiguousarray(values).view(np.int32)
    ordered = bits & np.int32(MAGNITUDE)
    ordered.sort(axis=1)
    found = np.empty(bits.shape, np.int32)
    function = compiler.routine("ranks", RANKS, emit_ranks)
    function(*bits.shape, bits.ctypes.data, ordered.ctypes.data, found.ctypes.data)
    return found


def above(values: Matrix, numbers: Matrix) -> Matrix:
    """Whether the rank of each entry in its row, counted from 1, is above its number."""
    rows, width = values.shape
    if values.dtype != np.float32 or width >= MOST_EXACT:
        return np.asarray(ranks(values) + 1 > numbers)
    bits, numbers = np.ascontiguousarray(values).view(np.int32), np.ascontiguousarray(numbers)
    found, left = np.empty(values.shape, bool), np.empty(rows, bool)
    power = min(max((width - 1).bit_length() - 1, LEAST_BINS), MOST_BINS)
    bins = 1 << power
    several, words = bins + 2 + 2 * SPARE, width // 2 + 1
    room = np.empty(words + 3 * several + 2 * width + LANES, np.int32)
    starts = np.cumsum([0, words, several, several, several, width])
    places = [room.ctypes.data + 4 * int(start) for start in starts]
    arrays = [array.ctypes.data for array in (bits, numbers, found, left)]
    function = compiler.routine("ranks above", ABOVE, emit_above)
    function(rows, width, *arrays, 23 + OCTAVES - power, bins, *places)
    if left.any():
        found[left] = _above_by_order(bits[left], numbers[left])
    return found


def _above_by_order(bits: Matrix, numbers: Matrix) -> Matrix:
    """`above` by comparing an entry with the one that has the number's rank."""
    rows, width = bits.shape
    odd = np.arange(width) & 1
    magnitudes = (bits & np.int32(MAGNITUDE)).view(np.uint32) + np.uint32(1)
    edges = np.empty((rows, width + 2), np.uint32)
    edges[:, 0], edges[:, -1] = 0, 0xFFFFFFFF
    edges[:, 1:-1] = magnitudes
    edges[:, 1:-1].sort(axis=1)
    with np.errstate(invalid="ignore"):
        places = np.nan_to_num(np.clip(numbers, 0, width), nan=width).astype(np.int64)
    places += odd
    places += np.arange(rows)[:, None] * (width + 2)
    # What a magnitude reaches, the last of its equals reaches too: one more is above them all.
    magnitudes += odd.astype(np.uint32)
    return np.asarray(magnitudes > np.take(edges.reshape(-1), places))


def _ranks_by_order(values: Matrix) -> Matrix:
    width = values.shape[1]
    magnitudes = np.abs(values)
    order = np.argsort(magnitudes, axis=1, kind="stable")
    ordered = np.take_along_axis(magnitudes, order, axis=1)
    places = np.arange(width)
    begins, ends = np.ones(values.shape, bool), np.ones(values.shape, bool)
    begins[:, 1:] = ends[:, :-1] = ordered[:, 1:] != ordered[:, :-1]
    first = np.maximum.accumulate(np.where(begins, places, 0), axis=1)
    last = np.minimum.accumulate(np.where(ends, places, width)[:, ::-1], axis=1)[:, ::-1]
    found = np.empty(values.shape, np.int64)
    np.put_along_axis(found, order, np.where(order & 1, last, first), axis=1)
    return found


def emit_ranks(triple: str) -> str:
    """The assembly of the kernel for `ranks`: the first place in order of a magnitude, or of the next above it."""
    made = module(triple)
    w = Writer(made, "pass", RANKS)
    b = w.b
    rows, width, values, ordered, found = w.arguments

    def row(r: Value) -> None:
        begin = b.mul(r, width)
        own, mine, out = (w.at(array, begin) for array in (values, ordered, found))

        def wanted(j: Value) -> tuple[Value, Value]:
            odd = b.and_(b.trunc(j, I32), I32(1))
            return odd, b.add(_magnitude(w, w.get(own, j)), odd)

        def last(j: Value) -> None:
            place, (odd, least) = w.get(out, j), wanted(j)
            over = b.icmp_unsigned("<", w.get(mine, b.zext(place, I64)), least)
            w.put(out, j, b.sub(b.add(place, b.zext(over, I32)), odd))

        # All searches take a step together: nothing waits for a value or for a guess which way it goes.
        w.loop(I64(0), width, lambda j: w.put(out, j, I32(0)))
        size = w.variable(width)
        head, halve, done = (w.function.append_basic_block(name) for name in ("steps", "halve", "halved"))
        b.branch(head)
        b.position_at_end(head)
        b.cbranch(b.icmp_signed(">", b.load(size), I64(1)), halve, done)
        b.position_at_end(halve)
        half = b.lshr(b.load(size), I64(1))
        step = b.trunc(half, I32)

        def search(j: Value) -> None:
            place, (_, least) = w.get(out, j), wanted(j)
            middle = b.sub(b.add(place, step), I32(1))
            below = b.icmp_unsigned("<", w.get(mine, b.zext(middle, I64)), least)
            w.put(out, j, b.add(place, b.and_(b.sext(below, I32), step)))

        w.loop(I64(0), width, search)
        b.store(b.sub(b.load(size), half), size)
        b.branch(head)
        b.position_at_end(done)
        w.loop(I64(0), width, last)

    w.loop(I64(0), rows, row)
    b.ret_void()
    return assembly(made)


def emit_above(triple: str) -> str:
    """The assembly of the kernel for `above`.

    The values of a row fall into bins by the upper bits of their magnitudes, and the counts of the bins bound every
    rank. Where the bounds do not decide, values are counted: few in the whole row, others in their bin, whose values
    are brought together for that. A row that would take too long so, as most of its values are in one bin, is left.
    """
    made = module(triple)
    count = _counter(made)
    w = Writer(made, "pass", ABOVE)
    b = w.b
    rows, width, all_values, all_numbers, found, left, _, _, places, least, floors, *room = w.arguments
    _, undecided, gathered = room

    def bounds(j: Value) -> tuple[Value, Value]:
        place = b.zext(w.get(places, j), I64)
        return w.get(least, place), w.get(least, b.add(place, I64(1)))

    def row(r: Value) -> None:
        begin = b.mul(r, width)
        values, numbers, out = (w.at(array, begin) for array in (all_values, all_numbers, found))
        _bin(w, values)
        number = w.variable(I64(0))

        def decide(j: Value) -> None:
            place = b.zext(w.get(places, j), I64)
            wanted = w.get(numbers, j)
            reached = b.fcmp_ordered(">", w.get(floors, place), wanted)
            possible = b.fcmp_ordered(">", w.get(floors, b.add(place, I64(1))), wanted)
            w.put(out, j, b.zext(reached, I8))
            w.put(undecided, b.load(number), b.trunc(j, I32))
            w.add(number, b.zext(b.and_(possible, b.not_(reached)), I64))

        w.loop(I64(0), width, decide)
        several = b.load(number)

        def settle(rank: Callable[[Value, Value], Value]) -> None:
            def one(k: Value) -> None:
                place = w.get(undecided, k)
                j, odd = b.sext(place, I64), b.and_(place, I32(1))
                limit = b.sub(b.add(_magnitude(w, w.get(values, j)), odd), I32(1))
                from_one = b.add(b.sub(rank(j, limit), odd), I32(1))
                reached = b.fcmp_ordered(">", b.sitofp(from_one, F32), w.get(numbers, j))
                w.put(out, j, b.zext(reached, I8))

            w.loop(I64(0), several, one)

        def in_bin(j: Value, limit: Value) -> Value:
            low, high = bounds(j)
            size = b.and_(b.add(b.sub(high, low), I32(LANES - 1)), I32(-LANES))
            return b.add(low, b.call(count, [w.at(gathered, b.sext(low, I64)), b.sext(size, I64), limit]))

        def cost(k: Value) -> None:
            low, high = bounds(b.sext(w.get(undecided, k), I64))
            w.add(others, b.sext(b.sub(high, low), I64))

        w.put(left, r, I8(0))
        with b.if_else(b.icmp_signed("<=", several, I64(FEW))) as (few, many):
            with few:
                settle(lambda j, limit: b.call(count, [values, width, limit]))
            with many:
                others = w.variable(I64(0))
                w.loop(I64(0), several, cost)
                quick = b.icmp_signed("<=", b.load(others), b.mul(width, I64(LONG)))
                w.put(left, r, b.zext(b.not_(quick), I8))
                with b.if_then(quick):
                    _gather(w, values)
                    settle(in_bin)

    w.loop(I64(0), rows, row)
    b.ret_void()
    return assembly(made)


def _bin(w: Writer, values: Value) -> None:
    """The bin of each value of a row, and of each bin the least rank of its values."""
    b = w.b
    _, width, _, _, _, _, shift, bins, places, least, floors, *_ = w.arguments
    largest, zeros = w.variable(I32(0)), w.variable(I32(0))

    def look(j: Value) -> None:
        bits = _magnitude(w, w.get(values, j))
        b.store(w.larger(b.load(largest), bits), largest)
        w.add(zeros, b.zext(b.icmp_signed("==", bits, I32(0)), I32))

    w.loop(I64(0), width, look)
    last = b.sub(b.trunc(bins, I32), I32(1))
    lowest = b.sub(b.ashr(b.load(largest), shift), last)
    spare = b.add(last, I32(3))

    def place(j: Value) -> None:
        bits = _magnitude(w, w.get(values, j))
        step = w.larger(b.sub(b.ashr(bits, shift), lowest), I32(0))
        zero = b.add(spare, b.shl(b.and_(b.trunc(j, I32), I32(SPARE - 1)), I32(1)))
        w.put(places, j, b.trunc(b.select(b.icmp_signed("==", bits, I32(0)), zero, step), I16))

    w.loop(I64(0), width, place)
    w.loop(I64(0), b.add(bins, I64(2 + 2 * SPARE)), lambda k: w.put(least, k, I32(0)))

    def add(j: Value) -> None:
        entry = w.at(least, b.zext(w.get(places, j), I64))
        b.store(b.add(b.load(entry), I32(1)), entry)

    w.loop(I64(0), width, add)
    passed = w.variable(b.load(zeros))

    def bound(k: Value) -> None:
        several = w.get(least, k)
        w.put(least, k, b.load(passed))
        w.add(passed, several)

    w.loop(I64(0), bins, bound)
    w.put(least, bins, b.load(passed))
    w.loop(
        I64(0),
        b.add(bins, I64(1)),
        lambda k: w.put(floors, k, b.sitofp(b.add(w.get(least, k), I32(1)), F32)),
    )
    # A zero's rank is known: that of the first of them, at odd places of the last.
    for k in range(SPARE):
        rank = b.sitofp(b.load(zeros), F32) if k % 2 else F32(1.0)
        for side in range(2):
            w.put(floors, b.add(bins, I64(2 + 2 * k + side)), rank)


def _gather(w: Writer, values: Value) -> None:
    """The magnitudes of a row in order of their bins, after as many places as there are zeros, which nobody counts."""
    b = w.b
    _, width, _, _, _, _, _, bins, places, least, _, cursors, _, gathered = w.arguments
    w.loop(I64(0), b.add(bins, I64(1)), lambda k: w.put(cursors, k, w.get(least, k)))
    for k in range(SPARE):
        w.put(cursors, b.add(bins, I64(2 + 2 * k)), I32(0))

    def move(j: Value) -> None:
        entry = w.at(cursors, b.zext(w.get(places, j), I64))
        at = b.load(entry)
        w.put(gathered, b.sext(at, I64), _magnitude(w, w.get(values, j)))
        b.store(b.add(at, I32(1)), entry)

    w.loop(I64(0), width, move)
    # Vectors may reach beyond a bin, where everything is larger.
    for k in range(LANES):
        w.put(gathered, b.add(width, I64(k)), I32(MAGNITUDE))


def _counter(made: Any) -> Any:
    """A function: how many of the first `size` bit patterns have a magnitude of at most `limit`."""
    w = Writer(made, "count", ("i32*", "i64", "i32"), "i32")
    b = w.b
    values, size, limit = w.arguments
    lanes = w.variable(w.splat(I32(0), LANES))
    limits, masks = w.splat(limit, LANES), w.splat(I32(MAGNITUDE), LANES)
    whole = b.and_(size, I64(-LANES))

    def some(k: Value) -> None:
        bits = b.and_(w.get_lanes(values, k, LANES), masks)
        b.store(b.sub(b.load(lanes), b.sext(b.icmp_signed("<=", bits, limits), limits.type)), lanes)

    def one(k: Value) -> None:
        within = b.icmp_signed("<=", _magnitude(w, w.get(values, k)), limit)
        w.add(total, b.zext(within, I32))

    w.loop(I64(0), whole, some, LANES)
    total = w.variable(w.sum_of(b.load(lanes)))
    w.loop(whole, size, one)
    b.ret(b.load(total))
    return w.function


def _magnitude(w: Writer, bits: Value) -> Value:
    return w.b.and_(bits, I32(MAGNITUDE))
