"""How weights are computed: plan, check, fuse, stream, seal."""

from merganser.engine.execute import Report, compute, compute_all, evaluate, explain, save, small_files
from merganser.engine.options import SaveOptions

__all__ = ["Report", "SaveOptions", "compute", "compute_all", "evaluate", "explain", "save", "small_files"]
