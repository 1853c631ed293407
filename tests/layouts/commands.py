"""Every command on the line that a user would type, with two siblings `a` and `b` of one layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml
from on_disk import Layout

ROWS = 6


@dataclass(frozen=True)
class Case:
    """Two siblings on disk, their layout, and a folder to work in."""

    a: Path
    b: Path
    place: Path
    layout: Layout

    @property
    def out(self) -> Path:
        return self.place / "out"

    def recipe(self, document: dict) -> str:
        path = self.place / "recipe.yaml"
        path.write_text(yaml.safe_dump(document))
        return str(path)

    @property
    def models(self) -> list[dict]:
        return [{"model": str(self.a), "name": "a"}, {"model": str(self.b), "name": "b"}]

    def rows(self) -> str:
        path = self.place / "rows.jsonl"
        path.write_text("".join(f'{{"text": "the model of the day is {k}"}}\n' for k in range(ROWS)))
        return str(path)

    def suite(self) -> str:
        self.rows()
        path = self.place / "suite.yaml"
        tasks = [{"name": "text", "kind": "perplexity", "data": "rows.jsonl"}]
        path.write_text(yaml.safe_dump({"name": "s", "tasks": tasks}))
        return str(path)


def merged(case: Case) -> list[str]:
    return ["merge", case.recipe({"method": "linear", "models": case.models}), str(case.out)]


def carried(case: Case) -> list[str]:
    return ["merge", case.recipe({"method": "passthrough", "models": case.models[:1]}), str(case.out)]


def task_vector(case: Case) -> list[str]:
    document = {"method": "task_arithmetic", "base_model": str(case.a), "models": case.models[1:]}
    return ["merge", case.recipe(document), str(case.out)]


def searched(case: Case) -> list[str]:
    weight = {"weight": {"search": [0, 1]}}
    models = [case.models[0], case.models[1] | {"parameters": weight}]
    document = {"method": "linear", "models": models, "parameters": {"weight": 0.5}}
    return ["search", case.recipe(document), case.suite(), str(case.place / "out.yaml"), "--evaluations", "2"]


COMMANDS: dict[str, Callable[[Case], list[str]]] = {
    "info": lambda c: ["info", str(c.a)],
    "explain": lambda c: ["explain", *merged(c)[1:2]],
    "merge": merged,
    "carry": carried,
    "task arithmetic": task_vector,
    "diff": lambda c: ["diff", str(c.a), str(c.b)],
    "diagnose": lambda c: ["diagnose", str(c.a), str(c.b)],
    "architecture": lambda c: ["architecture", str(c.a)],
    "reshape": lambda c: ["reshape", str(c.a), str(c.out), "widen: {axis: neurons, factor: 2}"],
    "extract-lora": lambda c: ["extract-lora", str(c.a), str(c.b), str(c.out), "--rank", "2", "--allow-loss"],
    "port": lambda c: ["port", str(c.b), str(c.a), str(c.a), str(c.out)],
    "compress-patch": lambda c: ["compress-patch", str(c.b), str(c.out), "--base", str(c.a)],
}

RUNNING: dict[str, Callable[[Case], list[str]]] = {
    "evaluate": lambda c: ["evaluate", str(c.a), c.suite(), str(c.out)],
    "observe": lambda c: ["observe", str(c.a), c.rows(), str(c.out)],
    "observe-pair": lambda c: ["observe-pair", str(c.a), str(c.b), c.rows(), str(c.out)],
    "relate": lambda c: ["relate", str(c.a), str(c.b), c.rows()],
    "soup": lambda c: ["soup", str(c.a), str(c.b), str(c.place / "out.yaml"), "--suite", c.suite()],
    "search": searched,
    "rank-mixtures": lambda c: ["rank-mixtures", str(c.a), str(c.b), "--suite", c.suite()],
}
"""Commands that run the models."""
