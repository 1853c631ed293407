"""Scoring models on suites of tasks, with results per sample. Names are loaded when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merganser._lazy import lazy

if TYPE_CHECKING:
    from merganser.evaluate.ensembles import ensemble
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
    "ensemble": "ensembles",
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
    "ensemble",
    "evaluate",
    "evaluate_into",
    "headline",
    "metrics_of",
    "read_lm_eval",
    "read_results",
]

__getattr__ = lazy(__name__, _HOMES)
