"""The merges that are measured: their recipes, what they read, and what the project set out to reach."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Case:
    """One merge. `parents` are the models that its method reads, each once."""

    method: str
    models: tuple[str, ...]
    most_floors: float
    """At most this many times the floor."""
    least_ratio: float
    """mergekit takes at least this many times as long."""
    base: str | None = None
    parameters: Mapping[str, float] = field(default_factory=dict)
    per_model: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def parents(self) -> tuple[str, ...]:
        """The models that are read, the base first."""
        base = (self.base,) if self.base and self.base not in self.models else ()
        return (*base, *self.models)

    def recipe(self, where: Callable[[str], object]) -> str:
        """The YAML that both tools run; `where` says where a model lies."""
        lines = [f"merge_method: {self.method}"]
        if self.base:
            lines.append(f"base_model: {where(self.base)}")
        lines.append("models:")
        for index, model in enumerate(self.models):
            lines.append(f"  - model: {where(model)}")
            if self.per_model:
                lines.append("    parameters:")
                lines += [f"      {key}: {values[index]}" for key, values in self.per_model.items()]
        if self.parameters:
            lines.append("parameters:")
            lines += [f"  {key}: {value}" for key, value in self.parameters.items()]
        lines.append("dtype: bfloat16")
        return "\n".join(lines) + "\n"


TUNED = ("alpha", "beta", "gamma")
WEIGHT = {"weight": (0.5, 0.3, 0.2)}


def _vectors(method: str, most_floors: float, least_ratio: float, **parameters: float) -> Case:
    return Case(method, TUNED, most_floors, least_ratio, base="base", parameters=parameters, per_model=WEIGHT)


CASES = {
    case.method: case
    for case in (
        Case("linear", TUNED, 1.2, 4.5, per_model=WEIGHT),
        _vectors("task_arithmetic", 1.4, 4),
        Case("slerp", ("alpha", "beta"), 1.5, 5, base="alpha", parameters={"t": 0.4}),
        _vectors("ties", 2.5, 35, density=0.2),
        _vectors("dare_linear", 2.0, 15, density=0.5),
        _vectors("dare_ties", 2.0, 15, density=0.5),
        _vectors("breadcrumbs", 2.5, 35, density=0.8, gamma=0.01),
    )
}
MEMORY_LIMIT = "256MiB"
MOST_PEAK = 400 * 10**6
"""Bytes resident at most, at that limit."""
LEAST_STARTUP_RATIO = 8
MEMORY_SLACK = 1.02
"""A model twice as large may show this much more: resident pages are counted in batches, so peaks wobble."""
