"""Whether stored elements are finite, by their bits alone.

A value is NaN or Inf exactly where all bits of its exponent are set (in F8_E4M3: all but the sign, which is its one
NaN). So the largest of the elements' exponents tells it, and one pass of AND and maximum over a tile that was just read
runs many times faster than the tile was read.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np

from merganser.engine.kernels import compiler
from merganser.engine.kernels.elements import BITS, FINITE, I64
from merganser.engine.kernels.writing import Writer, assembly, module


def all_finite(values: memoryview | np.ndarray[Any, Any], dtype: str) -> bool:
    """Whether no element is NaN or Inf. `values` are bytes, the elements of `dtype` one after the other."""
    raw = np.frombuffer(values, np.uint8)
    largest = ctypes.c_int64()
    _routine(dtype)(len(raw) * 8 // BITS[dtype].width, raw.ctypes.data, ctypes.addressof(largest))
    return largest.value != FINITE[dtype]


@cache
def _routine(dtype: str) -> Callable[..., None]:
    pointer = f"i{BITS[dtype].width}*"
    return compiler.routine(f"exponents {dtype}", ("i64", pointer, "i64*"), partial(emit, dtype, pointer))


def emit(dtype: str, pointer: str, triple: str) -> str:
    """The assembly of `pass`: the largest exponent, as an integer, among `n` elements."""
    made = module(triple)
    w = Writer(made, "pass", ("i64", pointer, "i64*"))
    b = w.b
    n, values, out = w.arguments
    mask = BITS[dtype](FINITE[dtype])
    largest = w.variable(BITS[dtype](0))

    def one(k: Any) -> None:
        bits = b.and_(w.get(values, k), mask)
        held = b.load(largest)
        b.store(b.select(b.icmp_unsigned(">", bits, held), bits, held), largest)

    w.loop(I64(0), n, one)
    found = b.load(largest)
    w.put(out, I64(0), found if found.type == I64 else b.zext(found, I64))
    b.ret_void()
    return assembly(made)
