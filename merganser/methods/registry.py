"""What methods there are. Built-in ones are found in this package; others register under an entry point.

A method is a pure function `f(base, models, *, parameters...) -> Weights` with the decorator `@method`. Its
parameters are read from its signature, so that recipes, the command line and the documentation know them
without being told.
"""

from __future__ import annotations

import importlib
import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin

from merganser.algebra import Coefficient, Weights
from merganser.algebra.labelled import by_labels, label_order, reference_of, rows_taken
from merganser.algebra.ties import levelled
from merganser.errors import RequestError, did_you_mean

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "merganser.methods"
PerModel = Sequence[Coefficient] | Coefficient
"""One coefficient for all models, or a list with one for each."""

OF_INPUTS = "gram"
"""The kind of statistics that are of what a layer takes in, and not of its entries."""
KEYS = {"scale": "lambda"}
"""The papers' and mergekit's lambda is a word of Python's."""
BASES = ("required", "optional", "origin", "refused")

F = TypeVar("F", bound=Callable[..., Weights])


@dataclass(frozen=True)
class Parameter:
    """A parameter of a method, read from its signature.

    `key` is its name in recipes, `kind` one of coefficient, bool, integer, number, choice; a coefficient may
    differ from tensor to tensor, and with `per_model` also from model to model.
    """

    name: str
    key: str
    kind: str
    annotation: str
    default: Any = None
    required: bool = False
    per_model: bool = False
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Mergekit:
    """How the function reaches mergekit 0.1.5's arithmetic for the method of the same name.

    settable: the parameters (names of the function's) a mergekit file may set, besides those of `unused`.
    required: those of them it must set. defaults: what the function is given where the file says nothing.
    switches: parameters that are a choice here and a bool there, with the choice for false and for true.
    unused: keys that mergekit accepts and that change nothing, and whether they go with a model.
    """

    settable: tuple[str, ...]
    required: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    switches: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    unused: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A registered method.

    base: "required"; "optional" (models are merged as they are, the base lends its files); "origin" (as they are
    without a base, their differences from it with one); or "refused". min_models and max_models count the models
    without a base that is required or an origin. statistics: the kind of statistics (fisher, gram, mask ...) that it
    takes of every model, or None.
    """

    name: str
    paper: str
    function: Callable[..., Weights]
    summary: str
    parameters: tuple[Parameter, ...]
    base: str
    min_models: int
    max_models: int | None
    mergekit: Mergekit | None
    statistics: str | None = None

    @property
    def base_apart(self) -> bool:
        """Whether a base is not one of the models that are merged."""
        return self.base in ("required", "origin")

    def parameter(self, name: str) -> Parameter:
        """The parameter called `name` in Python. Raises `RequestError` when there is none."""
        for parameter in self.parameters:
            if parameter.name == name:
                return parameter
        known = [parameter.name for parameter in self.parameters]
        raise RequestError(f"{self.name} has no parameter {name!r}{did_you_mean(name, known)}")

    def __call__(
        self,
        base: Weights | None,
        models: Sequence[Weights],
        *,
        statistics: Sequence[Weights] | None = None,
        **parameters: Any,
    ) -> Weights:
        """The function, after a check of the base, the number of models and statistics and the parameters' names."""
        for name in parameters:
            self.parameter(name)
        self.check_inputs(base is not None, len(models))
        if statistics is not None and len(statistics) == len(models) and self.statistics != OF_INPUTS:
            # Numbers of a model's entries move as its rows do.
            first = reference_of([*([base] if base is not None else []), *models])
            if first is not None:
                statistics = [
                    rows_taken(one, label_order(model, first))
                    for one, model in zip(statistics, models, strict=True)
                ]
        base, models = _lined_up(base, models)
        base, models = _levelled(base, models)
        if self.statistics is None:
            if statistics is not None:
                raise RequestError(f"{self.name} takes no statistics")
            return self.function(base, models, **parameters)
        if statistics is None or len(statistics) != len(models):
            given = "none are given" if statistics is None else f"there are {len(statistics)}"
            raise RequestError(
                f"{self.name} needs statistics of the kind {self.statistics!r}, one for each of the {len(models)} "
                f"models; {given}"
            )
        return self.function(base, models, statistics=list(statistics), **parameters)

    def check_inputs(self, has_base: bool, models: int) -> None:
        """Raise `RequestError` unless the method works with this base and number of models."""
        if self.base == "required" and not has_base:
            raise RequestError(f"{self.name} needs a base model (base_model)")
        if self.base == "refused" and has_base:
            raise RequestError(f"{self.name} takes no base model; remove base_model")
        if self.min_models <= models and (self.max_models is None or models <= self.max_models):
            return
        if self.max_models == self.min_models:
            wanted = f"exactly {self.min_models}"
        elif models < self.min_models:
            wanted = f"at least {self.min_models}"
        else:
            wanted = f"at most {self.max_models}"
        beside = " beside its base" if has_base and self.base_apart else ""
        raise RequestError(
            f"{self.name} takes {wanted} model{'s'[: wanted[-1] != '1']}{beside}; there are {models}"
        )


def _lined_up(base: Weights | None, models: Sequence[Weights]) -> tuple[Weights | None, Sequence[Weights]]:
    """The models with classifiers' rows in the order of the first of them that has such rows, the base before all."""
    if base is None:
        return None, by_labels(models)
    first, *others = by_labels([base, *models])
    return first, others


_registered: dict[str, Method] = {}
_broken: dict[str, str] = {}
_lock = threading.RLock()


def method(
    name: str,
    *,
    paper: str = "",
    base: str = "required",
    min_models: int = 1,
    max_models: int | None = None,
    mergekit: Mergekit | None = None,
    keys: Mapping[str, str] = KEYS,
    statistics: str | None = None,
) -> Callable[[F], F]:
    """Register `f(base, models, *, ...) -> Weights` as the method `name`; the function itself is unchanged.

    paper is the id of the paper in papers.jsonl, or its citation. keys are names that parameters have in recipes, where
    they differ from Python's. statistics is the kind that the function is given of every model, as the keyword
    `statistics`. Raises `RequestError` where the signature
    is not of that form or another function holds the name.
    """
    if base not in BASES:
        raise RequestError(f"method {name!r}: base must be one of {', '.join(BASES)}, not {base!r}")

    def register(function: F) -> F:
        if ("statistics" in inspect.signature(function).parameters) != (statistics is not None):
            raise RequestError(
                f"method {name!r}: the decorator's statistics= and the function's keyword statistics go together"
            )
        made = Method(
            name,
            paper,
            function,
            _summary(function),
            _parameters(name, function, keys),
            base,
            min_models,
            max_models,
            mergekit,
            statistics,
        )
        with _lock:
            held = _registered.get(name)
            if held is not None and _identity(held.function) != _identity(function):
                raise RequestError(f"there is already a method {name!r}, in {held.function.__module__}")
            _registered[name] = made
        return function

    return register


def all_methods() -> dict[str, Method]:
    """Every method by name: the built-in ones and those of installed distributions that could be loaded."""
    with _lock:
        _load_built_in()
        _load_entry_points()
        return dict(sorted(_registered.items()))


def broken() -> dict[str, str]:
    """Entry points that could not be loaded, and why; each says which distribution it belongs to."""
    all_methods()
    return dict(_broken)


def get(name: str) -> Method:
    """The method called `name`.

    Raises `RequestError` with the nearest name, or why a third party's is not there.
    """
    found = _built_in(name)
    if found is not None:
        return found
    methods = all_methods()
    if name in methods:
        return methods[name]
    if name in _broken:
        raise RequestError(_broken[name])
    others = "".join(f". {reason}" for reason in _broken.values())
    raise RequestError(
        f"unknown method {name!r}{did_you_mean(name, methods)} (known: {', '.join(methods)}){others}"
    )


def _built_in(name: str) -> Method | None:
    """A built-in method whose file is called as it is, or as its name begins, without loading the others."""
    with _lock:
        if name not in _registered:
            for module in _modules():
                stem = module.rpartition(".")[2]
                if name == stem or name.startswith(stem + "_"):
                    importlib.import_module(module)
        found = _registered.get(name)
    return found if found is not None and found.function.__module__.startswith("merganser.methods.") else None


@cache
def _modules() -> tuple[str, ...]:
    """The modules that hold methods and steps."""
    import merganser.methods as package

    found = []
    for home in sorted(Path(place) for place in package.__path__):
        for file in sorted(home.rglob("*.py")):
            if not file.name.startswith("_"):
                found.append(".".join((package.__name__, *file.relative_to(home).with_suffix("").parts)))
    return tuple(found)


@cache
def _load_built_in() -> None:
    for module in _modules():
        importlib.import_module(module)


@cache
def _load_entry_points() -> None:
    from importlib.metadata import entry_points  # it brings a good deal along

    for point in entry_points(group=GROUP):
        before = dict(_registered)
        try:
            held = before.get(point.name)
            if held is not None and held.function.__module__.startswith("merganser.methods."):
                raise RequestError(
                    "that name is taken; a method of another distribution needs one of its own"
                )
            point.load()
            if point.name not in _registered:
                raise RequestError(f"it registers no method {point.name!r} (use @merganser.methods.method)")
        except Exception as error:
            _registered.clear()
            _registered.update(before)
            _broken[point.name] = (
                f"the method {point.name!r} of {_distribution(point)} could not be loaded: "
                f"{type(error).__name__}: {error}"
            )


def _distribution(point: EntryPoint) -> str:
    held = point.dist
    return (
        f"the distribution {held.name} {held.version}"
        if held is not None
        else f"the entry point {point.value}"
    )


def _identity(function: Callable[..., Any]) -> tuple[str, str]:
    return function.__module__, function.__qualname__


def _summary(function: Callable[..., Any]) -> str:
    return (inspect.getdoc(function) or "").partition("\n")[0]


def _levelled(base: Weights | None, models: Sequence[Weights]) -> tuple[Weights | None, Sequence[Weights]]:
    """The weights with the same names for a tied matrix that one of them has taken apart."""
    if base is None:
        return None, levelled(*models)
    base, *models = levelled(base, *models)
    return base, models


def _parameters(name: str, function: Callable[..., Any], keys: Mapping[str, str]) -> tuple[Parameter, ...]:
    found = list(inspect.signature(function, eval_str=True).parameters.values())
    plain = inspect.signature(function).parameters
    if [p.name for p in found[:2]] != ["base", "models"] or any(
        p.kind is not p.KEYWORD_ONLY for p in found[2:]
    ):
        raise RequestError(
            f"method {name!r}: its function must be f(base, models, *, keyword-only parameters)"
        )
    return tuple(
        _parameter(name, p, str(plain[p.name].annotation), keys.get(p.name, p.name))
        for p in found[2:]
        if p.name != "statistics"
    )


def _parameter(method_name: str, found: inspect.Parameter, annotation: str, key: str) -> Parameter:
    kinds: dict[Any, str] = {Coefficient: "coefficient", bool: "bool", int: "integer", float: "number"}
    choices: tuple[str, ...] = ()
    per_model = found.annotation == PerModel
    if per_model:
        kind = "coefficient"
    elif get_origin(found.annotation) is Literal:
        kind, choices = "choice", get_args(found.annotation)
    elif found.annotation in kinds:
        kind = kinds[found.annotation]
    else:
        raise RequestError(
            f"method {method_name!r}: parameter {found.name!r} is annotated {annotation}; "
            "parameters are PerModel, Coefficient, bool, int, float or a Literal of strings"
        )
    required = found.default is inspect.Parameter.empty
    return Parameter(
        name=found.name,
        key=key,
        kind=kind,
        annotation=annotation,
        default=None if required else found.default,
        required=required,
        per_model=per_model,
        choices=choices,
    )
