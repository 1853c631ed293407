"""Which tensors of several models can be compared one to one, and what part of the model each belongs to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from merganser.algebra import Expression, Weights
from merganser.algebra.axes import reading_of
from merganser.algebra.labelled import in_label_order, other_rows, reference_of
from merganser.architectures import NamedTensor, Reading
from merganser.architectures.notation import NORMS
from merganser.errors import MerganserError, RequestError

KINDS = ("embedding", "attention", "mlp", "norm", "head", "other")
_LAYER = re.compile(r"(?:^|[._])(\d+)(?=[._])")
_WORDS = (
    ("norm", r"\w*norm\d*|ln_?\d+|ln_f|ln_\w+|bn\d*"),
    ("head", r"lm_head|head|classifier|score|logits|cls"),
    ("embedding", r"\w*embed\w*|wte|wpe|emb|shared"),
    ("attention", r"\w*attn\w*|\w*attention\w*|[qkvo]_proj|qkv\w*|query\w*|key|value|to_[qkv]|[qkv]"),
    ("mlp", r"mlp|ffn?|feed_forward|fc_?\d*|intermediate|\w+_proj|dense\w*|experts?|w[123]|linear\d"),
)


@dataclass(frozen=True)
class Place:
    """One tensor and who has it: names by the number of the model, all of one shape."""

    name: str
    names: Mapping[int, str]
    base: str | None
    shape: tuple[int, ...]
    kind: str
    layer: int | None

    @property
    def size(self) -> int:
        """Number of elements."""
        count = 1
        for length in self.shape:
            count *= length
        return count

    @property
    def matrix(self) -> bool:
        """Whether it tells about the start: at least 2 by 2 numbers and not a norm, whose entries are alike anyway."""
        return (
            len(self.shape) > 1
            and self.shape[0] > 1
            and self.size // self.shape[0] > 1
            and self.kind != "norm"
        )


@dataclass(frozen=True)
class Lineup:
    """The models side by side."""

    labels: tuple[str, ...]
    base_label: str
    models: tuple[Weights, ...]
    base: Weights | None
    places: tuple[Place, ...]
    left_out: tuple[Mapping[str, str], ...]
    grouped_by: str

    @property
    def changes(self) -> bool:
        """Whether the inputs are changes already (adapters, saved task vectors), so that there is no model to see."""
        return all(abs(degree_of(model)) < 0.5 for model in self.models)

    def expression(self, place: Place, model: int) -> Expression:
        """The tensor of a model, -1 being the base."""
        if model < 0:
            assert self.base is not None
            assert place.base is not None
            return self.base[place.base]
        return self.models[model][place.names[model]]

    def vector(self, place: Place, model: int) -> Expression | None:
        """The tensor of a task vector: the difference from the base, or the input itself where that is a change."""
        if self.changes:
            return self.expression(place, model)
        if place.base is None:
            return None
        return self.expression(place, model) - self.expression(place, -1)

    def parameters(self, model: int) -> int:
        """How many float numbers a model has."""
        weights = self.base if model < 0 else self.models[model]
        assert weights is not None
        return sum(e.size for e in weights.values() if not e.carried)


def line_up(models: Sequence[Weights], base: Weights | None = None) -> Lineup:
    """Match tensors by name, or by their line in the family's file where all models are of one family.

    Raises `RequestError` for fewer than two checkpoints, for models among changes, and for a base of changes.
    """
    models, base, odd = _by_labels(models, base)
    everyone = [*models, *([base] if base is not None else [])]
    if not models or len(everyone) < 2:
        raise RequestError("diagnose compares at least two checkpoints: two models, or one and --base")
    kinds = {abs(degree_of(model)) < 0.5 for model in everyone}
    if len(kinds) > 1:
        change = next(m for m in everyone if abs(degree_of(m)) < 0.5)
        model = next(m for m in everyone if abs(degree_of(m)) >= 0.5)
        raise RequestError(
            f"{change.label} is a change (an adapter or a task vector) and {model.label} a model: diagnose takes "
            "checkpoints of one kind. Add the change to its base first, or leave --base out for changes"
        )
    if base is not None and kinds == {True}:
        raise RequestError(
            "--base: adapters and task vectors are changes already and have no base to subtract"
        )
    readings, grouped_by = _readings(everyone)
    tables = [_table(one, reading) for one, reading in zip(everyone, readings, strict=True)]
    parts = _parts(readings)
    places: list[Place] = []
    left_out: list[Mapping[str, str]] = []
    for k, names in odd.items():
        for name in sorted(names):
            left_out.append(_left(everyone[k], name, "its rows have other labels than the first model's"))
        tables[k] = {key: name for key, name in tables[k].items() if name not in names}
    known = dict.fromkeys(key for table in tables for key in table)
    for key in known:
        found = {k: table[key] for k, table in enumerate(tables) if key in table}
        _settle(key, found, everyone, len(models), base is not None, parts, places, left_out)
    base_label, *labels = _told_apart([base.label if base is not None else "", *(m.label for m in models)])
    return Lineup(tuple(labels), base_label, tuple(models), base, tuple(places), tuple(left_out), grouped_by)


def _by_labels(
    models: Sequence[Weights], base: Weights | None
) -> tuple[list[Weights], Weights | None, dict[int, set[str]]]:
    """The models with classifiers' rows lined up by label, and by model the tensors whose rows have other labels."""
    everyone = [*models, *([base] if base is not None else [])]
    first = reference_of([*([base] if base is not None else []), *models])
    odd: dict[int, set[str]] = {}
    if first is not None:
        odd = {k: set(found) for k, one in enumerate(everyone) if (found := other_rows(one, first))}
        everyone = [in_label_order(one, first, lenient=True) for one in everyone]
    return everyone[: len(models)], everyone[-1] if base is not None else None, odd


def _told_apart(labels: Sequence[str]) -> list[str]:
    """The labels, one that is there twice numbered."""
    found: list[str] = []
    for label in labels:
        number, unique = 1, label
        while unique in found:
            number += 1
            unique = f"{label} ({number})"
        found.append(unique)
    return found


def degree_of(weights: Weights) -> float:
    """The degree of the first float tensor: 1 for a model, 0 for a change."""
    return next((weights.entry(name).degree for name in weights if not weights.entry(name).carried), 1.0)


def _readings(everyone: Sequence[Weights]) -> tuple[list[Reading | None], str]:
    found: list[Reading | None] = []
    why = ""
    for weights in everyone:
        try:
            found.append(reading_of(weights))
        except MerganserError as error:
            found.append(None)
            why = why or str(error)
    families = {reading.family.name for reading in found if reading is not None}
    if not why and len(families) == 1:
        return found, f"the family {families.pop()}"
    if not why:
        why = f"the models are of the families {', '.join(sorted(families))}"
    return [None] * len(everyone), f"names ({why})"


def _table(weights: Weights, reading: Reading | None) -> dict[object, str]:
    if reading is None:
        return {name: name for name in weights}
    return {
        (named.spec.pattern, named.at): name for name, named in reading.tensors.items() if name in weights
    }


def _settle(
    key: object,
    found: Mapping[int, str],
    everyone: Sequence[Weights],
    count: int,
    based: bool,
    parts: Mapping[object, tuple[str, int | None]],
    places: list[Place],
    left_out: list[Mapping[str, str]],
) -> None:
    """The places of one key: a class for every shape that two have."""
    shapes: dict[tuple[int, ...], list[int]] = {}
    for k, name in found.items():
        if everyone[k][name].carried:
            left_out.append(_left(everyone[k], name, "integers, bools and constants are not compared"))
        else:
            shapes.setdefault(everyone[k][name].shape, []).append(k)
    for shape, members in shapes.items():
        own = {k: found[k] for k in members if k < count}
        base = found[count] if based and count in members else None
        name = found[members[0]]
        if len(members) < 2:
            others = [list(other) for other in shapes if other != shape]
            reason = f"shape {list(shape)}, elsewhere {others[0]}" if others else "no other has it"
            left_out.append(_left(everyone[members[0]], name, reason))
            continue
        if not own or not all(shape):
            continue
        kind, layer = parts.get(key) or (kind_by_name(name), _layer_by_name(name))
        places.append(Place(name, own, base, shape, kind, layer))


def _left(weights: Weights, name: str, reason: str) -> Mapping[str, str]:
    return {"model": weights.label, "tensor": name, "reason": reason}


def _parts(readings: Sequence[Reading | None]) -> dict[object, tuple[str, int | None]]:
    """Kind and layer of every tensor that a family's file names."""
    return {
        (named.spec.pattern, named.at): (_kind(reading, named), named.at[0][1] if named.at else None)
        for reading in readings
        if reading is not None
        for named in reading.tensors.values()
    }


def _kind(reading: Reading, named: NamedTensor) -> str:
    spec, family = named.spec, reading.family
    axes = {axis for dim in spec.dims for axis in dim.axes}
    if spec.kind in NORMS:
        return "norm"
    if spec.pattern in family.heads:
        return "head"
    if spec.kind == "embedding":
        return "embedding"
    if any("head" in axis or "group" in axis for axis in axes):
        return "attention"
    if any("neuron" in axis for axis in axes):
        return "mlp"
    return kind_by_name(spec.pattern)


def kind_by_name(name: str) -> str:
    """The kind of a tensor by the words of its name; "other" where none is known."""
    words = name.lower().split(".")
    for kind, pattern in _WORDS:
        if any(re.fullmatch(pattern, word) for word in words):
            return kind
    return "other"


def _layer_by_name(name: str) -> int | None:
    found = _LAYER.search(name)
    return int(found[1]) if found and len(found[1]) < 7 else None
