"""How one element is loaded, computed and stored: LLVM instructions for each dtype and each operation.

Values are `float` (or `double` in wide programs) and `i1` for conditions. Nothing here may be re-associated or
contracted into a fused multiply-add: the bytes must be the same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

from llvmlite import ir

I1, I8, I16, I32, I64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
F16, F32, F64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()
STORAGE = {"F64": F64, "F32": F32, "F16": F16, "BF16": I16, "F8_E4M3": I8, "F8_E5M2": I8, "BOOL": I8}
"""The memory type of each dtype that is computed with."""
BITS = {"F64": I64, "F32": I32, "F16": I16, "BF16": I16, "F8_E4M3": I8, "F8_E5M2": I8}
FINITE = {
    "F64": 0x7FF0000000000000,
    "F32": 0x7F800000,
    "F16": 0x7C00,
    "BF16": 0x7F80,
    "F8_E4M3": 0x7F,
    "F8_E5M2": 0x7C,
}
"""Bits that are all set exactly in values that are not finite."""

Value = Any
Builder: TypeAlias = Any


def widen(b: Builder, stored: Value, dtype: str, to: ir.Type) -> Value:
    """A stored element as `float` or `double`, exactly; a bool as a condition."""
    if dtype == "BOOL":
        return b.icmp_unsigned("!=", stored, I8(0))
    if dtype == "F64":
        return stored
    if dtype == "F32":
        value = stored
    elif dtype == "F16":
        value = b.fpext(stored, F32)
    elif dtype == "BF16":
        value = b.bitcast(b.shl(b.zext(stored, I32), I32(16)), F32)
    elif dtype == "F8_E5M2":
        half = b.bitcast(b.shl(b.zext(stored, I16), I16(8)), F16)
        value = b.fpext(half, F32)
    else:
        value = _widen_e4m3(b, stored)
    return b.fpext(value, to) if to is F64 else value


def narrow(b: Builder, value: Value, dtype: str) -> Value:
    """`float` or `double` rounded once to the memory type of `dtype` (to nearest, ties to even)."""
    wide = value.type == F64
    if dtype == "F64":
        return value if wide else b.fpext(value, F64)
    if dtype == "F32":
        return b.fptrunc(value, F32) if wide else value
    single = _to_odd(b, value) if wide else value
    if dtype == "F16":
        return b.fptrunc(single, F16)
    if dtype == "BF16":
        return b.trunc(b.lshr(_round_bf16(b, single), I32(16)), I16)
    bits = b.bitcast(single, I32)
    if dtype == "F8_E4M3":
        return _narrow_f8(b, bits, mantissa=3, bias=7, top=0x43F00000, over=0x7F, infinity=0x7F)
    return _narrow_f8(b, bits, mantissa=2, bias=15, top=0x47800000, over=0x7C, infinity=0x7C)


def narrow_checked(b: Builder, value: Value, dtype: str) -> tuple[Value, Value]:
    """`narrow`, and an i1: whether the result is NaN or Inf."""
    if dtype != "BF16":
        stored = narrow(b, value, dtype)
        return stored, not_finite(b, stored, dtype)
    bits = _round_bf16(b, _to_odd(b, value) if value.type == F64 else value)
    # In 32 bits, as the count is: a narrower condition would be widened again.
    bad = b.icmp_unsigned("==", b.and_(bits, I32(0x7F800000)), I32(0x7F800000))
    return b.trunc(b.lshr(bits, I32(16)), I16), bad


def _round_bf16(b: Builder, single: Value) -> Value:
    """f32 bits whose upper half is the value rounded to bfloat16."""
    bits = b.bitcast(single, I32)
    odd = b.and_(b.lshr(bits, I32(16)), I32(1))
    rounded = b.add(bits, b.add(odd, I32(0x7FFF)))
    return b.select(b.fcmp_unordered("uno", single, single), b.or_(bits, I32(0x400000)), rounded)


def not_finite(b: Builder, stored: Value, dtype: str) -> Value:
    """i1: whether a stored element is NaN or Inf."""
    bits = stored if stored.type == BITS[dtype] else b.bitcast(stored, BITS[dtype])
    mask = BITS[dtype](FINITE[dtype])
    return b.icmp_unsigned("==", b.and_(bits, mask), mask)


def magnitude_bits(b: Builder, value: Value) -> Value:
    """The bits of |value|: as integers they are ordered as the magnitudes are, NaN above all."""
    if value.type == F64:
        return b.and_(b.bitcast(value, I64), I64(0x7FFFFFFFFFFFFFFF))
    return b.and_(b.bitcast(value, I32), I32(0x7FFFFFFF))


def random_bits(b: Builder, index: Value, key0: Value, key1: Value) -> Value:
    """24 random bits: a keyed hash of the element's index.

    Two rounds of xor-shift and multiplication (the constants of lowbias32), one half of the key before each. It is
    far cheaper than Philox in vector registers; docs/decisions/0004-random-draws.md has the tests of its quality.
    """
    x = b.xor(index, key0)
    x = b.xor(x, b.lshr(x, I32(16)))
    x = b.mul(x, I32(0x21F0AAAD))
    x = b.xor(x, b.lshr(x, I32(15)))
    x = b.add(x, key1)
    x = b.mul(x, I32(0xD35A2D97))
    x = b.xor(x, b.lshr(x, I32(15)))
    return b.lshr(x, I32(8))


def uniform(b: Builder, bits: Value, to: ir.Type) -> Value:
    """Random bits as a number in [0, 1)."""
    return b.fmul(b.sitofp(bits, to), to(2.0**-24))


def least_draw(b: Builder, bound: Value) -> Value:
    """The least random bits whose number is >= `bound`, 2**24 where none is (NaN too). Exact."""
    wide = bound if bound.type == F64 else b.fpext(bound, F64)
    ceil = b.module.declare_intrinsic("llvm.ceil", [F64])
    least = b.call(ceil, [b.fmul(wide, F64(2.0**24))])
    least = b.select(b.fcmp_ordered("<", least, F64(0.0)), F64(0.0), least)
    least = b.select(b.fcmp_ordered("<=", least, F64(2.0**24)), least, F64(2.0**24))
    return b.fptosi(least, I32)


def operation(b: Builder, name: str, arguments: list[Value], to: ir.Type) -> Value:
    """One operation of algebra/operations on elements."""
    return _OPERATIONS[name](b, to, *arguments)


def as_float(b: Builder, value: Value, to: ir.Type) -> Value:
    """Conditions count as 0 and 1 in arithmetic."""
    return b.uitofp(value, to) if value.type == I1 else value


def as_condition(b: Builder, value: Value, to: ir.Type) -> Value:
    """Numbers count as true unless zero."""
    return value if value.type == I1 else b.fcmp_unordered("!=", value, to(0.0))


def _arithmetic(method: str) -> Callable[..., Value]:
    def emit(b: Builder, to: ir.Type, x: Value, y: Value) -> Value:
        return getattr(b, method)(as_float(b, x, to), as_float(b, y, to))

    return emit


def _comparison(symbol: str, b: Builder, to: ir.Type, x: Value, y: Value) -> Value:
    compare = b.fcmp_unordered if symbol == "!=" else b.fcmp_ordered
    return compare(symbol, as_float(b, x, to), as_float(b, y, to))


def _logic(method: str) -> Callable[..., Value]:
    def emit(b: Builder, to: ir.Type, x: Value, y: Value) -> Value:
        return getattr(b, method)(as_condition(b, x, to), as_condition(b, y, to))

    return emit


def _where(b: Builder, to: ir.Type, condition: Value, x: Value, y: Value) -> Value:
    return b.select(as_condition(b, condition, to), as_float(b, x, to), as_float(b, y, to))


def _choose(symbol: str, b: Builder, to: ir.Type, x: Value, y: Value) -> Value:
    x, y = as_float(b, x, to), as_float(b, y, to)
    nan = b.fcmp_unordered("uno", x, x)
    return b.select(b.or_(nan, b.fcmp_ordered(symbol, x, y)), x, y)


def _sign(b: Builder, to: ir.Type, x: Value) -> Value:
    x = as_float(b, x, to)
    below = b.select(
        b.fcmp_ordered("<", x, to(0.0)), to(-1.0), b.select(b.fcmp_ordered("==", x, to(0.0)), to(0.0), x)
    )
    return b.select(b.fcmp_ordered(">", x, to(0.0)), to(1.0), below)


def _abs(b: Builder, to: ir.Type, x: Value) -> Value:
    x = as_float(b, x, to)
    bits, mask = (I64, 0x7FFFFFFFFFFFFFFF) if to is F64 else (I32, 0x7FFFFFFF)
    return b.bitcast(b.and_(b.bitcast(x, bits), bits(mask)), to)


def _sqrt(b: Builder, to: ir.Type, x: Value) -> Value:
    function = b.module.declare_intrinsic("llvm.sqrt", [to])
    return b.call(function, [as_float(b, x, to)])


_OPERATIONS: dict[str, Callable[..., Value]] = {
    "add": _arithmetic("fadd"),
    "sub": _arithmetic("fsub"),
    "mul": _arithmetic("fmul"),
    "div": _arithmetic("fdiv"),
    "neg": lambda b, to, x: b.fneg(as_float(b, x, to)),
    "abs": _abs,
    "sqrt": _sqrt,
    "sign": _sign,
    "minimum": partial(_choose, "<"),
    "maximum": partial(_choose, ">"),
    "lt": partial(_comparison, "<"),
    "le": partial(_comparison, "<="),
    "gt": partial(_comparison, ">"),
    "ge": partial(_comparison, ">="),
    "eq": partial(_comparison, "=="),
    "ne": partial(_comparison, "!="),
    "and": _logic("and_"),
    "or": _logic("or_"),
    "not": lambda b, to, x: b.not_(as_condition(b, x, to)),
    "where": _where,
}


def _widen_e4m3(b: Builder, stored: Value) -> Value:
    """Shift exponent and mantissa into place and let a multiplication re-bias them (exact, subnormals too)."""
    bits = b.zext(stored, I32)
    magnitude = b.and_(bits, I32(0x7F))
    small = b.bitcast(b.shl(magnitude, I32(20)), F32)
    scaled = b.fmul(small, F32(2.0**120))
    value = b.select(b.icmp_unsigned("==", magnitude, I32(0x7F)), F32(float("nan")), scaled)
    sign = b.shl(b.and_(bits, I32(0x80)), I32(24))
    return b.bitcast(b.or_(b.bitcast(value, I32), sign), F32)


def _narrow_f8(
    b: Builder, bits: Value, *, mantissa: int, bias: int, top: int, over: int, infinity: int
) -> Value:
    """f32 bits to 8 bits. `top` is the first magnitude that is `over` the range without rounding.

    Normal results: re-bias, add half a unit (less one when even), shift. Subnormal results: adding a power of two whose
    unit is the smallest subnormal leaves the rounded mantissa in the low bits.
    """
    shift = 23 - mantissa
    sign = b.and_(b.lshr(bits, I32(24)), I32(0x80))
    magnitude = b.and_(bits, I32(0x7FFFFFFF))
    odd = b.and_(b.lshr(magnitude, I32(shift)), I32(1))
    rebias = ((bias - 127) << 23) + (1 << (shift - 1)) - 1
    normal = b.lshr(b.add(b.add(magnitude, I32(rebias)), odd), I32(shift))
    anchor = (127 + 23 + 1 - bias - mantissa) << 23
    lifted = b.fadd(b.bitcast(magnitude, F32), b.bitcast(I32(anchor), F32))
    subnormal = b.sub(b.bitcast(lifted, I32), I32(anchor))
    smallest_normal = (128 - bias) << 23
    result = b.select(b.icmp_unsigned("<", magnitude, I32(smallest_normal)), subnormal, normal)
    result = b.select(b.icmp_unsigned(">=", magnitude, I32(top)), I32(over), result)
    result = b.select(b.icmp_unsigned("==", magnitude, I32(0x7F800000)), I32(infinity), result)
    result = b.select(b.icmp_unsigned(">", magnitude, I32(0x7F800000)), I32(0x7F), result)
    return b.trunc(b.or_(result, sign), I8)


def _to_odd(b: Builder, value: Value) -> Value:
    """f64 to f32 rounded to odd, so that rounding again to a shorter type is as rounding once."""
    nearest = b.fptrunc(value, F32)
    back = b.fpext(nearest, F64)
    bits = b.bitcast(nearest, I32)
    away = b.fcmp_ordered(">", _abs(b, F64, back), _abs(b, F64, value))
    toward_zero = b.select(away, b.sub(bits, I32(1)), bits)
    exact = b.fcmp_unordered("==", back, value)
    return b.bitcast(b.select(exact, bits, b.or_(toward_zero, I32(1))), F32)
