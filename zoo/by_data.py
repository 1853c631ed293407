"""Merges that are found on validation rows: learned coefficients, a search, a soup."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.scores import Score

LOW, HIGH = 0.0, 1.0
"""Of each task vector's weight in a search."""


def found(score: Score, settings: Mapping[str, Any]) -> Any:
    """The merge, rebuilt from what was found; `by` is one of `merganser learn`'s methods, search, or soup."""
    by = str(settings["by"])
    suite = score.root / "suites" / f"{score.family}.validation.yaml"
    return {"search": _searched, "soup": _soup}.get(by, _learned)(score, suite, settings)


def _recipe(score: Score, **each: Any) -> dict[str, Any]:
    """Task arithmetic of all siblings; `each` is said of every one."""
    models = [{"model": path} | ({"parameters": each} if each else {}) for path in score.parents[1:]]
    return {"method": "task_arithmetic", "base_model": score.parents[0], "models": models}


def _built(documents: Any) -> Any:
    from merganser.recipe import build, load

    return build(load(dict(documents[-1])))[0]


def _learned(score: Score, suite: Any, settings: Mapping[str, Any]) -> Any:
    from merganser.search import learn

    return _built(learn(_recipe(score), suite, seed=score.seed, **settings).documents)


def _searched(score: Score, suite: Any, settings: Mapping[str, Any]) -> Any:
    """By CMA-ES (P058, parameter space)."""
    from merganser.search import SuiteFitness, search
    from merganser.search.space import Space

    space = Space.of([_recipe(score, weight={"search": [LOW, HIGH]})])
    found = search(space, SuiteFitness(suite), by="cma", evaluations=settings["evaluations"], seed=score.seed)
    return _built(found.documents)


def _soup(score: Score, suite: Any, settings: Mapping[str, Any]) -> Any:
    """The greedy soup of the siblings."""
    import merganser as mg
    from merganser import methods
    from merganser.search import SuiteFitness, soup

    models = [mg.open(path, name=f"model {number}") for number, path in enumerate(score.parents[1:])]
    kept = soup(models, SuiteFitness(suite)).ingredients
    return methods.get("linear")(None, [models[number] for number in sorted(kept)])
