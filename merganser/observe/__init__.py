"""Statistics are weights: running a model over data and keeping what merging, pruning and quantising need of it.

`observe` runs (it needs the `models` extra), `statistics` opens what it wrote (without torch).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from merganser.observe.opening import statistics
    from merganser.observe.options import KINDS
    from merganser.observe.run import Report, observe

_HOMES = {
    "KINDS": "options",
    "Report": "run",
    "observe": "run",
    "statistics": "opening",
}
__all__ = ["KINDS", "Report", "observe", "statistics"]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)
