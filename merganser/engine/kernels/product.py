"""A product of two factors, every sum over the inner index from the first to the last.

One multiplication and one addition in f32 for each, then the scale, so that the bytes do not depend on where a tile
begins, and on no BLAS library.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from merganser.engine.kernels import compiler
from merganser.engine.kernels.elements import I64
from merganser.engine.kernels.writing import Value, Writer, assembly, module

ROWS, LANES = 2, 32
"""Of the result, kept in registers while the inner index runs."""
ARGUMENTS = ("i64", "i64", "i64", "i64", "f32*", "f32*", "f32", "f32*", "f32*")
"""Rows, columns, inner size, columns of the whole result; left, right, scale, result; room for LANES columns."""
Matrix = np.ndarray[Any, Any]


def product(left: Matrix, right: Matrix, scale: float, start: int, out: Matrix) -> None:
    """Fill `out` with elements `start` and on of `scale * left @ right`, row by row. All f32, contiguous."""
    columns = right.shape[1]
    row, column = divmod(start, columns)
    done = 0
    if column:
        done = min(columns - column, len(out))
        _call(left[row:], right, column, scale, 1, done, out)
        row += 1
    rows = (len(out) - done) // columns
    if rows:
        _call(left[row:], right, 0, scale, rows, columns, out[done:])
        done += rows * columns
        row += rows
    if done < len(out):
        _call(left[row:], right, 0, scale, 1, len(out) - done, out[done:])


def _call(
    left: Matrix, right: Matrix, column: int, scale: float, rows: int, columns: int, out: Matrix
) -> None:
    function = compiler.routine("product", ARGUMENTS, emit)
    inner, width = right.shape
    room = np.empty(inner * LANES, np.float32)
    addresses = left.ctypes.data, right.ctypes.data + 4 * column
    function(rows, columns, inner, width, *addresses, scale, out.ctypes.data, room.ctypes.data)


def emit(triple: str) -> str:
    """The assembly of `pass`: LANES columns at a time, and of them ROWS rows, then what is left of both."""
    made = module(triple)
    w = Writer(made, "pass", ARGUMENTS)
    rows, columns, inner, width, _, right, _, _, room = w.arguments
    b = w.b
    whole_rows, whole_columns = b.and_(rows, I64(-ROWS)), b.and_(columns, I64(-LANES))

    def stripe(column: Value, lanes: int) -> None:
        # Side by side, as rows of the right factor that are a power of two apart would share their cache lines.
        def hold(k: Value) -> None:
            place = b.add(b.mul(k, width), column)
            w.put_lanes(room, b.mul(k, I64(lanes)), w.get_lanes(right, place, lanes))

        w.loop(I64(0), inner, hold)
        w.loop(I64(0), whole_rows, lambda row: _block(w, row, ROWS, column, lanes), ROWS)
        w.loop(whole_rows, rows, lambda row: _block(w, row, 1, column, lanes))

    w.loop(I64(0), whole_columns, lambda column: stripe(column, LANES), LANES)
    w.loop(whole_columns, columns, lambda column: stripe(column, 1))
    b.ret_void()
    return assembly(made)


def _block(w: Writer, row: Value, count: int, column: Value, lanes: int) -> None:
    """`count` rows and `lanes` columns of the result."""
    b = w.b
    _, columns, inner, _, left, _, scale, out, room = w.arguments

    def terms(k: Value) -> list[Value]:
        beside = w.get_lanes(room, b.mul(k, I64(lanes)), lanes)
        places = [b.add(b.mul(b.add(row, I64(j)), inner), k) for j in range(count)]
        return [b.fmul(w.splat(w.get(left, place), lanes), beside) for place in places]

    sums = [w.variable(term) for term in terms(I64(0))]

    def add(k: Value) -> None:
        for total, term in zip(sums, terms(k), strict=True):
            b.store(b.fadd(b.load(total), term), total)

    w.loop(I64(1), inner, add)
    for j, total in enumerate(sums):
        place = b.add(b.mul(b.add(row, I64(j)), columns), column)
        w.put_lanes(out, place, b.fmul(b.load(total), w.splat(scale, lanes)))
