"""merganser: trained weights are data.

>>> import merganser as mg
>>> base, math, code = mg.open("base"), mg.open("math"), mg.open("code")
>>> w = base + 0.6 * mg.trim(math - base, density=0.2) + 0.4 * (code - base)
>>> w.save("out")

Names are loaded when first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from merganser._version import __version__

if TYPE_CHECKING:
    import merganser.algebra.axes as axes
    from merganser._facade import compute, compute_scalars, explain, open, save, verify
    from merganser.algebra import (
        Expression,
        Weights,
        absolute,
        cast,
        clip,
        disjoint_mean,
        dot,
        elect_sign,
        kth_magnitude,
        l1_norm,
        largest,
        maximum,
        mean,
        minimum,
        norm,
        random_drop,
        sign,
        slerp,
        sqrt,
        total,
        trim,
        trim_band,
        weighted_sum,
        where,
    )
    from merganser.engine import Report, SaveOptions
    from merganser.errors import MerganserError

_HOMES = {
    "merganser._facade": ("open", "save", "explain", "compute", "compute_scalars", "verify"),
    "merganser.algebra": (
        "Expression",
        "Weights",
        "absolute",
        "cast",
        "clip",
        "disjoint_mean",
        "dot",
        "elect_sign",
        "kth_magnitude",
        "l1_norm",
        "largest",
        "maximum",
        "mean",
        "minimum",
        "norm",
        "random_drop",
        "sign",
        "slerp",
        "sqrt",
        "total",
        "trim",
        "trim_band",
        "weighted_sum",
        "where",
    ),
    "merganser.engine": ("Report", "SaveOptions"),
    "merganser.errors": ("MerganserError",),
}
_MODULES = {"axes": "merganser.algebra.axes"}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = [
    "Expression",
    "MerganserError",
    "Report",
    "SaveOptions",
    "Weights",
    "__version__",
    "absolute",
    "axes",
    "cast",
    "clip",
    "compute",
    "compute_scalars",
    "disjoint_mean",
    "dot",
    "elect_sign",
    "explain",
    "kth_magnitude",
    "l1_norm",
    "largest",
    "maximum",
    "mean",
    "minimum",
    "norm",
    "open",
    "random_drop",
    "save",
    "sign",
    "slerp",
    "sqrt",
    "total",
    "trim",
    "trim_band",
    "verify",
    "weighted_sum",
    "where",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        from importlib import import_module

        return import_module(_MODULES[name])
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'merganser' has no attribute {name!r}")
    from importlib import import_module

    import_module("merganser._facade")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return __all__
