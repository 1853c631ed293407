"""Scoring models on suites of tasks, with results per sample. Names are loaded when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from merganser.evaluate.lm_eval import read_lm_eval
    from merganser.evaluate.metrics import headline, metrics_of
    from merganser.evaluate.results import Results, TaskResult, read_results
    from merganser.evaluate.run import evaluate, evaluate_into
    from merganser.evaluate.suite import Suite
    from merganser.evaluate.task import Task

_HOMES = {
    "Results": "results",
    "Suite": "suite",
    "Task": "task",
    "TaskResult": "results",
    "evaluate": "run",
    "evaluate_into": "run",
    "headline": "metrics",
    "metrics_of": "metrics",
    "read_lm_eval": "lm_eval",
    "read_results": "results",
}
__all__ = [
    "Results",
    "Suite",
    "Task",
    "TaskResult",
    "evaluate",
    "evaluate_into",
    "headline",
    "metrics_of",
    "read_lm_eval",
    "read_results",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)
