"""How weights are computed: plan, check, fuse, stream, seal."""

from merganser.engine.execute import Report, compute, evaluate, explain, save
from merganser.engine.options import SaveOptions

__all__ = ["Report", "SaveOptions", "compute", "evaluate", "explain", "save"]
