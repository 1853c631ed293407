"""The table of elementwise operations: their names, what they need, and what they do to Python numbers.

The engine holds the machine form of each under the same name (engine/kernels). `on_numbers` is used where all
arguments are scalars; it computes in f64.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Operation:
    """An elementwise operation. `host_only` ones exist for scalars alone."""

    name: str
    on_numbers: Callable[..., Any]
    host_only: bool = False


def _divide(a: float, b: float) -> float:
    if b == 0.0:
        return math.nan if a == 0.0 or math.isnan(a) else math.copysign(math.inf, a) * math.copysign(1.0, b)
    return a / b


def _sign(a: float) -> float:
    return math.nan if math.isnan(a) else float((a > 0) - (a < 0))


def _guarded(function: Callable[[float], float]) -> Callable[[float], float]:
    def guarded(a: float) -> float:
        try:
            return function(a)
        except (ValueError, OverflowError):
            return math.nan

    return guarded


OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation("add", operator.add),
        Operation("sub", operator.sub),
        Operation("mul", operator.mul),
        Operation("div", _divide),
        Operation("neg", operator.neg),
        Operation("abs", abs),
        Operation("sqrt", _guarded(math.sqrt)),
        Operation("sign", _sign),
        Operation("minimum", min),
        Operation("maximum", max),
        Operation("lt", operator.lt),
        Operation("le", operator.le),
        Operation("gt", operator.gt),
        Operation("ge", operator.ge),
        Operation("eq", operator.eq),
        Operation("ne", operator.ne),
        Operation("and", lambda a, b: bool(a) and bool(b)),
        Operation("or", lambda a, b: bool(a) or bool(b)),
        Operation("not", lambda a: not a),
        Operation("where", lambda condition, a, b: a if condition else b),
        Operation("acos", _guarded(math.acos), host_only=True),
        Operation("sin", _guarded(math.sin), host_only=True),
        Operation("cos", _guarded(math.cos), host_only=True),
        Operation("exp", _guarded(math.exp), host_only=True),
        Operation("log", _guarded(math.log), host_only=True),
    )
}
