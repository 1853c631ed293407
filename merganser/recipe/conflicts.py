"""What a recipe of TIES trims, and where signs disagree, at its own densities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from merganser.algebra import Weights
from merganser.errors import RequestError
from merganser.methods.merge.conflicts import conflicts
from merganser.recipe.build import before_steps
from merganser.recipe.experts import Mixture
from merganser.recipe.form import Recipe

METHOD = "ties"


def conflicts_of(
    recipe: Recipe | Mixture,
    *,
    seed: int | None = None,
    allow_pickle: bool = False,
    threads: int = 0,
    memory: int | None = None,
) -> list[dict[str, Any]]:
    """See `merganser.methods.merge.conflicts.conflicts`: one report for each time the recipe calls ties.

    That is once, but for slices, modules and switches that differ between tensors. Raises `RequestError` for a recipe
    of another method.
    """
    if isinstance(recipe, Mixture) or recipe.method.name != METHOD:
        name = "a mixture" if isinstance(recipe, Mixture) else recipe.method.name
        raise RequestError(
            f"{recipe.source}: --conflicts reports what {METHOD} trims and elects, and this is {name}"
        )
    calls: list[tuple[Weights, Sequence[Weights], dict[str, Any]]] = []
    function = recipe.method.function

    def noted(base: Weights, models: Sequence[Weights], **values: Any) -> Weights:
        calls.append((base, models, values))
        return function(base, models, **values)

    before_steps(
        replace(recipe, method=replace(recipe.method, function=noted)), seed=seed, allow_pickle=allow_pickle
    )
    kept = ("density", "scope")
    return [
        conflicts(
            base, models, **{k: v for k, v in values.items() if k in kept}, threads=threads, memory=memory
        )
        for base, models, values in calls
    ]
