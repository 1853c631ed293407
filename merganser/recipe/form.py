"""What a recipe may say, in merganser's own form (`method:`) and in mergekit's (`merge_method:`).

Everything that can be known without opening a checkpoint is checked here, with the place in the recipe.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merganser.checkpoint.dtypes import parse_dtype
from merganser.errors import RequestError, did_you_mean
from merganser.methods import Method, Parameter, Step, get, get_step
from merganser.recipe.document import parse, read_file
from merganser.recipe.settings import Setting, read_setting, shown

Listed = tuple[str, str | None, Mapping[str, Setting]]
"""An entry of `models`: path, name and parameters."""

_SHARED = ("models", "base_model", "parameters", "dtype", "out_dtype")
_OWN_KEYS = ("method", "model", *_SHARED, "steps", "seed", "degree")
_MERGEKIT_KEYS = ("merge_method", *_SHARED, "degree")
_LATER = ("slices", "modules", "tokenizer", "tokenizer_source", "chat_template")
_LATER_METHODS = (
    "nuslerp",
    "multislerp",
    "karcher",
    "model_stock",
    "arcee_fusion",
    "nearswap",
    "sce",
    "ram",
    "ramplus_tl",
    "breadcrumbs_ties",
    "della",
    "della_linear",
)


@dataclass(frozen=True)
class Model:
    """A model of a recipe.

    Its path as written, what it is called, and its own parameters (by Python name).
    """

    path: str
    label: str
    parameters: Mapping[str, Setting]


@dataclass(frozen=True)
class StepCall:
    """A step of a recipe: its settings as written, and its place in the recipe."""

    step: Step
    raw: Any
    place: str


@dataclass(frozen=True)
class Recipe:
    """A checked recipe. `canonical` is what it says, in plain JSON; `directory` is where it lay.

    `base` is an index into `models`. `listed` says how many of the models were in its list: a base that was
    not is last.
    """

    method: Method
    mergekit: bool
    models: tuple[Model, ...]
    listed: int
    base: int | None
    parameters: Mapping[str, Setting]
    dtype: str | None
    seed: int | None
    degree: float | None
    steps: tuple[StepCall, ...]
    directory: Path | None
    source: str
    canonical: Mapping[str, Any]

    @property
    def inputs(self) -> tuple[int, ...]:
        """The models that are merged, as indices: where the method needs a base, all but the base."""
        if self.method.base == "required":
            return tuple(i for i in range(len(self.models)) if i != self.base)
        if self.mergekit:
            return tuple(range(len(self.models)))
        return tuple(range(self.listed))


def load(path_or_text: str | os.PathLike[str] | Mapping[str, Any]) -> Recipe:
    """Read and check a recipe: a file, YAML text (it has a line break or a `: `) or a mapping already read.

    Opens no checkpoint. Raises `RequestError` that names the place, such as `models[1].parameters.densty`,
    for anything it does not understand.
    """
    if isinstance(path_or_text, Mapping):
        return _check(dict(path_or_text), "recipe", None)
    if isinstance(path_or_text, str) and ("\n" in path_or_text or ": " in path_or_text):
        return _check(parse(path_or_text, "recipe"), "recipe", None)
    path = Path(path_or_text).expanduser()
    return _check(parse(read_file(path), str(path)), str(path), path.parent)


def _check(raw: Any, source: str, directory: Path | None) -> Recipe:
    if not isinstance(raw, dict):
        raise RequestError(f"{source}: a recipe is a mapping (method: ..., models: ...), not {shown(raw)}")
    return _Checker(raw, source, directory).recipe()


class _Checker:
    def __init__(self, raw: dict[str, Any], source: str, directory: Path | None) -> None:
        self.raw = raw
        self.source = source
        self.directory = directory
        self.mergekit = "merge_method" in raw

    def recipe(self) -> Recipe:
        self._keys()
        self._single()
        self.method = self._method()
        parameters = self._parameters(self.raw.get("parameters"), "parameters", of_model=False)
        listed = self._models()
        base_path = self._path(self.raw["base_model"], "base_model") if self._given("base_model") else None
        models, base = self._with_base(listed, base_path)
        recipe = Recipe(
            method=self.method,
            mergekit=self.mergekit,
            models=models,
            listed=len(listed),
            base=base,
            parameters=parameters,
            dtype=self._dtype(),
            seed=self._seed(),
            degree=self._degree(),
            steps=self._steps(),
            directory=self.directory,
            source=self.source,
            canonical={},
        )
        try:
            self.method.check_inputs(base is not None, len(recipe.inputs))
        except RequestError as error:
            raise self._error("models" if base is not None else "base_model", str(error)) from None
        self._required(recipe)
        object.__setattr__(recipe, "canonical", _canonical(recipe))
        return recipe

    def _error(self, place: str, text: str) -> RequestError:
        return RequestError(f"{self.source}: {place}: {text}")

    def _given(self, key: str) -> bool:
        return self.raw.get(key) is not None

    def _keys(self) -> None:
        if self.mergekit and "method" in self.raw:
            raise self._error("method", "a recipe has either merge_method (mergekit) or method (merganser)")
        known = _MERGEKIT_KEYS if self.mergekit else _OWN_KEYS
        for key in self.raw:
            if key in _LATER:
                raise self._error(key, "this part of mergekit's schema is not supported yet")
            if key not in known:
                if self.mergekit and key in _OWN_KEYS:
                    text = "belongs to merganser's own form; write method: instead of merge_method: to use it"
                else:
                    near = did_you_mean(key, (*known, "merge_method"))
                    text = f"unknown key{near} (known: {', '.join(known)})"
                raise self._error(key, text)
        if not self.mergekit and not {"method", "model"} & self.raw.keys():
            raise RequestError(
                f"{self.source}: names no method; write method: (or merge_method:, for mergekit's form), or model: "
                "for steps on one model"
            )

    def _single(self) -> None:
        """`model: PATH` is short for one model passed through."""
        if "model" not in self.raw:
            return
        for key in ("method", "models", "base_model", "parameters"):
            if key in self.raw:
                raise self._error("model", f"a recipe has either model (for steps on one model) or {key}")
        raw = dict(self.raw)
        model = raw.pop("model")
        entry = {"model": model} if not isinstance(model, dict) else model
        self.raw = {"method": "passthrough", "models": [entry], **raw}

    def _steps(self) -> tuple[StepCall, ...]:
        raw = self.raw.get("steps")
        if raw is None:
            return ()
        if not isinstance(raw, list):
            raise self._error("steps", f"expected a list of steps, not {shown(raw)}")
        calls = []
        for i, entry in enumerate(raw):
            place = f"steps[{i}]"
            if isinstance(entry, str):
                entry = {entry: None}
            if not isinstance(entry, dict) or len(entry) != 1:
                raise self._error(
                    place,
                    f"expected one step, as in `take: {{axis: neurons, keep: 0-63}}`, not {shown(entry)}",
                )
            ((name, settings),) = entry.items()
            try:
                found = get_step(str(name))
            except RequestError as error:
                raise self._error(place, str(error)) from None
            calls.append(StepCall(found, settings, f"{self.source}: {place}.{name}"))
        return tuple(calls)

    def _method(self) -> Method:
        key = "merge_method" if self.mergekit else "method"
        name = self.raw[key]
        if not isinstance(name, str):
            raise self._error(key, f"expected the name of a method, not {shown(name)}")
        if name in _LATER_METHODS:
            raise self._error(key, f"mergekit's method {name!r} is not supported yet")
        try:
            method = get(name)
        except RequestError as error:
            raise self._error(key, str(error)) from None
        if self.mergekit and method.mergekit is None:
            raise self._error(key, f"{name!r} is not a method of mergekit; write method: {name}")
        return method

    # Models -------------------------------------------------------------------------------------------------

    def _models(self) -> list[Listed]:
        raw = self.raw.get("models")
        if not isinstance(raw, list) or not raw:
            raise self._error(
                "models", f"expected a list of {{model: PATH, parameters: ...}}, not {shown(raw)}"
            )
        known = ("model", "parameters") if self.mergekit else ("model", "name", "parameters")
        found: list[Listed] = []
        for i, entry in enumerate(raw):
            place = f"models[{i}]"
            if not isinstance(entry, dict):
                raise self._error(place, f"expected {{model: PATH, parameters: ...}}, not {shown(entry)}")
            for key in entry:
                if key not in known:
                    near = did_you_mean(key, known)
                    raise self._error(f"{place}.{key}", f"unknown key{near} (known: {', '.join(known)})")
            if entry.get("model") is None:
                raise self._error(place, "names no model (model: PATH)")
            path = self._path(entry["model"], f"{place}.model")
            parameters = self._parameters(entry.get("parameters"), f"{place}.parameters", of_model=True)
            found.append((path, self._name(entry.get("name"), place), parameters))
        return found

    def _name(self, name: Any, place: str) -> str | None:
        if name is None:
            return None
        if not isinstance(name, str) or not name or not name.isprintable():
            raise self._error(f"{place}.name", f"expected a name, not {shown(name)}")
        return name

    def _path(self, raw: Any, place: str) -> str:
        if isinstance(raw, dict) and self.mergekit:
            raise self._error(
                place, "a model written as a mapping (with lora, revision) is not supported yet"
            )
        if not isinstance(raw, str) or not raw.strip() or "\0" in raw:
            raise self._error(place, f"expected the path of a model, in quotes if need be, not {shown(raw)}")
        for sign, meaning in (("+", "a LoRA adapter on a model"), ("@", "a revision of a model")):
            if self.mergekit and sign in raw:
                raise self._error(
                    place,
                    f"{raw!r} means {meaning} in mergekit's form, which is not supported yet "
                    "(in merganser's own form a path is taken as it is, and an adapter is listed as a model)",
                )
        return raw

    def _with_base(self, listed: list[Listed], base_path: str | None) -> tuple[tuple[Model, ...], int | None]:
        entries = list(listed)
        base = None
        places = {os.path.normpath(path): i for i, (path, _, _) in reversed(list(enumerate(entries)))}
        if self.mergekit and len(places) < len(entries):
            twice = next(i for i, (path, _, _) in enumerate(entries) if places[os.path.normpath(path)] != i)
            raise self._error(f"models[{twice}].model", f"{entries[twice][0]!r} is listed twice")
        if base_path is not None:
            base = places.get(os.path.normpath(base_path))
            if base is None:
                base = len(entries)
                entries.append((base_path, None, {}))
            elif not self.mergekit and self.method.base == "required" and entries[base][2]:
                key = next(iter(entries[base][2].values())).place
                raise RequestError(
                    f"{key}: {self.method.name} does not merge the base, so it has no parameters"
                )
        labels = _labels([(path, name) for path, name, _ in entries], self.source)
        models = tuple(Model(path, label, p) for (path, _, p), label in zip(entries, labels, strict=True))
        return models, base

    # Parameters ---------------------------------------------------------------------------------------------

    def _parameters(self, raw: Any, place: str, *, of_model: bool) -> dict[str, Setting]:
        if raw is None:
            return {}
        if not isinstance(raw, dict):
            raise self._error(place, f"expected a mapping of parameters, not {shown(raw)}")
        found: dict[str, Setting] = {}
        for key, value in raw.items():
            here = f"{self.source}: {place}.{key}"
            parameter, switch, used = self._parameter(key, here)
            if of_model and not parameter.per_model:
                raise RequestError(f"{here}: there is one {key} for all models; set it under parameters")
            if value is None:
                raise RequestError(f"{here}: has no value")
            setting = read_setting(value, parameter, switch, here, not self.mergekit)
            if not used:
                continue
            if parameter.name in found:
                raise RequestError(f"{here}: lambda and scale are the same parameter; give one")
            found[parameter.name] = setting
        return found

    def _parameter(self, key: str, here: str) -> tuple[Parameter, tuple[str, str] | None, bool]:
        dialect = self.method.mergekit if self.mergekit else None
        by_key = {p.key: p for p in self.method.parameters if p.name != "seed"}
        if dialect is None:
            by_key |= {p.name: p for p in self.method.parameters if p.name != "seed"}
            if key in by_key:
                return by_key[key], None, True
            if key == "seed":
                raise RequestError(f"{here}: the seed stands at the top of a recipe, beside method")
        else:
            by_key = {k: p for k, p in by_key.items() if p.name in dialect.settable}
            if key in by_key:
                return by_key[key], dialect.switches.get(by_key[key].name), True
            if key in dialect.unused:
                kind = "coefficient" if dialect.unused[key] else "bool"
                return Parameter(key, key, kind, "", per_model=dialect.unused[key]), None, False
        known = (*by_key, *(dialect.unused if dialect else ()))
        raise RequestError(
            f"{here}: unknown parameter of {self.method.name}{did_you_mean(key, known)} "
            f"(known: {', '.join(known)})"
        )

    def _required(self, recipe: Recipe) -> None:
        dialect = self.method.mergekit if self.mergekit else None
        for parameter in self.method.parameters:
            if not parameter.required and (dialect is None or parameter.name not in dialect.required):
                continue
            if parameter.name in recipe.parameters:
                continue
            if not parameter.per_model:
                raise self._error("parameters", f"{self.method.name} needs {parameter.key}")
            for i in recipe.inputs:
                if parameter.name in recipe.models[i].parameters:
                    continue
                if i >= recipe.listed:
                    raise self._error(
                        "base_model",
                        f"mergekit's {self.method.name} merges the base too: list it under models with a "
                        f"{parameter.key}, give one under parameters, or use merganser's own form",
                    )
                raise self._error(
                    f"models[{i}].parameters",
                    f"{self.method.name} needs {parameter.key} for every model, here or under parameters",
                )

    # The rest -----------------------------------------------------------------------------------------------

    def _dtype(self) -> str | None:
        found = None
        for key in ("dtype", "out_dtype"):
            if not self._given(key):
                continue
            raw = self.raw[key]
            try:
                dtype = parse_dtype(raw) if isinstance(raw, str) else None
            except RequestError as error:
                raise self._error(key, str(error)) from None
            if dtype is None or not dtype.is_float:
                raise self._error(key, f"expected a float dtype such as bfloat16, not {shown(raw)}")
            found = dtype.torch_name
        return found

    def _seed(self) -> int | None:
        raw = self.raw.get("seed")
        if raw is None:
            return None
        if isinstance(raw, bool) or not isinstance(raw, int) or not 0 <= raw < 2**64:
            raise self._error("seed", f"expected a whole number from 0 to 2**64-1, not {shown(raw)}")
        return raw

    def _degree(self) -> float | None:
        raw = self.raw.get("degree")
        if raw is None:
            return None
        if isinstance(raw, bool) or not isinstance(raw, int | float) or not abs(raw) < 1e9:
            raise self._error(
                "degree", f"expected a number (1 for a model, 0 for a task vector), not {shown(raw)}"
            )
        return float(raw)


def _labels(entries: list[tuple[str, str | None]], source: str) -> list[str]:
    """A label for every model.

    Its name, or that of its directory; where that is taken, with `#2`, `#3` ...
    """
    taken: set[str] = set()
    for i, (_, name) in enumerate(entries):
        if name in taken:
            raise RequestError(f"{source}: models[{i}].name: two models are called {name!r}")
        if name is not None:
            taken.add(name)
    labels = []
    for path, name in entries:
        label = name
        if label is None:
            plain = os.path.basename(os.path.normpath(path))
            plain = plain if plain not in ("", ".", "..") else Path(path).resolve().name or "model"
            label, number = plain, 2
            while label in taken:
                label, number = f"{plain}#{number}", number + 1
            taken.add(label)
        labels.append(label)
    return labels


def _canonical(recipe: Recipe) -> dict[str, Any]:
    form = "mergekit" if recipe.mergekit else "merganser"
    return {
        "form": form,
        "method": recipe.method.name,
        "base": None if recipe.base is None else recipe.models[recipe.base].label,
        "models": [
            {"name": model.label, "path": model.path, "parameters": _plain(model.parameters)}
            for model in recipe.models
        ],
        "merged": [recipe.models[i].label for i in recipe.inputs],
        "parameters": _plain(recipe.parameters),
        "dtype": recipe.dtype,
        **({"steps": [{call.step.name: call.raw} for call in recipe.steps]} if recipe.steps else {}),
    }


def _plain(settings: Mapping[str, Setting]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for name, setting in sorted(settings.items()):
        if setting.constant:
            plain[name] = setting.rules[0].value
        else:
            plain[name] = [
                {"pattern": r.pattern, "value": r.value}
                if r.pattern is not None
                else {"filter": r.filter, "value": r.value}
                for r in setting.rules
            ]
    return plain
