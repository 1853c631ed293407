"""What a recipe says in plain JSON, for the manifest and for `explain`: labels, settings, nothing left implicit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from merganser.recipe.form import Recipe, Slice, Source
from merganser.recipe.settings import Gradient, Setting


def canonical(recipe: Recipe) -> dict[str, Any]:
    """The recipe as a JSON document."""
    found: dict[str, Any] = {
        "form": "mergekit" if recipe.mergekit else "merganser",
        "method": recipe.method.name,
        "base": None if recipe.base is None else recipe.models[recipe.base].label,
    }
    if recipe.simple:
        only = recipe.parts[0].slices[0]
        own = {source.model: source for source in only.sources}
        found["models"] = [
            {
                "name": model.label,
                "path": model.path,
                "parameters": plain(own[i].parameters) if i in own else {},
                **(_statistics(own[i]) if i in own else {}),
            }
            for i, model in enumerate(recipe.models)
        ]
        found["merged"] = [recipe.models[source.model].label for source in only.inputs(recipe.method)]
    else:
        found["models"] = [
            {"name": model.label, "path": model.path, "parameters": {}} for model in recipe.models
        ]
        found["parts"] = [
            {
                "module": part.name,
                "parameters": plain(part.parameters),
                "slices": [_slice(recipe, one) for one in part.slices],
            }
            for part in recipe.parts
        ]
    found |= {"parameters": plain(recipe.parameters), "dtype": recipe.dtype}
    if recipe.vocabulary is not None:
        found["vocabulary"] = recipe.vocabulary.canonical
    if recipe.mismatch is not None:
        found["mismatch"] = recipe.mismatch.canonical
    if recipe.allow:
        found["allow"] = list(recipe.allow)
    if recipe.steps:
        found["steps"] = [{call.step.name: call.raw} for call in recipe.steps]
    if recipe.documents:
        found["documents"] = {name: dict(other.canonical) for name, other in recipe.documents.items()}
    return found


def _slice(recipe: Recipe, one: Slice) -> dict[str, Any]:
    return {
        "base": None if one.base is None else recipe.models[one.base].label,
        "parameters": plain(one.parameters),
        "sources": [
            {
                "model": recipe.models[source.model].label,
                "layers": None if source.layers is None else list(source.layers),
                "parameters": plain(source.parameters),
                **_statistics(source),
            }
            for source in one.sources
        ],
    }


def _statistics(source: Source) -> dict[str, str]:
    return {} if source.statistics is None else {"statistics": source.statistics}


def plain(settings: Mapping[str, Setting]) -> dict[str, Any]:
    """Settings as values, or as lists of rules."""
    found: dict[str, Any] = {}
    for name, setting in sorted(settings.items()):
        if setting.constant:
            found[name] = setting.rules[0].value
        elif len(setting.rules) == 1 and setting.covers:
            found[name] = _value(setting.rules[0].value)
        else:
            found[name] = [
                {"pattern": r.pattern, "value": _value(r.value)}
                if r.pattern is not None
                else {"filter": r.filter, "value": _value(r.value)}
                for r in setting.rules
            ]
    return found


def _value(value: Any) -> Any:
    return {"gradient": list(value.points)} if isinstance(value, Gradient) else value
