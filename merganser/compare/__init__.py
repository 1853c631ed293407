"""Comparing checkpoints: what weights have in common, and how results on the same samples differ."""

from merganser.compare.comparison import compare
from merganser.compare.diagnosis import between_models, diagnose, mean_of
from merganser.compare.page import page
from merganser.compare.result_page import comparison_page
from merganser.compare.samples import Run, Samples, read_run

__all__ = [
    "Run",
    "Samples",
    "between_models",
    "compare",
    "comparison_page",
    "diagnose",
    "mean_of",
    "page",
    "read_run",
]
