"""Runs of layers as weights of their own, with the names their tensors have in the parents and will have in the result.

Names matter because values may be given by name, and places because gradients run along the layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from merganser.algebra import Weights, axes
from merganser.architectures import Axis, NamedTensor, Reading
from merganser.errors import AlgebraError, RequestError, did_you_mean, listing

Renamed = Callable[[str], str]


@dataclass(frozen=True)
class View:
    """Some layers of the models of a slice, numbered from 0.

    `inward[i]` and `outward` map names to the i-th model's and to the result's; `place` is that along the layers.
    """

    models: tuple[Weights, ...]
    inward: tuple[Renamed, ...]
    outward: Renamed
    place: Callable[[str], float]


def same(name: str) -> str:
    """A name that stays."""
    return name


def whole(models: Sequence[Weights], after: float) -> View:
    """All layers of some models. after: the place of what stands after the last layer."""
    places = _Places(models[0], after)
    return View(tuple(models), (same,) * len(models), same, places)


class _Places:
    """Where a tensor stands along the layers: 0 before and in the first, 1 in the last, `after` beyond it."""

    def __init__(self, weights: Weights, after: float) -> None:
        self.weights = weights
        self.after = after

    def __call__(self, name: str) -> float:
        return self.table[name]

    @cached_property
    def table(self) -> dict[str, float]:
        try:
            reading = axes.reading_of(self.weights)
        except (RequestError, AlgebraError) as error:
            raise RequestError(
                f"a gradient runs along the layers, and the layers of {self.weights.label!r} are not known: {error}"
            ) from None
        return places(reading, self.after)


def places(reading: Reading, after: float) -> dict[str, float]:
    """For every tensor its place along the layers that it belongs to, and `after` for what stands after the last."""
    found = {}
    for name, named in reading.tensors.items():
        axis = _layer_axis(reading, named)
        if axis is not None:
            last = reading.sizes[Axis(axis)] - 1
            found[name] = min(dict(named.at)[axis] / last, 1.0) if last else 1.0
        else:
            found[name] = after if stands_after(reading, named) else 0.0
    for head, shared in reading.left_out.items():
        found[head] = found[shared]
    return found


def _layer_axis(reading: Reading, named: NamedTensor) -> str | None:
    """The index of the whole model that numbers the layer of a tensor."""
    tops = [k for k, _ in named.at if not reading.family.indices[k].scope]
    return tops[0] if tops else None


def stands_after(reading: Reading, named: NamedTensor) -> bool:
    """Whether a tensor outside the layers stands after the last of them in its family's file."""
    order = [spec.pattern for spec in reading.family.tensors]
    tops = {name for name, spec in reading.family.indices.items() if not spec.scope}
    layered = [k for k, spec in enumerate(reading.family.tensors) if tops & set(spec.indices)]
    return bool(layered) and order.index(named.spec.pattern) > max(layered)


# Ranges ---------------------------------------------------------------------------------------------------------------


def layer_axis(reading: Reading, module: str | None, place: str) -> str:
    """The index that numbers the layers of a module (`encoder` is `encoder_layer`), or of the only one.

    Raises `RequestError` for a module that the family lacks, and where there are several and none is named.
    """
    tops = [name for name, spec in reading.family.indices.items() if not spec.scope and "layer" in name]
    if module is None or module == "default":
        if len(tops) == 1:
            return tops[0]
        names = [top.removesuffix("_layer") for top in tops]
        raise RequestError(
            f"{place}: {reading.family.name} has several runs of layers; write modules: with {listing(names)}"
        )
    for top in tops:
        if module in (top, top.removesuffix("_layer")):
            return top
    if len(tops) == 1:
        raise RequestError(
            f"{place}: {reading.family.name} has no modules; write slices: or models: without them"
        )
    known = [top.removesuffix("_layer") for top in tops]
    raise RequestError(
        f"{place}: {reading.family.name} has no module {module!r}{did_you_mean(module, known)} "
        f"(known: {', '.join(known)})"
    )


def cut(
    models: Sequence[Weights],
    ranges: Sequence[tuple[int, int] | None],
    axis: str,
    offset: int,
    what: Sequence[str],
    after: float,
) -> tuple[View, int]:
    """A view of layer ranges that begins at layer `offset` of the result, and how many layers it has.

    `what` says of every model where the recipe names it, `after` is the place of what stands after the last layer.
    Raises `RequestError` for layers that are not there.
    """
    parts, starts, counts = [], [], []
    for weights, wanted, place in zip(models, ranges, what, strict=True):
        there = axes.sizes(weights)[axis]
        first, end = wanted or (0, there)
        if end > there:
            raise RequestError(
                f"{place}.layer_range: {weights.label!r} has {there} layers, so there is no layer {end - 1}"
            )
        order = np.arange(first, end)
        parts.append(axes.take(weights, axis, order) if len(order) else axes.none_of(weights, axis))
        starts.append(first)
        counts.append(end - first)
    if len(set(counts)) > 1:
        raise RequestError(
            f"{what[0].rpartition('.')[0]}: the sources of a slice need as many layers each; these have {counts}"
        )
    readings = [axes.reading_of(part) for part in parts]
    inward = tuple(_moved(reading, axis, start) for reading, start in zip(readings, starts, strict=True))
    # The label keys random draws; with the layers in it, two slices of one model draw for themselves.
    label = [
        f"{w.label}[{s}:{s + n}]" + ("" if s == offset else f" at {offset}")
        for w, s, n in zip(models, starts, counts, strict=True)
    ]
    named = tuple(part.relabel(text) for part, text in zip(parts, label, strict=True))
    found = places(readings[0], after)
    return View(named, inward, _moved(readings[0], axis, offset), found.__getitem__), counts[0]


def _moved(reading: Reading, axis: str, by: int) -> Renamed:
    """Names with the number of the layer raised."""
    if by == 0:
        return same
    table = {}
    for name, named in reading.tensors.items():
        at = dict(named.at)
        if axis in at:
            table[name] = reading.name(named.spec, at | {axis: at[axis] + by})
    return lambda name: table.get(name, name)


# Modules --------------------------------------------------------------------------------------------------------------


def of_module(reading: Reading, axis: str) -> Callable[[str], bool]:
    """Whether a tensor belongs to a module: its layers, and what lies beside them under the same name."""
    stem = next(spec.pattern for spec in reading.family.tensors if axis in spec.indices).split("{")[0]
    roots = {
        n: s.pattern.split("{")[0]
        for n in reading.family.indices
        for s in reading.family.tensors
        if n in s.indices
    }
    shared = _common([root for name, root in roots.items() if not reading.family.indices[name].scope])
    inside = stem[: stem.find(".", len(shared)) + 1] if "." in stem[len(shared) :] else stem

    def belongs(name: str) -> bool:
        named = reading.tensors.get(name)
        if named is None:
            return False
        if axis in dict(named.at):
            return True
        return _layer_axis(reading, named) is None and named.spec.pattern.startswith(inside)

    return belongs


def _common(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:length]


def joined_modules(parts: Sequence[tuple[str, Weights]]) -> Weights:
    """One model from results by module axis: each gives its own tensors, the first what belongs to none."""
    _, first = parts[0]
    reading = axes.reading_of(first)
    entries = {name: first.entry(name) for name in first}
    tensors, sizes = dict(reading.tensors), dict(reading.sizes)
    copies = reading
    checkpoints = {id(c): c for c in first.checkpoints}
    notes = list(first.notes)
    for axis, other in parts[1:]:
        theirs = axes.reading_of(other)
        mine, belongs = of_module(reading, axis), of_module(theirs, axis)
        gone = [name for name in entries if mine(name)]
        added = [name for name in other if belongs(name)]
        entries = {n: e for n, e in entries.items() if n not in set(gone)} | {
            n: other.entry(n) for n in added
        }
        tensors = {n: t for n, t in tensors.items() if n not in set(gone)} | {
            n: theirs.tensors[n] for n in added
        }
        scope = reading.family.axis
        sizes = {
            one: size for one, size in sizes.items() if one.name != axis and axis not in scope(one.name).scope
        }
        sizes |= {
            one: size
            for one, size in theirs.sizes.items()
            if one.name == axis or axis in scope(one.name).scope
        }
        copies = copies.ordered(axis, [(theirs, range(theirs.sizes[Axis(axis)]))])
        checkpoints |= {id(c): c for c in other.checkpoints}
        notes += other.notes
    return first._with(
        entries,
        reading=copies.resized(sizes, tensors),
        checkpoints=tuple(checkpoints.values()),
        notes=tuple(notes),
    )


def stacked(parts: Sequence[tuple[Weights, int]], axis: str) -> Weights:
    """Slices one after the other: what stands before the layers is the first's, what stands after them the last's."""
    if len(parts) == 1:
        return parts[0][0]
    return axes.stack([(weights, np.arange(count)) for weights, count in parts], axis)


__all__: Sequence[str] = [
    "View",
    "cut",
    "joined_modules",
    "layer_axis",
    "of_module",
    "places",
    "stacked",
    "whole",
]
