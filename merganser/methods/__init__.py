"""Methods and steps: the formulas of papers, written in the algebra. One short file each."""

from merganser.methods.registry import Mergekit, Method, Parameter, PerModel, all_methods, broken, get, method
from merganser.methods.steps import Step, all_steps, get_step, step

__all__ = [
    "Mergekit",
    "Method",
    "Parameter",
    "PerModel",
    "Step",
    "all_methods",
    "all_steps",
    "broken",
    "get",
    "get_step",
    "method",
    "step",
]
