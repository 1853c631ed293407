"""Statistics are weights: running a model over data and keeping what merging, pruning and quantising need of it.

`observe` runs (it needs the `models` extra), `statistics` opens what it wrote (without torch).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from merganser._lazy import lazy

if TYPE_CHECKING:
    from merganser.observe.batch_norm import with_running_statistics
    from merganser.observe.opening import statistics
    from merganser.observe.options import KINDS
    from merganser.observe.run import Report, observe

_HOMES = {
    "KINDS": "options",
    "Report": "run",
    "observe": "run",
    "statistics": "opening",
    "with_running_statistics": "batch_norm",
}
__all__ = ["KINDS", "Report", "observe", "statistics", "with_running_statistics"]

__getattr__ = lazy(__name__, _HOMES)
