"""Reading one merge of a recipe file, in merganser's own form (`method:`) and in mergekit's (`merge_method:`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merganser.checkpoint.dtypes import parse_dtype
from merganser.errors import RequestError
from merganser.methods import Method, Parameter, all_methods, get, get_step
from merganser.recipe.agreement import read_allow
from merganser.recipe.canonical import canonical
from merganser.recipe.form import Model, Part, Recipe, Slice, Source, StepCall
from merganser.recipe.keys import Keys
from merganser.recipe.mismatch import read_policy
from merganser.recipe.reference import Reference, read_reference
from merganser.recipe.settings import Setting, read_setting, shown

if TYPE_CHECKING:
    from merganser.recipe.experts import Mixture
    from merganser.recipe.vocabularies import Vocabulary

_SHARED = (
    "models", "slices", "modules", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source",
    "tokenizer", "chat_template", "mismatch", "allow", "degree", "name",
)  # fmt: skip
_OWN_KEYS = ("method", "model", *_SHARED, "steps", "seed")
_MERGEKIT_KEYS = ("merge_method", *_SHARED)
_FORMS = ("models", "slices", "modules")
_VOCABULARY = ("tokenizer_source", "tokenizer", "chat_template")


def _keys_of_mergekit() -> set[str]:
    """The keys of all parameters that a method of mergekit has: with another method one of them changes nothing."""
    found: set[str] = set()
    for method in all_methods().values():
        if method.mergekit is not None:
            settable = {one.key for one in method.parameters if one.name in method.mergekit.settable}
            found |= settable | method.mergekit.unused.keys()
    return found


class Reader:
    """One document; `recipe` reads it."""

    def __init__(
        self,
        raw: dict[str, Any],
        source: str,
        directory: Path | None,
        documents: Mapping[str, Recipe | Mixture],
    ) -> None:
        self.raw = raw
        self.source = source
        self.directory = directory
        self.documents = documents
        self.mergekit = "merge_method" in raw
        self.keys = Keys(source, self.mergekit)
        self.opened: list[tuple[Reference, str | None, str]] = []

    def recipe(self) -> Recipe:
        """The checked recipe."""
        self._keys()
        self._single()
        self.method = self._method()
        parameters = self._parameters(self.raw.get("parameters"), "parameters", of_model=False)
        self.base: int | None = None
        self.base_reference: Reference | None = None
        if self._given("base_model"):
            self.base_reference = self._reference(self.raw["base_model"], "base_model")
        parts = self._parts()
        vocabulary = self._vocabulary()
        recipe = Recipe(
            method=self.method,
            mergekit=self.mergekit,
            models=self._labelled(),
            base=self.base,
            parts=parts,
            parameters=parameters,
            vocabulary=vocabulary,
            mismatch=read_policy(self.raw.get("mismatch"), f"{self.source}: mismatch"),
            allow=read_allow(self.raw.get("allow"), f"{self.source}: allow"),
            dtype=self._dtype(),
            seed=self._seed(),
            degree=self._degree(),
            steps=self._steps(),
            documents=self.documents,
            directory=self.directory,
            source=self.source,
            canonical={},
            ignored=tuple(self.keys.ignored),
        )
        for part in parts:
            for slice_ in part.slices:
                self._check_inputs(slice_)
                self._check_statistics(slice_)
                self._required(recipe, part, slice_)
        return replace(recipe, canonical=canonical(recipe))

    def _error(self, place: str, text: str) -> RequestError:
        return RequestError(f"{self.source}: {place}: {text}")

    def _given(self, key: str) -> bool:
        return self.raw.get(key) is not None

    def _keys(self) -> None:
        if self.mergekit and "method" in self.raw:
            raise self._error("method", "a recipe has either merge_method (mergekit) or method (merganser)")
        known = _MERGEKIT_KEYS if self.mergekit else _OWN_KEYS
        if self.mergekit and (own := [key for key in self.raw if key in _OWN_KEYS and key not in known]):
            raise self._error(
                own[0], "belongs to merganser's own form; write method: instead of merge_method: to use it"
            )
        self.raw = self.keys.check(self.raw, (*known, "merge_method"), "", named=known)
        if not self.mergekit and not {"method", "model"} & self.raw.keys():
            raise RequestError(
                f"{self.source}: names no method; write method: (or merge_method:, for mergekit's form), or model: "
                "for steps on one model"
            )

    def _single(self) -> None:
        """`model: PATH` is short for one model passed through."""
        if "model" not in self.raw:
            return
        for key in ("method", *_FORMS, "base_model", "parameters"):
            if key in self.raw:
                raise self._error("model", f"a recipe has either model (for steps on one model) or {key}")
        raw = dict(self.raw)
        model = raw.pop("model")
        entry = {"model": model} if not isinstance(model, dict) or "model" not in model else model
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
        try:
            method = get(name)
        except RequestError as error:
            raise self._error(key, str(error)) from None
        if self.mergekit and method.mergekit is None:
            raise self._error(key, f"{name!r} is not a method of mergekit; write method: {name}")
        return method

    # Models -------------------------------------------------------------------------------------------------

    def _open(self, reference: Reference, name: str | None, place: str, *, again: bool) -> int:
        """The index of a model; with `again` the same reference is the same model."""
        if again:
            for i, (other, called, _) in enumerate(self.opened):
                if other.identity == reference.identity and (name is None or called == name):
                    return i
        self.opened.append((reference, name, place))
        return len(self.opened) - 1

    def _reference(self, raw: Any, place: str) -> Reference:
        return read_reference(
            raw,
            f"{self.source}: {place}",
            mergekit=self.mergekit,
            directory=self.directory,
            documents=self.documents,
        )

    def _opened_base(self) -> int | None:
        """The base, which may be one of the models that were listed so far."""
        if self.base is None and self.base_reference is not None:
            self.base = self._open(self.base_reference, None, "base_model", again=True)
        return self.base

    def _parts(self) -> tuple[Part, ...]:
        given = [key for key in _FORMS if self._given(key)]
        if len(given) != 1:
            if given:
                raise self._error(given[1], f"a recipe has one of {', '.join(_FORMS)}; it has {given[0]} too")
            if any(key in self.raw for key in _FORMS[1:]):
                raise self._error(_FORMS[1], "expected a list of slices, or models")
            return (self._part(None, {"models": self.raw.get("models")}, "models"),)
        key = given[0]
        if key != "modules":
            return (self._part(None, {key: self.raw[key]}, key),)
        raw = self.raw["modules"]
        if not isinstance(raw, dict) or not raw:
            raise self._error(
                "modules", f"expected a mapping from modules to slices or models, not {shown(raw)}"
            )
        return tuple(self._module(name, value) for name, value in raw.items())

    def _module(self, name: str, raw: Any) -> Part:
        place = f"modules.{name}"
        if not isinstance(raw, dict):
            raise self._error(place, f"expected slices: or models:, not {shown(raw)}")
        raw = self.keys.check(raw, ("slices", "models", "parameters"), place)
        given = [key for key in ("slices", "models") if raw.get(key) is not None]
        if len(given) != 1:
            raise self._error(place, "a module has either slices or models")
        return self._part(name, raw, f"{place}.{given[0]}")

    def _part(self, name: str | None, raw: Mapping[str, Any], place: str) -> Part:
        own = {}
        if name is not None:
            own = self._parameters(raw.get("parameters"), f"modules.{name}.parameters", of_model=False)
        if raw.get("slices") is None:
            return Part(name, (self._models(raw.get("models"), place),), own)
        slices = raw["slices"]
        if not isinstance(slices, list) or not slices:
            raise self._error(place, f"expected a list of slices ({{sources: [...]}}), not {shown(slices)}")
        return Part(name, tuple(self._slice(one, f"{place}[{i}]") for i, one in enumerate(slices)), own)

    def _models(self, raw: Any, place: str) -> Slice:
        """`models:`, a slice of all layers."""
        if not isinstance(raw, list) or not raw:
            raise self._error(place, f"expected a list of {{model: PATH, parameters: ...}}, not {shown(raw)}")
        known = ("model", "parameters") if self.mergekit else ("model", "name", "parameters", "statistics")
        sources: list[Source] = []
        for i, entry in enumerate(raw):
            here = f"{place}[{i}]"
            entry = self._entry(entry, here, known)
            reference = self._reference(entry["model"], f"{here}.model")
            name = self._name(entry.get("name"), here)
            twice = any(self.opened[s.model][0].identity == reference.identity for s in sources)
            if twice and self.mergekit:
                raise self._error(f"{here}.model", f"{str(reference)!r} is listed twice")
            model = self._open(reference, name, here, again=not twice)
            parameters = self._parameters(entry.get("parameters"), f"{here}.parameters", of_model=True)
            sources.append(Source(model, None, parameters, here, self._statistics(entry, here)))
        base = self._opened_base()
        listed = next((source for source in sources if source.model == base), None)
        if listed is not None and listed.parameters and self.method.base_apart and not self.mergekit:
            key = next(iter(listed.parameters.values())).place
            raise RequestError(f"{key}: {self.method.name} does not merge the base, so it has no parameters")
        if base is not None and listed is None and (self.method.base_apart or self.mergekit):
            sources.append(Source(base, None, {}, "base_model"))
        return Slice(tuple(sources), base, {}, place)

    def _slice(self, raw: Any, place: str) -> Slice:
        known = ("sources", "base_model", "parameters", "residual_weight")
        if not isinstance(raw, dict):
            raise self._error(place, f"expected {{sources: [...]}}, not {shown(raw)}")
        raw = self.keys.check(raw, known, place, named=known[:3])
        if raw.get("residual_weight") is not None:
            why = "mergekit declares this key and never uses it"
            if not self.mergekit:
                raise self._error(f"{place}.residual_weight", f"{why}; remove it")
            self.keys.left_out(f"{place}.residual_weight", why)
        entries = raw.get("sources")
        if not isinstance(entries, list) or not entries:
            raise self._error(
                f"{place}.sources",
                f"expected a list of {{model: PATH, layer_range: [0, 8]}}, not {shown(entries)}",
            )
        sources: list[Source] = []
        for i, entry in enumerate(entries):
            here = f"{place}.sources[{i}]"
            known = ("model", "layer_range", "parameters", *(() if self.mergekit else ("statistics",)))
            entry = self._entry(entry, here, known)
            reference = self._reference(entry["model"], f"{here}.model")
            model = self._open(reference, None, here, again=True)
            parameters = self._parameters(entry.get("parameters"), f"{here}.parameters", of_model=True)
            layers = self._layers(entry.get("layer_range"), f"{here}.layer_range")
            if any(source.model == model and source.layers == layers for source in sources):
                raise self._error(f"{here}.model", f"{str(reference)!r} is listed twice with the same layers")
            sources.append(Source(model, layers, parameters, here, self._statistics(entry, here)))
        base = self._opened_base()
        if raw.get("base_model") is not None:
            reference = self._reference(raw["base_model"], f"{place}.base_model")
            base = self._open(reference, None, f"{place}.base_model", again=True)
        counts = {source.layers[1] - source.layers[0] for source in sources if source.layers is not None}
        if len(counts) > 1:
            raise self._error(
                f"{place}.sources",
                f"the sources of a slice need as many layers each; these have {sorted(counts)}",
            )
        parameters = self._parameters(raw.get("parameters"), f"{place}.parameters", of_model=False)
        found = Slice(tuple(sources), base, parameters, place)
        if base is not None and self.method.base_apart and found.base_source is None:
            raise self._error(
                f"{place}.sources",
                f"{self.method.name} needs the base among the sources, so that its layers are known: add "
                f"{{model: {self.opened[base][0]}, layer_range: ...}}",
            )
        return found

    def _entry(self, entry: Any, place: str, known: tuple[str, ...]) -> dict[str, Any]:
        if not isinstance(entry, dict):
            raise self._error(place, f"expected {{model: PATH, parameters: ...}}, not {shown(entry)}")
        if self.mergekit and "statistics" in entry:
            text = "belongs to merganser's own form; write method: instead of merge_method: to use it"
            raise self._error(f"{place}.statistics", text)
        entry = self.keys.check(entry, known, place)
        if entry.get("model") is None:
            raise self._error(place, "names no model (model: PATH)")
        return dict(entry)

    def _statistics(self, entry: dict[str, Any], place: str) -> str | None:
        raw = entry.get("statistics")
        if raw is not None and (not isinstance(raw, str) or not raw.strip() or "\0" in raw):
            raise self._error(
                f"{place}.statistics",
                f"expected the path of a directory that merganser observe wrote, not {shown(raw)}",
            )
        return raw

    def _layers(self, raw: Any, place: str) -> tuple[int, int] | None:
        if raw is None:
            return None
        if isinstance(raw, list):
            here = place.removeprefix(f"{self.source}: ")
            raw = [self.keys.whole(one, f"{here}[{i}]") for i, one in enumerate(raw)]
        good = (
            isinstance(raw, list)
            and len(raw) == 2
            and all(isinstance(n, int) and not isinstance(n, bool) for n in raw)
        )
        # a slice without layers gives what stands before or after them, as mergekit has it
        if not good or not 0 <= raw[0] <= raw[1] - (0 if self.mergekit else 1):
            said = str(raw) if isinstance(raw, list) else shown(raw)
            sign = "<=" if self.mergekit else "<"
            raise self._error(
                place, f"expected [first, end] with first {sign} end (the end is not taken), not {said}"
            )
        return raw[0], raw[1]

    def _name(self, name: Any, place: str) -> str | None:
        if name is None:
            return None
        if not isinstance(name, str) or not name or not name.isprintable():
            raise self._error(f"{place}.name", f"expected a name, not {shown(name)}")
        return name

    def _labelled(self) -> tuple[Model, ...]:
        """Every model with a label: its name, or that of its directory; where that is taken, with `#2`, `#3` ..."""
        taken: set[str] = set()
        for _, name, place in self.opened:
            if name in taken:
                raise self._error(f"{place}.name", f"two models are called {name!r}")
            if name is not None:
                taken.add(name)
        models = []
        for reference, name, place in self.opened:
            label, number = name or reference.short, 2
            while name is None and label in taken:
                label, number = f"{reference.short}#{number}", number + 1
            taken.add(label)
            models.append(Model(reference, label, f"{self.source}: {place.removeprefix(self.source + ': ')}"))
        return tuple(models)

    def _vocabulary(self) -> Vocabulary | None:
        if not any(self._given(key) for key in _VOCABULARY):
            return None
        from merganser.recipe.vocabularies import read_vocabulary

        def resolve(raw: Any, place: str) -> int:
            return self._open(
                self._reference(raw, place.removeprefix(f"{self.source}: ")), None, place, again=True
            )

        given = {key: self.raw.get(key) for key in _VOCABULARY}
        return read_vocabulary(given, self.source, resolve, self.keys)

    # Parameters ---------------------------------------------------------------------------------------------

    def _parameters(self, raw: Any, place: str, *, of_model: bool) -> dict[str, Setting]:
        if raw is None:
            return {}
        if not isinstance(raw, dict):
            raise self._error(place, f"expected a mapping of parameters, not {shown(raw)}")
        found: dict[str, Setting] = {}
        for key, value in raw.items():
            here = f"{self.source}: {place}.{key}"
            known = self._parameter(key, place)
            if known is None:
                continue
            parameter, switch, used = known
            if of_model and not parameter.per_model:
                if not self.mergekit:
                    raise RequestError(f"{here}: there is one {key} for all models; set it under parameters")
                if used:
                    self.keys.left_out(f"{place}.{key}", "there is one for all models, under parameters")
                continue
            if value is None:
                if not self.mergekit:
                    raise RequestError(f"{here}: has no value")
                self.keys.left_out(f"{place}.{key}", "has no value")
                continue
            setting = read_setting(value, parameter, switch, here, self.keys)
            if not used:
                continue
            if parameter.name in found:
                raise RequestError(f"{here}: lambda and scale are the same parameter; give one")
            found[parameter.name] = setting
        return found

    def _parameter(self, key: str, place: str) -> tuple[Parameter, tuple[str, str] | None, bool] | None:
        """The parameter, what a bool stands for, and whether it is used; None for one that is read over."""
        dialect = self.method.mergekit if self.mergekit else None
        by_key = {p.key: p for p in self.method.parameters if p.name != "seed"}
        known = tuple(by_key)
        if dialect is None:
            by_key |= {p.name: p for p in self.method.parameters if p.name != "seed"}
            if key in by_key:
                return by_key[key], None, True
            if key == "seed":
                raise self._error(f"{place}.{key}", "the seed stands at the top of a recipe, beside method")
        else:
            ours = {key for key, one in by_key.items() if one.name not in dialect.settable}
            by_key = {k: p for k, p in by_key.items() if p.name in dialect.settable}
            if key in by_key:
                return by_key[key], dialect.switches.get(by_key[key].name), True
            if key in dialect.unused:
                kind = "coefficient" if dialect.unused[key] else "bool"
                return Parameter(key, key, kind, "", per_model=dialect.unused[key]), None, False
            known = (*by_key, *dialect.unused)
            if key in ours and key not in _keys_of_mergekit():
                raise self._error(
                    f"{place}.{key}",
                    f"unknown parameter of mergekit's {self.method.name}; it belongs to merganser's own form: write "
                    "method: instead of merge_method: to use it",
                )
        told, what = f"(known: {', '.join(known) or 'none'})", f"unknown parameter of {self.method.name}"
        self.keys.unknown(key, (*by_key, *known), place, told, what)
        return None

    def _check_inputs(self, slice_: Slice) -> None:
        place = slice_.place
        if slice_.base is None and self.method.base == "required":
            place = "base_model"
        if self.mergekit and slice_.base_alone(self.method):
            return
        try:
            self.method.check_inputs(slice_.base is not None, len(slice_.inputs(self.method)))
        except RequestError as error:
            raise self._error(place, str(error)) from None

    def _check_statistics(self, slice_: Slice) -> None:
        """Every model that is merged has statistics where the method takes them, and none has where it does not."""
        kind, merged = self.method.statistics, slice_.inputs(self.method)
        for source in slice_.sources:
            if source.statistics is None:
                if kind is not None and source in merged:
                    raise self._error(
                        source.place,
                        f"{self.method.name} needs statistics of the kind {kind!r} (statistics: PATH)",
                    )
                continue
            place = f"{source.place}.statistics"
            if kind is None:
                raise self._error(place, f"{self.method.name} takes no statistics; remove the key")
            if source not in merged:
                raise self._error(
                    place, f"{self.method.name} takes no statistics of its base; remove the key"
                )
            reference = self.opened[source.model][0]
            if reference.lora is not None or reference.path in self.documents:
                raise self._error(
                    place,
                    f"{str(reference)!r} exists only in this recipe, so nothing was observed on it; save it first",
                )

    def _required(self, recipe: Recipe, part: Part, slice_: Slice) -> None:
        dialect = self.method.mergekit if self.mergekit else None
        above = (slice_.parameters, part.parameters, recipe.parameters)
        for parameter in self.method.parameters:
            if not parameter.required and (dialect is None or parameter.name not in dialect.required):
                continue
            if any(parameter.name in holder for holder in above):
                continue
            if not parameter.per_model:
                raise self._error("parameters", f"{self.method.name} needs {parameter.key}")
            for source in slice_.inputs(self.method):
                if parameter.name in source.parameters:
                    continue
                if source.place == "base_model":
                    raise self._error(
                        "base_model",
                        f"mergekit's {self.method.name} merges the base too: list it under models with a "
                        f"{parameter.key}, give one under parameters, or use merganser's own form",
                    )
                raise self._error(
                    f"{source.place}.parameters",
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
                dtype = parse_dtype(raw.removeprefix("torch.")) if isinstance(raw, str) else None
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
