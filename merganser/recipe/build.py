"""From a checked recipe to lazy weights: open the models and call the method."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from merganser._facade import open as open_weights
from merganser.algebra import Weights
from merganser.errors import AlgebraError, RequestError
from merganser.methods import Parameter
from merganser.recipe.form import Recipe
from merganser.recipe.settings import Setting


def build(
    recipe: Recipe, *, seed: int | None = None, allow_pickle: bool = False
) -> tuple[Weights, dict[str, Any]]:
    """The lazy result of a recipe, and the fields `save` needs with it (dtype, recipe, seed, degree).

    Only headers are read. `seed` stands above the recipe's own; without either it is 0. Relative paths are
    looked for in the working directory, then in the recipe's. Raises `RequestError` for a model that is not
    there, a tensor without a value for a required parameter, a pattern that matches no tensor; and what the
    algebra raises.
    """
    chosen = seed if seed is not None else recipe.seed or 0
    opened = [
        open_weights(model.path, name=model.label, allow_pickle=allow_pickle, relative_to=recipe.directory)
        for model in recipe.models
    ]
    base = None if recipe.base is None else opened[recipe.base]
    models = [opened[i] for i in recipe.inputs]
    names = list(dict.fromkeys(name for weights in opened for name in weights))
    for settings in (recipe.parameters, *(model.parameters for model in recipe.models)):
        for setting in settings.values():
            setting.check_patterns(names)
    weights = _by_variant(recipe, base, models, names, chosen)
    for call in recipe.steps:

        def open_model(path: str) -> Weights:
            return open_weights(path, allow_pickle=allow_pickle, relative_to=recipe.directory)

        settings = call.step.settings(call.raw, call.place, recipe.directory, open_model)
        try:
            weights = call.step.function(weights, **settings)
        except (RequestError, AlgebraError) as error:
            raise type(error)(f"{call.place}: {error}") from error
    fields: dict[str, Any] = {
        "dtype": recipe.dtype,
        "recipe": {**recipe.canonical, "seed": chosen},
        "seed": chosen,
    }
    if recipe.degree is not None:
        fields["degree"] = recipe.degree
    return weights, fields


def _by_variant(
    recipe: Recipe, base: Weights | None, models: list[Weights], names: list[str], seed: int
) -> Weights:
    """Call the method; where a switch differs between tensors, once for every combination of switches."""
    coefficients: dict[str, Any] = {}
    switches: dict[str, Callable[[str], Any]] = {}
    for parameter in recipe.method.parameters:
        if parameter.name == "seed":
            coefficients["seed"] = seed
        elif parameter.kind == "coefficient":
            value = _coefficient(recipe, parameter)
            if value is not None:
                coefficients[parameter.name] = value
        else:
            default = _default(recipe, parameter)
            found = _chain([recipe.parameters.get(parameter.name)], default, parameter.key, "")
            if found is not None:
                switches[parameter.name] = found
    groups: dict[tuple[Any, ...], set[str]] = {}
    for name in names:
        groups.setdefault(tuple(of(name) for of in switches.values()), set()).add(name)
    results = [
        (recipe.method(base, models, **coefficients, **dict(zip(switches, values, strict=True))), members)
        for values, members in groups.items()
    ]
    return _joined(results)


def _joined(results: list[tuple[Weights, set[str]]]) -> Weights:
    first, _ = results[0]
    if len(results) == 1:
        return first
    home = {name: weights for weights, members in results for name in members}
    entries = {name: home[name].entry(name) for name in first}
    return Weights(
        entries, label=first.label, origin=first.origin, checkpoints=first.checkpoints, dropped=first.dropped
    )


def _default(recipe: Recipe, parameter: Parameter) -> Any:
    dialect = recipe.method.mergekit if recipe.mergekit else None
    if dialect is not None and parameter.name in dialect.defaults:
        return dialect.defaults[parameter.name]
    if parameter.required or (dialect is not None and parameter.name in dialect.required):
        return None
    return parameter.default


def _coefficient(recipe: Recipe, parameter: Parameter) -> Any:
    """A parameter's value for the method.

    A number or a function of the tensor's name, or a list of those by model.
    """
    default = _default(recipe, parameter)
    shared = recipe.parameters.get(parameter.name)
    if not parameter.per_model:
        return _number([shared], default, parameter.key, "")
    values = []
    for i in recipe.inputs:
        model = recipe.models[i]
        values.append(
            _number([model.parameters.get(parameter.name), shared], default, parameter.key, model.label)
        )
    return None if all(value is None for value in values) else values


def _number(settings: Iterable[Setting | None], default: Any, key: str, label: str) -> Any:
    given = [setting for setting in settings if setting is not None]
    if not given:
        return default
    if given[0].constant:
        return given[0].rules[0].value
    return _chain(given, default, key, label)


def _chain(
    settings: Iterable[Setting | None], default: Any, key: str, label: str
) -> Callable[[str], Any] | None:
    """The value by tensor name: of the first setting that has one, else the default."""
    given = [setting for setting in settings if setting is not None]
    if not given and default is None:
        return None
    known: dict[str, Any] = {}

    def value(name: str) -> Any:
        if name not in known:
            known[name] = next((v for s in given if (v := s.value(name)) is not None), default)
        if known[name] is None:
            place = given[-1].place
            of = f" of {label!r}" if label else ""
            raise RequestError(
                f"{place}: gives no {key} for tensor {name!r}{of}; add a last entry without a filter"
            )
        return known[name]

    return value


__all__ = ["build"]
