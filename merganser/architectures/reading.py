"""A model read through its family file: every tensor's axes, every axis's size, and the config that says the same."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

from merganser.architectures import positions, stages, ties
from merganser.architectures.family import AxisSpec, Family, family_of, get_key, known_model_types, with_key
from merganser.architectures.notation import Dimension, Formula, Missing, TensorSpec
from merganser.architectures.positions import Move, PositionRule, Values
from merganser.checkpoint import Checkpoint
from merganser.errors import AlgebraError, CheckpointError, RequestError, did_you_mean, listing

NOT_GATHERED = (
    "so DeepSpeed ZeRO-3 leaves weights that were not gathered. Put them together with zero_to_fp32.py, which lies in "
    "the training's checkpoint, or save with stage3_gather_16bit_weights_on_model_save"
)
MOST_COPIES = 100_000
"""Layers or experts that a config may ask for."""


class Axis(NamedTuple):
    """One axis of the model at hand: `neurons` of layer 3 is `Axis("neurons", (3,))`."""

    name: str
    at: tuple[int, ...] = ()

    def __str__(self) -> str:
        return self.name + (f"[{', '.join(map(str, self.at))}]" if self.at else "")


Part = tuple[Axis | int, ...]


class NamedTensor(NamedTuple):
    """A tensor of the model at hand: the line that names it, its indices, its shape."""

    spec: TensorSpec
    at: tuple[tuple[str, int], ...]

    def axis(self, family: Family, name: str) -> Axis:
        """An axis of this tensor by its name in the file."""
        place = dict(self.at)
        return Axis(name, tuple(place[index] for index in family.axis(name).scope))

    def parts(self, family: Family, dim: Dimension) -> tuple[Part, ...]:
        """The parts of a dimension, axes instead of their names."""
        return tuple(
            tuple(f if isinstance(f, int) else self.axis(family, f) for f in term) for term in dim.terms
        )


@dataclass(frozen=True)
class Reading:
    """What a family file says about one model.

    `sizes` are those of the axes (elements) and of the indices (copies). `tensors` are in the order of the checkpoint;
    `missing` are optional tensors that the model does not have and tied ones that its files do not hold. `places` is
    what the loader took from the number of each copy, once copies have moved; before that the config says it. `moves`
    is how they have.
    """

    family: Family
    config: Mapping[str, Any]
    sizes: Mapping[Axis, int]
    tensors: Mapping[str, NamedTensor]
    prefix: str
    source: str
    places: Mapping[PositionRule, Values] = field(default_factory=dict)
    moves: Mapping[str, Move] = field(default_factory=dict)
    moved: frozenset[str] = frozenset()
    """Axes whose elements an operation gave another order, another basis or another scale."""

    rearranged: frozenset[str] = frozenset()
    """Axes whose elements have other numbers than when the model was read."""

    def beyond(self, index: str) -> int:
        """How many copies may follow the last that the index counts: the loader passes over them."""
        key = self.family.beyond.get(index)
        held = self.family.value(self.config, key) if key is not None else None
        return held if isinstance(held, int) and 0 < held < MOST_COPIES else 0

    def instances(self, name: str) -> list[Axis]:
        """The axes of that name, in order. Raises `RequestError` for a name that the family lacks."""
        self.family.axis(name)
        return [axis for axis in self.sizes if axis.name == name]

    def parts(self, tensor: str) -> list[tuple[Part, ...]]:
        """For each dimension of a tensor its parts, products of axes and numbers."""
        named = self.tensors[tensor]
        return [named.parts(self.family, dim) for dim in named.spec.dims]

    def length(self, part: Part) -> int:
        """The elements of a part."""
        return math.prod(f if isinstance(f, int) else self.sizes[f] for f in part)

    def shape(self, named: NamedTensor) -> tuple[int, ...]:
        """The shape that a tensor has by the sizes of its axes."""
        return tuple(sum(map(self.length, named.parts(self.family, dim))) for dim in named.spec.dims)

    def name(self, spec: TensorSpec, at: Mapping[str, int]) -> str:
        """The name of a tensor in this model."""
        own = spec.name(dict(at))
        return own if spec.pattern in self.family.heads else self.prefix + own

    @cached_property
    def tied(self) -> dict[str, str]:
        """Tied tensors, by name: the one that a checkpoint may leave out, and the one that it shares."""
        found = {}
        for head, shared in self.family.tied.items():
            specs = [next(s for s in self.family.tensors if s.pattern == p) for p in (head, shared)]
            if not any(spec.indices for spec in specs):
                found[self.name(specs[0], {})] = self.name(specs[1], {})
        return found

    @cached_property
    def left_out(self) -> dict[str, str]:
        """The tied tensors that the model has and its files do not hold, and those they share.

        A model without an output head (a classifier, a bare body) has none: config.json's class names tell.
        """
        return ties.left_out(self.family, self.prefix, self.config, self.tensors)

    @property
    def is_tied(self) -> bool:
        """Whether an output head is left out because it shares the embedding."""
        return any(name in self.family.heads for name in self.left_out)

    def named(self, names: Iterable[str]) -> dict[str, NamedTensor]:
        """The places in the family's file of tied names, whether the model holds them or not."""
        plain = {self.name(spec, {}): spec for spec in self.family.tensors if not spec.indices}
        return {name: NamedTensor(plain[name], ()) for name in names if name in plain}

    def refused(self, text: str) -> AlgebraError:
        """An error about this model."""
        return AlgebraError(f"{self.source} ({self.family.name}): {text}")

    def counted(self, config: Mapping[str, Any]) -> list[tuple[Formula, int | str]]:
        """Ids of tokens that the loader uses as numbers under a config, by the formula that gives them.

        An id, "all" for every id, or -1 for none.
        """
        found: list[tuple[Formula, int | str]] = []
        for formula in self.family.counted:
            try:
                value = formula(lambda name: self.family.value(config, name))
            except Missing:
                value = -1
            found.append((formula, value if isinstance(value, int | str) else -1))
        return found

    # Following a change ---------------------------------------------------------------------------------------------

    def resized(
        self,
        sizes: Mapping[Axis, int],
        tensors: Mapping[str, NamedTensor],
        config: Mapping[str, Any] | None = None,
        places: Mapping[PositionRule, Values] | None = None,
    ) -> Reading:
        """The reading of a changed model. Its config follows when the plan is made, by `followed`.

        So sizes that belong together (heads and residual, where the loader takes their quotient) may change one by one.
        """
        return replace(
            self,
            sizes=dict(sizes),
            tensors=dict(tensors),
            config=deepcopy(dict(config or self.config)),
            places=self.places if places is None else places,
        )

    def placed(self, index: str) -> dict[PositionRule, Values]:
        """What the loader takes from the number of each copy of an index.

        Raises `AlgebraError` where a list of config.json has another length.
        """
        count = self.sizes.get(Axis(index), 0)
        found = {}
        for rule in positions.rules_of(self.family, self.config, index):
            values = self.places.get(rule)
            try:
                values = (
                    positions.values_of(self.family, self.config, rule, count) if values is None else values
                )
            except AlgebraError as error:
                raise self.refused(str(error)) from None
            if values is not None:
                found[rule] = values
        return found

    def ordered(self, index: str, runs: Sequence[tuple[Reading, Sequence[int]]]) -> Reading:
        """The reading with the config and the places of copies put together from models (this one first).

        `runs` are models and the numbers of their copies. Raises `AlgebraError` where one model has for its copies what
        another has not.
        """
        config: dict[str, Any] = dict(self.config)
        for key in (key for key, of in self.family.lists.items() if of == index):
            lists = [reading.listed(key, index) for reading, _ in runs]
            moved = [
                values[k] for values, (_, order) in zip(lists, runs, strict=True) if values for k in order
            ]
            if None not in lists:
                config = self.family.put(config, key, moved)
        for key in (key for key, of in self.family.numbers.items() if of == index):
            numbers = [self.family.value(reading.config, key) for reading, _ in runs]
            if all(isinstance(values, list) for values in numbers):
                there = [k in values for values, (_, order) in zip(numbers, runs, strict=True) for k in order]
                config = self.family.put(config, key, [k for k, named in enumerate(there) if named])
        if (beyond := self.family.beyond.get(index)) is not None:
            last = self.family.value(runs[-1][0].config, beyond)
            if last != self.family.value(config, beyond):
                config = self.family.put(config, beyond, last or 0)
        places = {rule: values for rule, values in self.places.items() if rule.index != index}
        places |= self._joined(index, runs)
        moves = {**self.moves, index: positions.followed_moves([r.move(index).taken(o) for r, o in runs])}
        return replace(
            self, config=positions.said(self.family, config, places, None), places=places, moves=moves
        )

    def move(self, index: str) -> Move:
        """How the copies of an index have moved since the model was read."""
        count = self.sizes.get(Axis(index), 0)
        return self.moves.get(index) or Move(
            self.source, self.config, self.placed(index), tuple(range(count))
        )

    def _joined(
        self, index: str, runs: Sequence[tuple[Reading, Sequence[int]]]
    ) -> dict[PositionRule, Values]:
        """What the loader takes from the number of every copy, of models one after the other."""
        found = [positions.taken(reading.placed(index), order) for reading, order in runs]
        places = {}
        for rule in dict.fromkeys(rule for part in found for rule in part):
            if all(rule in part for part in found):
                places[rule] = tuple(value for part in found for value in part[rule])
            elif rule in found[0] or len({value for part in found for value in part.get(rule, ())}) > 1:
                sources = {
                    rule in part: reading.source for part, (reading, _) in zip(found, runs, strict=True)
                }
                raise self.refused(
                    f"the {index}s of {sources[True]} are told apart by {rule.name} and those of {sources[False]} are "
                    f"not, and one config.json cannot say both. Take the {index}s of models that agree in model_type "
                    "and in these keys"
                )
        return places

    def listed(self, key: str, index: str) -> list[Any] | None:
        """A config list with one entry for each copy, None where config.json has none."""
        values = self.family.value(self.config, key)
        if not isinstance(values, list):
            return None
        if len(values) != (count := self.sizes.get(Axis(index), len(values))):
            raise self.refused(
                f"config.json's {key} has {len(values)} entries and there are {count} of {index}"
            )
        return values

    def followed(self) -> dict[str, Any]:
        """config.json for the axes as they are now.

        Raises `AlgebraError` where the stock loader has no way to say what the axes have become.
        """
        family = self.family
        config = deepcopy(dict(self.config))
        before = _sizes(family, self.config, self.source)
        common = {name: self._common(name) for name in (*family.indices, *family.axes)}
        wanted = self._wanted(common)
        for key, value in wanted.items():
            if isinstance(family.value(config, key), int):
                config = family.put(config, key, value)
        config = self._in_proportion(config, before, common)
        config = positions.said(family, config, self.places, self._unsayable)
        _check_rules(family, common, config, self.refused, before)
        self.check_presence(config, self.refused)
        if self._lost(common, config):
            for key, value in wanted.items():
                if family.value(config, key) is None:
                    config = family.put(config, key, value)
        for name, size in self._lost(common, config).items():
            spec = family.axis(name)
            raise self.refused(
                f"{name} would be {common[name]}, and the stock loader takes it from config.json as {spec.size} "
                f"= {size}; no key can say anything else"
            )
        if family.stages is not None:
            config = self._staged(family.stages, config, before, common)
        for key, index in family.lists.items():
            values = family.value(config, key)
            if isinstance(values, list) and len(values) != (common.get(index) or len(values)):
                raise self.refused(
                    f"config.json's {key} has {len(values)} entries and there are {common[index]} of {index}"
                )
        return config

    def _staged(
        self,
        spec: stages.StageSpec,
        config: dict[str, Any],
        before: Mapping[str, int],
        common: Mapping[str, int | None],
    ) -> dict[str, Any]:
        old, new, move = before.get(spec.index), common.get(spec.index), self.moves.get(spec.index)
        if move is None or old is None or new is None:
            return config
        return stages.followed(spec, config, old, move.order, new, self.refused)

    def said(self) -> dict[str, int]:
        """What the config's keys of sizes are for the axes as they are, whether or not config.json has them."""
        return self._wanted({name: self._common(name) for name in (*self.family.indices, *self.family.axes)})

    def _unsayable(self, rule: PositionRule, text: str) -> AlgebraError:
        move = self.moves.get(rule.index)
        order = move.sayable(self.family) if move else None
        if order is None:
            return self.refused(f"{text}. Leave every {rule.index} at the number that it has")
        numbers = positions.as_text(order)
        step = (
            f"layers: {numbers}"
            if rule.index == "layer"
            else f"layers: {{keep: '{numbers}', index: {rule.index}}}"
        )
        return self.refused(f"{text}. It can say this one: {step}")

    def _in_proportion(
        self, config: dict[str, Any], before: Mapping[str, int], common: Mapping[str, int | None]
    ) -> dict[str, Any]:
        """Counts that go with the number of copies: groups of as many experts each, runs of a group of layers."""
        family = self.family
        for key, index in family.proportional.items():
            old, new, held = before.get(index), common.get(index), family.value(config, key)
            if not isinstance(held, int) or not old or new is None or new == old or held in (0, 1):
                continue
            if old % held == 0 and new % (old // held):
                each = old // held
                raise self.refused(
                    f"there would be {new} of {index}, and the stock loader has them in groups of {each} ({key}); the "
                    f"nearest legal numbers are {new // each * each or each} and {(new // each + 1) * each}"
                )
            if old % held and held % old:
                raise self.refused(
                    f"there would be {new} of {index}, and the stock loader shares {key} ({held}) among them; {held} "
                    f"is no multiple of {old}, so no other number gives each what it has. Leave all {old} of {index}"
                )
            config = family.put(config, key, held * new // old)
        for key, bound in family.at_most.items():
            least, held = family.value(config, bound), family.value(config, key)
            changed = least != family.value(self.config, bound)
            if changed and isinstance(held, int) and isinstance(least, int) and held > least:
                config = family.put(config, key, least)
        return config

    def said_before(self) -> dict[str, int]:
        """The sizes of axes by the config as it was when the model was read."""
        return _sizes(self.family, self.config, self.source)

    def check_presence(self, config: Mapping[str, Any], refused: Any) -> None:
        """Whether tensors that only some copies have are there in those and in no other."""
        for name, named in self.tensors.items():
            rule = self.family.when.get(named.spec.module)
            if rule is not None and not self._present(rule, named.at, config):
                raise refused(
                    f"the tensor {name!r} would be there, and the stock loader has it only where {rule}"
                )
        for module, rule in self.family.when.items():
            spec = self.family.by_module[module][0]
            held = {named.at for named in self.tensors.values() if named.spec is spec}
            copies = {
                tuple((k, v) for k, v in named.at if k in spec.indices)
                for named in self.tensors.values()
                if set(spec.indices) <= dict(named.at).keys()
            }
            for at in sorted(copies - held):
                if self._present(rule, at, config):
                    raise refused(
                        f"the tensor {self.name(spec, dict(at))!r} would be missing, and the stock loader needs it "
                        f"where {rule}"
                    )

    def _present(self, rule: Formula, at: Iterable[tuple[str, int]], config: Mapping[str, Any]) -> bool:
        place = dict(at)
        try:
            return bool(rule(lambda name: place[name] if name in place else self.family.value(config, name)))
        except Missing:
            return True

    def _wanted(self, common: Mapping[str, int | None]) -> dict[str, int]:
        """What the config's keys should be."""
        wanted: dict[str, int] = {}
        earlier: set[str] = set()
        for spec in (*self.family.indices.values(), *self.family.axes.values()):
            size = common[spec.name]
            if spec.size.key is not None and spec.size.key not in earlier and size is not None:
                wanted[spec.size.key] = size
            earlier.add(spec.name)
        for key, formula in self.family.config.items():
            try:
                wanted[key] = formula(lambda name: common.get(name))
            except Missing:
                continue
        return wanted

    def _lost(self, common: Mapping[str, int | None], config: Mapping[str, Any]) -> dict[str, int]:
        """Axes that the config would give another size, and that size."""
        sizes = _sizes(self.family, config, self.source)
        return {
            name: sizes[name]
            for name, size in common.items()
            if size is not None and sizes.get(name, size) != size
        }

    def _common(self, name: str) -> int | None:
        """The one size of all axes of that name. Raises `AlgebraError` where they differ, for config has one number."""
        found = {axis: self.sizes[axis] for axis in self.instances(name)}
        if len(set(found.values())) > 1:
            axes = list(found)
            other = next(axis for axis in axes if found[axis] != found[axes[0]])
            key = self.family.axis(name).size.key or next(
                (key for key, formula in self.family.config.items() if name in formula.names), name
            )
            raise self.refused(
                f"{axes[0]} would have {found[axes[0]]} elements and {other} {found[other]}: the stock loader has one "
                f"number for all of them (config.json: {key}). Give every {' and '.join(self.family.axis(name).scope)} "
                f"the same size; the nearest that loses nothing is {max(found.values())}"
            )
        return next(iter(found.values()), None)


def read(checkpoint: Checkpoint, without: Collection[str] = ()) -> Reading:
    """Read a model through its family's file, as if it lacked the tensors `without`.

    Raises `RequestError` where there is no config or no file for its model type, `QuantizedError` where the tensors are
    codes, `CheckpointError` where a tensor is
    not named by the file, is missing, or has a shape that contradicts config.json.
    """
    checkpoint.need_numbers()
    config = checkpoint.config
    if config is None:
        raise RequestError(
            f"{checkpoint.name}: has no config.json, so what its axes mean is not known; give the model's directory"
        )
    kind = config.get("model_type")
    family = family_of(str(kind))
    if family is None:
        if family_of(inner := _text_part(config)) is not None:
            raise RequestError(
                f"{checkpoint.name}: there is no family file for model_type {kind!r}, which holds a text model "
                f"({inner}) beside other parts. Its axes and layers are known once it lies alone: "
                "AutoModelForImageTextToText.from_pretrained(MODEL).get_decoder().save_pretrained(TEXT) of "
                "transformers writes it, without an output head of its own, and set_decoder puts it back "
                "(docs/named-axes.md, Layers that move)"
            )
        raise RequestError(
            f"{checkpoint.name}: there is no family file for model_type {kind!r}"
            f"{did_you_mean(str(kind), known_model_types())}; "
            f"`merganser architecture {checkpoint.path}` prints a draft of one"
        )
    return read_as(checkpoint, family, config, without)


def _text_part(config: Mapping[str, Any]) -> str:
    """The model type of a text model inside another; "" for none. Old configs have its keys among their own."""
    text = config.get("text_config")
    if isinstance(text, Mapping) and text.get("model_type") is not None:
        return str(text["model_type"])
    inside = isinstance(text, Mapping) or isinstance(config.get("vision_config"), Mapping)
    return f"{config.get('model_type')}_text" if inside else ""


def read_as(
    checkpoint: Checkpoint, family: Family, config: Mapping[str, Any], without: Collection[str] = ()
) -> Reading:
    """Read a model through a given family, as if it lacked the tensors `without`."""
    prefix = ties.prefix_of(family, checkpoint.tensors)
    family = family.joined({name.removeprefix(prefix).rpartition(".")[0] for name in checkpoint.tensors})
    sizes = _sizes(family, config, checkpoint.name)
    tensors: dict[str, NamedTensor] = {}
    unknown = []
    for name in checkpoint.tensors:
        if name in without:
            continue
        named = _named(family, name, prefix)
        if named is None:
            unknown.append(name)
        else:
            tensors[name] = named
    if unknown:
        raise CheckpointError(
            f"{checkpoint.name}: {len(unknown)} tensors that the family {family.name} does not name: {listing(unknown)}"
        )
    reading = Reading(family, config, _placed(family, sizes, tensors), tensors, prefix, checkpoint.name)
    _check_copies(reading, sizes)
    _check_inner_copies(reading, sizes)
    for name, named in tensors.items():
        shape, expected = checkpoint.tensors[name].shape, reading.shape(named)
        if shape != expected:
            axes = " ".join(map(str, named.spec.dims))
            told = ", ".join(
                f"{spec.name} = {sizes.get(spec.name, 'not given')} (config.json: {spec.size})"
                for spec in _specs(family, named.spec)
            )
            raise CheckpointError(
                f"{checkpoint.name}: tensor {name!r} has shape {list(shape)}, and as {axes} it should have "
                f"{list(expected)}: {told}. config.json and the tensor contradict each other{_not_gathered(shape)}"
            )

    def refused(text: str) -> CheckpointError:
        return CheckpointError(f"{checkpoint.name}: {text}")

    _check_rules(family, sizes, config, refused, None)
    reading.check_presence(config, refused)
    return reading


def read_tensors(
    family: Family, config: Mapping[str, Any], tensors: Mapping[str, NamedTensor], prefix: str, source: str
) -> Reading:
    """The reading of a model that is yet to be made, from its config and its tensors' places in a family's file."""
    sizes = _sizes(family, config, source)
    return Reading(family, config, _placed(family, sizes, tensors), tensors, prefix, source)


def _specs(family: Family, spec: TensorSpec) -> Iterator[AxisSpec]:
    return iter({axis: family.axis(axis) for dim in spec.dims for axis in dim.axes}.values())


def name_tensors(family: Family, names: Iterable[str]) -> dict[str, NamedTensor]:
    """Those of some tensors that the family names, whether or not they are a whole model."""
    known = list(names)
    prefix = ties.prefix_of(family, known)
    pairs = ((name, _named(family, name, prefix)) for name in known)
    return {name: named for name, named in pairs if named is not None}


def _named(family: Family, name: str, prefix: str) -> NamedTensor | None:
    if prefix and name.startswith(prefix):
        found = family.match(name.removeprefix(prefix))
        if found is not None and found[0].pattern not in family.heads:
            return NamedTensor(found[0], tuple(found[1].items()))
    found = family.match(name)
    if found is None or (prefix and found[0].pattern not in family.heads):
        return None
    return NamedTensor(found[0], tuple(found[1].items()))


def unnamed(family: Family, names: Sequence[str]) -> list[str]:
    """The tensors among these that a family's file does not name, neither as weights nor as constants."""
    prefix = ties.prefix_of(family, dict.fromkeys(names))
    return [name for name in names if _named(family, name, prefix) is None]


def _sizes(family: Family, config: Mapping[str, Any], source: str) -> dict[str, int]:
    """The size of every axis and the count of every index, by the config."""
    sizes: dict[str, int] = {}
    loader = family.loader(config)

    def looked_up(name: str) -> Any:
        if name in sizes:
            return sizes[name]
        value = family.value(config, name)
        if value is None and loader is not None and name not in config:
            return loader.defaults.get(name)
        return value

    for spec in (*family.indices.values(), *family.axes.values()):
        try:
            size = spec.size(looked_up)
        except Missing as missing:
            if _optional(family, spec.name):
                continue
            raise CheckpointError(
                f"{source}: config.json has no {missing}, which gives the size of {spec.name} ({spec.size})"
            ) from None
        except TypeError:
            raise CheckpointError(
                f"{source}: config.json does not give numbers for {', '.join(spec.size.names)} ({spec.name})"
            ) from None
        if isinstance(size, float) and size.is_integer():
            size = int(size)
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size < 2**40:
            raise CheckpointError(f"{source}: config.json gives {spec.name} ({spec.size}) the size {size!r}")
        if spec.name in family.indices and size > MOST_COPIES:
            raise CheckpointError(f"{source}: config.json asks for {size} of {spec.name}")
        sizes[spec.name] = size
    return sizes


def _optional(family: Family, axis: str) -> bool:
    """Whether every tensor that has an axis or index may be missing."""
    holders = [s for s in family.tensors if axis in s.indices or any(axis in dim.axes for dim in s.dims)]
    return all(spec.optional or spec.group or spec.pattern in family.heads for spec in holders)


def _placed(family: Family, sizes: Mapping[str, int], tensors: Mapping[str, NamedTensor]) -> dict[Axis, int]:
    """The size of every axis that a tensor has, and the count of every index."""
    found: dict[Axis, int] = {}
    for named in tensors.values():
        place = dict(named.at)
        for index in named.spec.indices:
            scope = tuple(place[outer] for outer in family.indices[index].scope)
            found.setdefault(Axis(index, scope), sizes.get(index, 0))
        for dim in named.spec.dims:
            for name in dim.axes:
                found.setdefault(named.axis(family, name), sizes.get(name, 0))
    order = {name: k for k, name in enumerate((*family.indices, *family.axes))}
    return dict(sorted(found.items(), key=lambda item: (order[item[0].name], item[0].at)))


def _check_copies(reading: Reading, sizes: Mapping[str, int]) -> None:
    """Every copy that the config counts is there, and no other; no tensor of a copy is missing."""
    family = reading.family
    held: dict[str, set[tuple[tuple[str, int], ...]]] = {}
    for named in reading.tensors.values():
        held.setdefault(named.spec.pattern, set()).add(named.at)
    for name, named in reading.tensors.items():
        for index, value in named.at:
            if value >= sizes.get(index, 0) + reading.beyond(index):
                key = family.indices[index].size
                raise CheckpointError(
                    f"{reading.source}: tensor {name!r} is of {index} {value}, and config.json counts "
                    f"{sizes.get(index, 0)} ({key})"
                )
    for _, name in _missing(reading, sizes):
        raise CheckpointError(
            f"{reading.source}: lacks the tensor {name!r}, which every {family.name} of this size has"
        )


def _missing(reading: Reading, sizes: Mapping[str, int]) -> Iterator[tuple[TensorSpec, str]]:
    """Tensors that the config asks for and that are not there, save tied and optional ones."""
    family = reading.family
    held: dict[str, set[tuple[tuple[str, int], ...]]] = {}
    for named in reading.tensors.values():
        held.setdefault(named.spec.pattern, set()).add(named.at)
    bare = not any(name.startswith(reading.prefix) for name in reading.tensors) if reading.prefix else False
    groups = {named.spec.group for named in reading.tensors.values()}
    for spec in family.tensors:
        if spec.optional or spec.pattern in family.heads or bare or (spec.group and spec.group not in groups):
            continue
        for at in _places(spec, sizes):
            if at not in held.get(spec.pattern, ()):
                name = reading.name(spec, dict(at))
                if name not in reading.tied and name not in reading.left_out:
                    yield spec, name


def _not_gathered(shape: tuple[int, ...]) -> str:
    """Where empty tensors come from, and the way out."""
    if math.prod(shape):
        return ""
    return f"; it is empty: {NOT_GATHERED}"


def contradiction(checkpoint: Checkpoint) -> str | None:
    """Where a model's tensors and its config.json cannot both be right, so that the loader would fail or fill up.

    Only what is sure is told: weights of another shape than the config gives, layers that the config counts and that
    are not there while others are. Names that the family's file does not have are left alone, and so is a model of
    an unknown family. Reads no tensor.
    """
    config = checkpoint.config
    family = None if config is None else family_of(str(config.get("model_type")))
    if config is None or family is None:
        return None
    prefix = ties.prefix_of(family, checkpoint.tensors)
    family = family.joined({name.removeprefix(prefix).rpartition(".")[0] for name in checkpoint.tensors})
    try:
        sizes = _sizes(family, config, checkpoint.name)
    except CheckpointError:
        return None  # keys that transformers has defaults for
    found = {name: _named(family, name, prefix) for name in checkpoint.tensors}
    tensors = {name: named for name, named in found.items() if named is not None}
    reading = Reading(family, config, _placed(family, sizes, tensors), tensors, prefix, checkpoint.name)
    for name, named in tensors.items():
        stored = checkpoint.tensors[name]
        sure = named.spec.kind in ("linear", "conv1d", "embedding") and not named.spec.optional
        counted = all(value < sizes.get(index, 0) for index, value in named.at)
        if sure and counted and stored.dtype.is_float and stored.shape != reading.shape(named):
            told = ", ".join(
                f"{spec.name} = {sizes.get(spec.name, 'not given')} (config.json: {spec.size})"
                for spec in _specs(family, named.spec)
            )
            return (
                f"tensor {name!r} in {stored.file.path.name} has shape {list(stored.shape)}, and by config.json it "
                f"would be {list(reading.shape(named))}: {told}{_not_gathered(stored.shape)}"
            )
    patterns = {named.spec.pattern for named in tensors.values()}
    for spec, name in _missing(reading, sizes):
        if spec.pattern in patterns or (not spec.indices and len(tensors) == len(found)):
            counts = ", ".join(f"{sizes.get(index, 0)} of {index}" for index in spec.indices) or "one"
            return f"the tensor {name!r} is missing, and config.json counts {counts}"
    return None


def _check_inner_copies(reading: Reading, sizes: Mapping[str, int]) -> None:
    """Where a layer has one expert's tensor it has it of all: layers may lack experts as a whole, not in part."""
    held: dict[tuple[TensorSpec, tuple[tuple[str, int], ...]], set[int]] = {}
    for named in reading.tensors.values():
        if len(named.at) > 1 and not named.spec.pattern.endswith(".bias"):
            held.setdefault((named.spec, named.at[:-1]), set()).add(named.at[-1][1])
    for (spec, outer), found in held.items():
        index = spec.indices[-1]
        if lost := sorted(set(range(sizes.get(index, 0))) - found):
            name = reading.name(spec, dict(outer) | {index: lost[0]})
            raise CheckpointError(
                f"{reading.source}: lacks the tensor {name!r}, while {len(found)} other copies are there "
                f"(config.json counts {sizes.get(index, 0)} of {index})"
            )


def _places(spec: TensorSpec, sizes: Mapping[str, int]) -> Iterator[tuple[tuple[str, int], ...]]:
    places: list[tuple[tuple[str, int], ...]] = [()]
    for index in spec.indices:
        places = [(*place, (index, value)) for place in places for value in range(sizes.get(index, 0))]
    return iter(places)


def _check_rules(
    family: Family,
    sizes: Mapping[str, int | None],
    config: Mapping[str, Any],
    refused: Any,
    before: Mapping[str, int] | None,
) -> None:
    """What the loader takes for granted about sizes."""

    def looked_up(name: str) -> Any:
        return sizes[name] if sizes.get(name) is not None else family.value(config, name)

    for rule in (rule.formula for rule in family.require if rule.concerns(config)):
        try:
            holds = rule(looked_up)
        except Missing:
            continue
        if holds:
            continue
        named = {name: looked_up(name) for name in rule.names}
        values = ", ".join(f"{name} = {value}" for name, value in named.items())
        raise refused(
            f"the stock loader needs {rule}, and here {values}{_nearest(rule, named, before, family.fixed)}"
        )


def _nearest(
    rule: Formula, named: Mapping[str, Any], before: Mapping[str, int] | None, fixed: Mapping[str, str]
) -> str:
    """The nearest sizes of what was changed that keep to the rule, or what must change with it."""
    if before is None:
        return ""
    found = []
    back = True
    for name, value in named.items():
        old = before.get(name)
        if old is None or old == value:
            continue
        for step in (-1, 1):
            tried = ({**named, name: n} for n in range(value, value + step * 8192, step) if n > 0)
            legal = next((sizes for sizes in tried if rule(sizes.get)), None)
            if legal is not None:
                found.append(f"{name} = {legal[name]}")
                back = back and legal[name] == old
    text = f". The nearest legal sizes: {' or '.join(found)}" if found else ""
    together = []
    for name, value in named.items():
        if back and name not in fixed and before.get(name) == value:
            tried = ({**named, name: n} for n in range(value + 1, value + 8192))
            if legal := next((sizes for sizes in tried if rule(sizes.get)), None):
                together.append(f"{name} = {legal[name]}")
    return f"{text}; or with another step, {' or '.join(together)}" if together else text


__all__ = ["Axis", "NamedTensor", "Reading", "get_key", "read", "read_as", "read_tensors", "with_key"]
