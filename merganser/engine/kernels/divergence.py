"""The divergence KL(p || q) of rows, p and q their softmax plus a little, where p and q are close: by a series.

Operations and their order are those of NumPy on whole rows: exponentials by the same rational approximation, sums in
pairs of blocks with eight accumulators.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from merganser.engine.kernels import compiler
from merganser.engine.kernels.elements import F32, I8, I32, I64
from merganser.engine.kernels.writing import Value, Writer, assembly, module

LANES = 8
BLOCK = 128
"""Elements that eight accumulators add up; longer stretches are halved."""
DEEPEST = -80.0
"""A row that reaches further below its largest value has exponentials near the end of f32: it is left."""
NUMERATOR = (5.082762527590693718096e-04, 6.757896990527504603057e-03, 5.114512081637298353406e-02,
             2.473615434895520810817e-01, 7.257664613233124478488e-01, 9.999999999980870924916e-01)  # fmt: skip
DENOMINATOR = (2.159509375685829852307e-02, -2.742335390411667452936e-01, 1.0)
"""exp(x) for |x| < log(2) / 2 as a quotient of polynomials, highest power first."""
LOG2 = (-6.93145752e-1, -1.42860677e-6)
"""-log(2) in two parts."""
ROUND = 12582912.0
"""1.5 * 2**23: what is added to it and taken off again is rounded to an integer."""
Matrix = np.ndarray[Any, Any]


def divergence(
    model: Matrix, origin: Matrix, eps: float, near: float, series: Sequence[float]
) -> tuple[Matrix, Matrix]:
    """KL of each row of f32, and whether the row was left, as p and q differ by more than the share `near` of q.

    `series` are the factors of the powers of r = p / q - 1 in the divergence's term (p - q) r (...), the highest first.
    """
    rows, width = model.shape
    model, origin = np.ascontiguousarray(model), np.ascontiguousarray(origin)
    found, left, room = np.empty(rows, np.float32), np.empty(rows, bool), np.empty((2, width), np.float32)
    factors = np.array(series, np.float32)
    arguments = ("i64", "i64", "f32*", "f32*", "f32", "f32", "f32*", "f32*", "i8*", "f32*", "f32*")
    function = compiler.routine(
        f"divergence {len(series)}", arguments, lambda triple: emit(triple, arguments, len(series))
    )
    inputs = model.ctypes.data, origin.ctypes.data, eps, near, factors.ctypes.data
    function(
        rows, width, *inputs, found.ctypes.data, left.ctypes.data, room[0].ctypes.data, room[1].ctypes.data
    )
    return found, left


def emit(triple: str, arguments: Sequence[str], terms: int) -> str:
    """The assembly of `pass`."""
    made = module(triple)
    add_up = _pairs(made)
    w = Writer(made, "pass", arguments)
    b = w.b
    rows, width, model, origin, eps, near, series, found, left, p, q = w.arguments
    factors = [w.get(series, I64(k)) for k in range(terms)]
    fabs = made.declare_intrinsic("llvm.fabs", [F32])

    def row(r: Value) -> None:
        begin = b.mul(r, width)
        reaches = [_exponentials(w, w.at(values, begin), out) for values, out in ((model, p), (origin, q))]
        sums = [b.call(add_up, [out, width]) for out in (p, q)]
        far = w.variable(I32(0))

        def one(j: Value) -> None:
            share = b.fdiv(w.get(q, j), sums[1])
            change = b.fsub(b.fdiv(w.get(p, j), sums[0]), share)
            share = b.fadd(share, eps)
            close = b.fcmp_ordered("<=", b.call(fabs, [change]), b.fmul(near, share))
            b.store(b.or_(b.load(far), b.zext(b.not_(close), I32)), far)
            ratio = b.fdiv(change, share)
            term = b.fmul(ratio, factors[0])
            for factor in factors[1:-1]:
                term = b.fmul(b.fadd(term, factor), ratio)
            term = b.fmul(b.fmul(b.fadd(term, factors[-1]), ratio), change)
            w.put(p, j, term)

        w.loop(I64(0), width, one)
        w.put(found, r, b.call(add_up, [p, width]))
        inside = b.and_(*(b.fcmp_ordered(">=", reach, F32(DEEPEST)) for reach in reaches))
        done = b.and_(inside, b.icmp_signed("==", b.load(far), I32(0)))
        w.put(left, r, b.zext(b.not_(done), I8))

    w.loop(I64(0), rows, row)
    b.ret_void()
    return assembly(made)


def _exponentials(w: Writer, values: Value, out: Value) -> Value:
    """exp(value - largest) of a row. Returns the smallest value less the largest."""
    b = w.b
    width = w.arguments[1]
    # As integers floats can be compared in vectors: those of negative ones are turned round.
    largest, smallest = w.variable(I32(-0x80000000)), w.variable(I32(0x7FFFFFFF))

    def look(j: Value) -> None:
        place = _turned(w, b.bitcast(w.get(values, j), I32))
        b.store(w.larger(b.load(largest), place), largest)
        b.store(w.smaller(b.load(smallest), place), smallest)

    w.loop(I64(0), width, look)
    top, bottom = (b.bitcast(_turned(w, b.load(place)), F32) for place in (largest, smallest))

    def polynomial(factors: Sequence[float], x: Value) -> Value:
        total: Value = F32(factors[0])
        for factor in factors[1:]:
            total = b.fma(total, x, F32(factor))
        return total

    def one(j: Value) -> None:
        x = b.fsub(w.get(values, j), top)
        power = b.fsub(b.fadd(b.fmul(x, F32(float(np.float32(np.log2(np.e))))), F32(ROUND)), F32(ROUND))
        for part in LOG2:
            x = b.fma(power, F32(part), x)
        quotient = b.fdiv(polynomial(NUMERATOR, x), polynomial(DENOMINATOR, x))
        exponent = b.shl(b.fptosi(power, I32), I32(23))
        w.put(out, j, b.bitcast(b.add(b.bitcast(quotient, I32), exponent), F32))

    reach = b.fsub(bottom, top)
    with b.if_then(b.fcmp_ordered(">=", reach, F32(DEEPEST))):
        w.loop(I64(0), width, one)
    return reach


def _turned(w: Writer, bits: Value) -> Value:
    return w.b.xor(bits, w.b.lshr(w.b.ashr(bits, I32(31)), I32(1)))


def _pairs(made: Any) -> Any:
    """A function: the sum of some values."""
    w = Writer(made, "sum", ("f32*", "i64"), "f32")
    b = w.b
    values, size = w.arguments

    def tail(first: Value, total: Value) -> Value:
        held = w.variable(total)
        w.loop(first, size, lambda k: b.store(b.fadd(b.load(held), w.get(values, k)), held))
        return b.load(held)

    with b.if_then(b.icmp_signed("<", size, I64(LANES))):
        b.ret(tail(I64(0), F32(-0.0)))
    with b.if_then(b.icmp_signed("<=", size, I64(BLOCK))):
        lanes = w.variable(w.get_lanes(values, I64(0), LANES))
        whole = b.and_(size, I64(-LANES))
        w.loop(
            I64(LANES),
            whole,
            lambda k: b.store(b.fadd(b.load(lanes), w.get_lanes(values, k, LANES)), lanes),
            LANES,
        )
        parts = [b.extract_element(b.load(lanes), I32(k)) for k in range(LANES)]
        while len(parts) > 1:
            parts = [b.fadd(parts[k], parts[k + 1]) for k in range(0, len(parts), 2)]
        b.ret(tail(whole, parts[0]))
    half = b.and_(b.lshr(size, I64(1)), I64(-LANES))
    first = b.call(w.function, [values, half])
    b.ret(b.fadd(first, b.call(w.function, [w.at(values, half), b.sub(size, half)])))
    return w.function
