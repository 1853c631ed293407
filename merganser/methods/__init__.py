"""Methods: the formulas of papers, written in the algebra. One short file per method."""

from merganser.methods.registry import Mergekit, Method, Parameter, PerModel, all_methods, broken, get, method

__all__ = ["Mergekit", "Method", "Parameter", "PerModel", "all_methods", "broken", "get", "method"]
