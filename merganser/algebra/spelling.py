"""What Python and NumPy would do in silence with lazy values, and how it is spelled instead.

An expression is no number and no array before it is computed, so it has no truth value, no length, no float. Python
would still go on: every object is true, `max(a, b)` gives whichever comes first, NumPy makes an array of objects.
NumPy's elementwise functions that the engine has are applied; everything else is a `SpellingError` that names the way
it works.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from merganser.errors import SpellingError

UFUNCS: Mapping[str, str] = {
    "add": "add",
    "subtract": "sub",
    "multiply": "mul",
    "divide": "div",
    "true_divide": "div",
    "negative": "neg",
    "absolute": "abs",
    "fabs": "abs",
    "sqrt": "sqrt",
    "sign": "sign",
    "minimum": "minimum",
    "maximum": "maximum",
    "less": "lt",
    "less_equal": "le",
    "greater": "gt",
    "greater_equal": "ge",
    "equal": "eq",
    "not_equal": "ne",
    "logical_and": "and",
    "logical_or": "or",
    "logical_not": "not",
}
"""NumPy's name of an elementwise function, and that of the operation."""
_SPELLED = {
    "where": "mg.where(condition, a, b)",
    "clip": "mg.clip(x, low, high)",
    "sum": "mg.total(x)",
    "mean": "mg.total(x) / x.size",
    "norm": "mg.norm(x)",
    "dot": "mg.dot(x, y)",
    "vdot": "mg.dot(x, y)",
    "inner": "mg.dot(x, y)",
    "abs": "mg.absolute(x)",
    "max": "mg.largest(x), the largest magnitude",
    "amax": "mg.largest(x), the largest magnitude",
    "square": "x * x",
    "power": "x * x",
    "float_power": "x * x",
    "astype": "mg.cast(x, dtype)",
    "round": "mg.cast(x, dtype)",
    "bitwise_and": "a & b",
    "bitwise_or": "a | b",
    "invert": "~a",
    "concatenate": "mg.axes",
    "array_equal": "`merganser diff A B`, or a is b",
}
COMPUTE = "mg.compute(weights, name) gives a tensor as a NumPy array"
SCALARS = "mg.compute_scalars({name: [x]}, weights.checkpoints) gives the numbers of norms and dot products"
TRUTH = (
    "for `and`, `or`, `not` write a & b, a | b, ~a; for `y if x else z` mg.where(x, y, z); for 0 < x < 1 "
    "(x > 0) & (x < 1); for max(x, y) and min(x, y) mg.maximum(x, y) and mg.minimum(x, y)"
)


def no_truth(what: str, more: str = "") -> NoReturn:
    """`bool()`, and with it `if`, `and`, `or`, `not`, chained comparisons, `max`, `min`, `sorted`, `in` a list."""
    raise SpellingError(f"{what} is neither true nor false before it is computed: {TRUTH}{more}")


def no_number(what: str, word: str, spelled: str) -> NoReturn:
    """`float()`, `int()`, `len()`, `round()` and what calls them, as the functions of `math` do."""
    raise SpellingError(f"{what} has no {word} before it is computed: {spelled}")


def no_function(what: str, name: str) -> NoReturn:
    """A function of NumPy that is not one of the engine's."""
    spelled = _SPELLED.get(name)
    use = f"write {spelled}" if spelled else COMPUTE
    raise SpellingError(f"np.{name} cannot work on {what}, which is not computed yet: {use}")


def no_array(what: str) -> NoReturn:
    """`np.array`, `np.asarray` and the functions that call it."""
    raise SpellingError(f"{what} is no array before it is computed: {COMPUTE}")


def is_array(value: Any) -> bool:
    """Whether a value is an array of NumPy's (or another's) rather than a number."""
    return hasattr(value, "__array__") and bool(getattr(value, "shape", ()))
