"""A model family: what its data file says, checked for contradictions when it is read."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib.resources import files
from typing import Any

import yaml

from merganser.architectures.loader import Loader, parse_loaders
from merganser.architectures.notation import (
    NORMS,
    Dimension,
    FamilyError,
    Formula,
    TensorSpec,
    parse_module,
)
from merganser.architectures.positions import LIST, NUMBERS, PositionRule, parse_positions
from merganser.architectures.stages import StageSpec, parse_stages
from merganser.errors import RequestError, did_you_mean

KEYS = {
    "family", "model_types", "body", "indices", "axes", "config", "lists", "fixed", "require", "modules", "heads",
    "tied", "norms", "inexact", "wrappers", "experts", "curved", "when", "same", "numbers", "stages", "positions",
    "aliases", "proportional", "at_most", "rigid", "beyond", "together", "loaders", "tie", "beside",
    "counted", "centred",
}  # fmt: skip
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MOST_BRACKETS = 2000
FOLDED, BRANCH, STREAM = "folded", "branch", "stream"


@dataclass(frozen=True, slots=True)
class AxisSpec:
    """An axis, or an index in tensor names (a layer, an expert); an index may also be an axis (of a router's rows).

    `scope` are the indices it belongs to: `neurons[layer]` may have other elements in every layer. `size` is a formula
    of config keys and of axes named before it.
    """

    name: str
    scope: tuple[str, ...]
    size: Formula


@dataclass(frozen=True, slots=True)
class NormSpec:
    """Where a normalisation sits.

    `readers` are the modules that read its output, all of them, so that its weight can be folded into theirs. `place`
    is "folded" for those, "branch" for a norm at the end of a branch before it is added to the residual stream, and
    "stream" for a norm on the stream itself.
    """

    module: str
    place: str
    readers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """What the stock loader takes for granted, of all model types of the file or of one."""

    formula: Formula
    model_type: str | None = None

    def concerns(self, config: Mapping[str, Any]) -> bool:
        """Whether the rule holds for a model with this config."""
        return self.model_type in (None, config.get("model_type"))


@dataclass(frozen=True, slots=True)
class TieSpec:
    """What the loader makes of `tie_word_embeddings`.

    `default` are the model types that tie where config.json does not say it, `always` those that tie whatever it says.
    `untied` are further config keys of a model that is untied in words, for the loader takes the flag for them too.
    `needs` is a config key that, where it is false, leaves only the head tied. `headless` are classes without the head,
    for all that their names sound like it.
    """

    default: tuple[str, ...] = ()
    always: tuple[str, ...] = ()
    untied: Mapping[str, Any] = field(default_factory=dict)
    needs: str | None = None
    headless: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ExpertSpec:
    """How a family of mixtures of experts stands to a dense one.

    `index` numbers the experts, `neurons` is the axis inside one, `router` the module that chooses, `per_token` the
    config key of how many it chooses. `dense` is the model type of the dense sibling ("": none), `modules` maps modules
    of an expert to its modules, `settings` are config keys that the sibling does not have. `alone` is the config key by
    which the loader divides the shares of the chosen experts by their sum, where it does not do so for one alone.
    """

    index: str
    neurons: str
    router: str
    per_token: str
    dense: str
    modules: Mapping[str, str]
    settings: Mapping[str, Any]
    alone: str = ""


@dataclass(frozen=True)
class Family:
    """One data file. `heads` are the tensors outside the body; a checkpoint of the bare body has none of them.

    `curved` are modules whose output passes through a nonlinearity although it has a residual axis, and which: such an
    axis can be put in another order, and not be rotated. `same` are axes that are another one where the module between
    the two is missing.
    """

    name: str
    model_types: tuple[str, ...]
    body: str
    wrappers: tuple[str, ...]
    axes: Mapping[str, AxisSpec]
    indices: Mapping[str, AxisSpec]
    config: Mapping[str, Formula]
    lists: Mapping[str, str]
    fixed: Mapping[str, str]
    require: tuple[Rule, ...]
    when: Mapping[str, Formula]
    tensors: tuple[TensorSpec, ...]
    heads: frozenset[str]
    tied: Mapping[str, str]
    norms: Mapping[str, NormSpec]
    inexact: Mapping[str, str]
    experts: ExpertSpec | None = None
    curved: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, str] = field(default_factory=dict)
    """Config lists of numbers of copies, by key: `mlp_only_layers` holds numbers of layers."""
    stages: StageSpec | None = None
    """The layers whose output a backbone gives out."""
    same: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    centred: frozenset[str] = frozenset()
    """Axes from which norms without a tensor of their own subtract the mean."""
    loaders: Mapping[str, Loader] = field(default_factory=dict)
    """What the stock loaders of its model types take for granted, where a step goes from one type to another."""
    tie: TieSpec = field(default_factory=TieSpec)

    counted: Mapping[Formula, str] = field(default_factory=dict)
    """Ids of tokens that the loader uses as numbers: the id by a formula (-1: none, "all": all ids), and the axis whose
    elements are counted from behind it, or the reason why it cannot change and what helps."""

    def loader(self, config: Mapping[str, Any]) -> Loader | None:
        """What is known of the stock loader of a model with this config."""
        return self.loaders.get(str(config.get("model_type")))

    positions: tuple[PositionRule, ...] = ()
    """What the loader takes from the number of a copy."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names of config keys. Where config.json has both, the loader takes the other name's value."""
    proportional: Mapping[str, str] = field(default_factory=dict)
    """Config keys that grow and shrink with the number of copies: groups of so many experts each."""
    at_most: Mapping[str, str] = field(default_factory=dict)
    """Config keys that another key bounds."""
    rigid: frozenset[str] = frozenset()
    """Fixed axes whose number of elements is part of what each of them means: not moved, nor cut, nor padded."""
    together: Mapping[str, str] = field(default_factory=dict)
    """Axes whose size the loader takes as a multiple of another's, which a step that keeps the function widens too."""
    beside: Mapping[str, Mapping[str, tuple[str, str]]] = field(default_factory=dict)
    """Keys of other small files that hold pairs of numbers, of a copy and of an element of an axis in it."""
    beyond: Mapping[str, str] = field(default_factory=dict)
    """Config keys, by index, of copies after those that the index counts, which the loader passes over."""

    def value(self, config: Mapping[str, Any], key: str) -> Any:
        """What the loader takes for a (dotted) config key, None where it is missing or null."""
        for alias in self._names.get(key, ()):
            if (value := get_key(config, alias)) is not None:
                return value
        return get_key(config, key)

    def put(self, config: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
        """The config with one key changed, under every name that it has there."""
        names = [alias for alias in self._names.get(key, ()) if get_key(config, alias) is not None]
        if get_key(config, key) is not None or not names:
            names.append(key)
        for name in names:
            config = with_key(config, name, value)
        return dict(config)

    @cached_property
    def _names(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for alias, key in self.aliases.items():
            found.setdefault(key, []).append(alias)
        return found

    @cached_property
    def by_module(self) -> dict[str, list[TensorSpec]]:
        """The tensors of every module pattern."""
        found: dict[str, list[TensorSpec]] = {}
        for spec in self.tensors:
            found.setdefault(spec.module, []).append(spec)
        return found

    @cached_property
    def by_template(self) -> dict[str, list[TensorSpec]]:
        """The tensors by their name with every number replaced by `#`."""
        found: dict[str, list[TensorSpec]] = {}
        for spec in self.tensors:
            found.setdefault(template(re.sub(r"\{\w+\}", "0", spec.pattern)), []).append(spec)
        return found

    def match(self, name: str) -> tuple[TensorSpec, dict[str, int]] | None:
        """The line that names a tensor, and the values of its indices."""
        for spec in self.by_template.get(template(name), ()):
            found = _regex(spec.pattern).fullmatch(name)
            if found is not None:
                return spec, {index: int(value) for index, value in found.groupdict().items()}
        return None

    def joined(self, modules: Container[str]) -> Family:
        """The family of a model that has the given modules: axes with no module between them are one."""
        gone = {axis: other for axis, (other, module) in self.same.items() if module not in modules}
        if not gone:
            return self

        def renamed(dim: Dimension) -> Dimension:
            return Dimension(
                tuple(tuple(gone.get(f, f) if isinstance(f, str) else f for f in term) for term in dim.terms)
            )

        keys = {self.axes[axis].size.key: Formula(other) for axis, other in gone.items()}
        return replace(
            self,
            axes={name: axis for name, axis in self.axes.items() if name not in gone},
            config={**self.config, **{key: formula for key, formula in keys.items() if key is not None}},
            fixed={name: reason for name, reason in self.fixed.items() if name not in gone},
            inexact={name: reason for name, reason in self.inexact.items() if name not in gone},
            tensors=tuple(replace(spec, dims=tuple(map(renamed, spec.dims))) for spec in self.tensors),
            same={},
        )

    def axis(self, name: str) -> AxisSpec:
        """An axis or index by name. Raises `RequestError` with the nearest name."""
        found = self.axes.get(name) or self.indices.get(name)
        if found is None:
            known = [*self.axes, *self.indices]
            raise RequestError(
                f"the family {self.name} has no axis {name!r}{did_you_mean(name, known)} (it has {', '.join(known)})"
            )
        return found


def get_key(config: Mapping[str, Any], key: str) -> Any:
    """A config value by its dotted key, None where it is missing."""
    value: Any = config
    for word in key.split("."):
        if isinstance(value, list) and word.isdigit() and int(word) < len(value):
            value = value[int(word)]
        elif isinstance(value, Mapping) and word in value:
            value = value[word]
        else:
            return None
    return value


def with_key(config: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The config with one dotted key changed."""
    changed = deepcopy(dict(config))
    *outer, last = key.split(".")
    inner: Any = changed
    for word in outer:
        inner = inner[int(word)] if isinstance(inner, list) else inner.setdefault(word, {})
    inner[int(last) if isinstance(inner, list) else last] = value
    return changed


def template(name: str) -> str:
    """A tensor name with its numbers replaced by `#`."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "#", name)


@cache
def _regex(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", pattern)
    seen: set[str] = set()
    text = ""
    for k, part in enumerate(parts):
        if k % 2 == 0:
            text += re.escape(part)
        else:
            text += f"(?P={part})" if part in seen else rf"(?P<{part}>0|[1-9]\d{{0,8}})"
            seen.add(part)
    return re.compile(text)


def parse_family(text: str, place: str) -> Family:
    """The family that a YAML text describes. Raises `FamilyError` that says where it contradicts itself."""
    if text.count("[") + text.count("{") > MOST_BRACKETS:  # libyaml recurses in C, where depth has no limit
        raise FamilyError(f"{place}: more than {MOST_BRACKETS} brackets")
    try:
        raw = yaml.load(text, Loader=LOADER)
    except (yaml.YAMLError, RecursionError) as error:
        raise FamilyError(f"{place}: not YAML: {error}") from None
    if not isinstance(raw, dict):
        raise FamilyError(f"{place}: expected a mapping")
    if unknown := sorted(set(raw) - KEYS):
        raise FamilyError(f"{place}: unknown key {unknown[0]!r}{did_you_mean(unknown[0], KEYS)}")
    for key in ("family", "model_types", "axes", "modules"):
        if key not in raw:
            raise FamilyError(f"{place}: lacks {key!r}")
    for key in set(raw) - {
        "family",
        "model_types",
        "body",
        "wrappers",
        "require",
        "positions",
        "rigid",
        "centred",
    }:
        if not isinstance(raw[key], dict):
            raise FamilyError(f"{place}: {key}: expected a mapping")
    place = f"{place} ({raw['family']})"
    indices = _axes(raw.get("indices", {}), place)
    axes = _axes(raw["axes"], place)
    body = _modules(raw["modules"], place)
    heads = _modules(raw.get("heads", {}), place)
    family = Family(
        name=str(raw["family"]),
        model_types=tuple(raw["model_types"]),
        body=str(raw.get("body", "")),
        wrappers=tuple(raw.get("wrappers", ())),
        axes=axes,
        indices=indices,
        config={str(key): Formula(str(value)) for key, value in raw.get("config", {}).items()},
        lists=dict(raw.get("lists", {})),
        fixed=dict(raw.get("fixed", {})),
        require=tuple(rule for line in raw.get("require", ()) for rule in _rules(line)),
        when={str(module): Formula(str(value)) for module, value in raw.get("when", {}).items()},
        tensors=tuple(body + heads),
        heads=frozenset(spec.pattern for spec in heads),
        tied=dict(raw.get("tied", {})),
        norms=_norms(raw.get("norms", {}), place),
        inexact=dict(raw.get("inexact", {})),
        experts=_experts(raw.get("experts"), place),
        curved=dict(raw.get("curved", {})),
        numbers=dict(raw.get("numbers", {})),
        stages=parse_stages(raw.get("stages"), place),
        same=_same(raw.get("same", {}), place),
        centred=frozenset(map(str, raw.get("centred", ()))),
        loaders=parse_loaders(raw.get("loaders", {}), [str(kind) for kind in raw["model_types"]], place),
        positions=parse_positions(raw.get("positions", []), place),
        aliases=dict(raw.get("aliases", {})),
        proportional=dict(raw.get("proportional", {})),
        at_most=dict(raw.get("at_most", {})),
        rigid=frozenset(raw.get("rigid", ())),
        beyond=dict(raw.get("beyond", {})),
        tie=_tie(raw.get("tie", {}), tuple(raw["model_types"]), place),
        counted={Formula(str(id_)): str(told) for id_, told in raw.get("counted", {}).items()},
        together=dict(raw.get("together", {})),
        beside={
            str(name): {str(key): (str(pair[0]), str(pair[1])) for key, pair in keys.items()}
            for name, keys in raw.get("beside", {}).items()
        },
    )
    _check(family, place)
    return family


def _axes(raw: Mapping[str, Any], place: str) -> dict[str, AxisSpec]:
    axes = {}
    for key, value in raw.items():
        found = re.fullmatch(r"(\w+)(?:\[(\w+(?:, ?\w+)*)\])?", str(key))
        if found is None:
            raise FamilyError(f"{place}: {key!r} is not the name of an axis, as in neurons[layer]")
        name, scope = found[1], tuple(re.split(r", ?", found[2])) if found[2] else ()
        axes[name] = AxisSpec(name, scope, Formula(str(value)))
    return axes


def _modules(raw: Mapping[str, Any], place: str, prefix: str = "") -> list[TensorSpec]:
    """Modules in the order of the file; a key whose value is a mapping is a prefix of the names inside.

    A prefix that ends in `?` may be missing with everything inside.
    """
    specs: list[TensorSpec] = []
    for name, value in raw.items():
        if isinstance(value, Mapping):
            group = f"{prefix}{name}".removesuffix("?")
            inside = _modules(value, place, f"{group}.")
            specs += [replace(spec, group=group) for spec in inside] if str(name).endswith("?") else inside
        else:
            specs += parse_module(f"{prefix}{name}", str(value), f"{place}, {prefix}{name}")
    return specs


def _norms(raw: Mapping[str, Any], place: str, prefix: str = "") -> dict[str, NormSpec]:
    """Norms by module. Readers are words, named from where the norm's line stands or after a `/` from the top."""
    norms: dict[str, NormSpec] = {}
    for name, value in raw.items():
        module = f"{prefix}{name}"
        if isinstance(value, Mapping):
            norms |= _norms(value, place, f"{module}.")
        elif value in (BRANCH, STREAM):
            norms[module] = NormSpec(module, value)
        elif isinstance(value, str) and value.split():
            norms[module] = NormSpec(
                module,
                FOLDED,
                tuple(word[1:] if word.startswith("/") else prefix + word for word in value.split()),
            )
        else:
            raise FamilyError(
                f"{place}: norms: {module}: expected the modules that read it, branch or stream"
            )
    return norms


def _rules(line: Any) -> list[Rule]:
    """`formula`, or `model_type: formula` for one of several loaders that share a file."""
    if isinstance(line, Mapping):
        return [Rule(Formula(str(text)), str(kind)) for kind, text in line.items()]
    return [Rule(Formula(str(line)))]


def _experts(raw: Any, place: str) -> ExpertSpec | None:
    if raw is None:
        return None
    keys = [key for key in ExpertSpec.__dataclass_fields__ if key != "alone"]
    if not isinstance(raw, Mapping) or sorted(raw.keys() - {"alone"}) != sorted(keys):
        raise FamilyError(f"{place}: experts: has the keys {', '.join(keys)}")
    if not isinstance(raw["modules"], Mapping) or not isinstance(raw["settings"], Mapping):
        raise FamilyError(f"{place}: experts: modules and settings are mappings")
    return ExpertSpec(**raw)


def _tie(raw: Mapping[str, Any], model_types: Sequence[str], place: str) -> TieSpec:
    """`default: [gpt2]`, `always: [t5]`, `untied: {scale_decoder_outputs: true}`, `needs: share_embeddings`."""
    known = TieSpec.__dataclass_fields__
    for key in raw:
        if key not in known:
            raise FamilyError(f"{place}: tie: unknown key {key!r}{did_you_mean(str(key), known)}")
    for key in ("default", "always"):
        listed = raw.get(key, [])
        if not isinstance(listed, list) or (strange := [kind for kind in listed if kind not in model_types]):
            told = strange[0] if isinstance(listed, list) else listed
            raise FamilyError(f"{place}: tie: {key}: lists model types of this file, not {told!r}")
    if not isinstance(raw.get("untied", {}), Mapping) or not isinstance(raw.get("needs", ""), str):
        raise FamilyError(f"{place}: tie: untied is a mapping, needs the name of a config key")
    if not isinstance(raw.get("headless", []), list):
        raise FamilyError(f"{place}: tie: headless lists names of classes")
    lists = {key: tuple(raw.get(key, ())) for key in ("default", "always", "headless")}
    return TieSpec(untied=dict(raw.get("untied", {})), needs=raw.get("needs"), **lists)


def _same(raw: Mapping[str, Any], place: str) -> dict[str, tuple[str, str]]:
    """`embedding: residual without embeddings_project`."""
    same = {}
    for axis, text in raw.items():
        found = re.fullmatch(r"(\w+) without (\S+)", str(text))
        if found is None:
            raise FamilyError(
                f"{place}: same: {axis}: expected another axis, without, and a module, not {text!r}"
            )
        same[str(axis)] = (found[1], found[2])
    return same


def _check(family: Family, place: str) -> None:
    """Everything that a file must agree with itself about."""
    known = family.axes.keys() | family.indices.keys()
    if both := family.axes.keys() & family.indices.keys():
        raise FamilyError(f"{place}: {sorted(both)[0]!r} is both an axis and an index")
    for axis in (*family.axes.values(), *family.indices.values()):
        for index in axis.scope:
            if index not in family.indices:
                raise FamilyError(f"{place}: {axis.name}[{index}]: there is no index {index!r}")
    patterns: set[str] = set()
    for spec in family.tensors:
        if spec.pattern in patterns:
            raise FamilyError(f"{place}: the tensor {spec.pattern} is named twice")
        patterns.add(spec.pattern)
        for index in spec.indices:
            if index not in family.indices:
                raise FamilyError(f"{place}: {spec.pattern}: there is no index {index!r}")
        for name in (axis for dim in spec.dims for axis in dim.axes):
            if name not in known:
                raise FamilyError(
                    f"{place}: {spec.pattern}: there is no axis {name!r}{did_you_mean(name, known)}"
                )
            if lost := set(family.axis(name).scope) - set(spec.indices):
                raise FamilyError(
                    f"{place}: {spec.pattern}: {name} belongs to a {sorted(lost)[0]}, and the name has no such index"
                )
    for from_id in family.counted.values():
        if " " not in from_id and from_id not in family.axes:
            raise FamilyError(
                f"{place}: counted: there is no axis {from_id!r}{did_you_mean(from_id, family.axes)}"
            )
    used = {axis for spec in family.tensors for dim in spec.dims for axis in dim.axes}
    for key, formula in family.config.items():
        for name in formula.names:
            if name not in known:
                raise FamilyError(
                    f"{place}: config: {key}: there is no axis {name!r}{did_you_mean(name, known)}"
                )
    told = {
        name
        for formula in (*family.config.values(), *(r.formula for r in family.require))
        for name in formula.names
    }
    for axis in family.axes.values():
        if axis.name not in used:
            raise FamilyError(f"{place}: no tensor has the axis {axis.name!r}")
        if axis.size.key is None and axis.name not in told and axis.size.names:
            raise FamilyError(
                f"{place}: the size of {axis.name} is computed ({axis.size}), so config: must say which "
                "key follows, or require: what holds it"
            )
    for name, reason in (*family.fixed.items(), *family.inexact.items()):
        if name not in known or not isinstance(reason, str):
            raise FamilyError(
                f"{place}: fixed and inexact give the name of an axis and a reason, not {name!r}"
            )
    for pair in family.together.items():
        for name in pair:
            if name not in family.axes:
                raise FamilyError(f"{place}: together: there is no axis {name!r}{did_you_mean(name, known)}")
    for pair in (pair for keys in family.beside.values() for pair in keys.values()):
        if pair[0] not in family.indices or pair[1] not in family.axes:
            raise FamilyError(f"{place}: beside: expected an index and an axis, not {' and '.join(pair)}")
    if loose := sorted(family.rigid - family.fixed.keys()):
        raise FamilyError(f"{place}: rigid: {loose[0]} must stand under fixed: too, with the reason")
    _check_copies(family, place)
    for name in (n for pair in family.tied.items() for n in pair):
        if name not in patterns:
            raise FamilyError(f"{place}: tied: no line names the tensor {name}{did_you_mean(name, patterns)}")
    for module, formula in family.when.items():
        if module not in family.by_module:
            raise FamilyError(
                f"{place}: when: there is no module {module}{did_you_mean(module, family.by_module)}"
            )
        if not formula.names:
            raise FamilyError(f"{place}: when: {module}: {formula} depends on nothing")
    for one, (other, module) in family.same.items():
        if one not in family.axes or other not in family.axes or family.axes[one].size.key is None:
            raise FamilyError(
                f"{place}: same: {one} and {other} must be axes, {one} with a config key for its size"
            )
        if module not in family.by_module:
            raise FamilyError(
                f"{place}: same: there is no module {module}{did_you_mean(module, family.by_module)}"
            )
    for module in family.curved:
        if module not in family.by_module:
            raise FamilyError(
                f"{place}: curved: there is no module {module}{did_you_mean(module, family.by_module)}"
            )
    _check_norms(family, place)
    experts = family.experts
    if experts is not None:
        for name in (experts.index, experts.neurons):
            if name not in known:
                raise FamilyError(f"{place}: experts: there is no axis {name!r}{did_you_mean(name, known)}")
        for module in (experts.router, *experts.modules):
            if module not in family.by_module:
                raise FamilyError(
                    f"{place}: experts: there is no module {module}{did_you_mean(module, family.by_module)}"
                )


def _check_copies(family: Family, place: str) -> None:
    """What config keys say of copies."""
    counted = (
        *family.lists.items(),
        *family.numbers.items(),
        *family.proportional.items(),
        *((index, index) for index in family.beyond),
        *(("stages", spec.index) for spec in [family.stages] if spec is not None),
        *((rule.name, rule.index) for rule in family.positions),
    )
    for key, index in counted:
        if index not in family.indices:
            raise FamilyError(f"{place}: {key}: there is no index {index!r}")
    for rule in family.positions:
        if rule.index not in rule.entry.names and f"[{rule.index}]" not in rule.entry.text:
            raise FamilyError(f"{place}: positions: {rule.entry} does not depend on {rule.index}")
        if other := sorted(set(rule.model_types) - set(family.model_types)):
            raise FamilyError(f"{place}: positions: {other[0]!r} is none of the model types")
        homes = {LIST: family.lists, NUMBERS: family.numbers}.get(rule.way)
        if homes is not None and rule.keys[0] not in homes:
            raise FamilyError(f"{place}: positions: {rule.keys[0]} must stand under lists: or numbers: too")


def _check_norms(family: Family, place: str) -> None:
    modules = family.by_module
    for norm in family.norms.values():
        for module in (norm.module, *norm.readers):
            if module not in modules:
                raise FamilyError(
                    f"{place}: norms: there is no module {module}{did_you_mean(module, modules)}"
                )
        if modules[norm.module][0].kind not in NORMS:
            raise FamilyError(f"{place}: norms: {norm.module} is no normalisation")
        for reader in norm.readers:
            if modules[reader][0].reads is None:
                raise FamilyError(f"{place}: norms: {norm.module}: {reader} is no matrix")
    for spec in family.tensors:
        if spec.kind in NORMS and _on_the_stream(spec) and spec.module not in family.norms:
            raise FamilyError(
                f"{place}: norms: must say what reads {spec.module} (a list), or that it is on the branch or the stream"
            )


def _on_the_stream(spec: TensorSpec) -> bool:
    return any("residual" in axis for dim in spec.dims for axis in dim.axes)


@cache
def families() -> Mapping[str, Family]:
    """All families of transformers' own classes, by name."""
    found: dict[str, Family] = {}
    folder = files("merganser.architectures").joinpath("families")
    for path in sorted(folder.iterdir(), key=lambda p: p.name):
        if path.name.endswith(".yaml"):
            family = parse_family(path.read_text(encoding="utf-8"), path.name)
            found[family.name] = family
    return found


@cache
def _family_file(model_type: str) -> tuple[str, str] | None:
    """The folder and file whose first lines list a model type, found without parsing all of them.

    `hub_families` has those whose classes are not in transformers but beside the weights on the hub.
    """
    for folder in ("families", "hub_families"):
        for path in sorted(files("merganser.architectures").joinpath(folder).iterdir(), key=lambda p: p.name):
            if not path.name.endswith(".yaml"):
                continue
            text = path.read_text(encoding="utf-8")
            listed = re.search(r"^model_types: *\[(.*?)\]", text, re.MULTILINE | re.DOTALL)
            if listed and model_type in re.split(r"[\s,]+", listed[1].strip()):
                return folder, path.name
    return None


@cache
def family_of(model_type: str) -> Family | None:
    """The family of a config's `model_type`, or None."""
    place = _family_file(model_type)
    if place is None:
        return None
    text = files("merganser.architectures").joinpath(*place).read_text(encoding="utf-8")
    return parse_family(text, place[-1])


def known_model_types() -> Iterable[str]:
    """Every model type that a family file lists."""
    return [kind for family in families().values() for kind in family.model_types]
