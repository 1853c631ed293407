"""Git Re-Basin's weight matching: permutations that bring one model as near to another as they can."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from merganser.algebra import Weights
from merganser.algebra.axes import Keep, permute, reading_of
from merganser.algebra.labelled import in_label_order
from merganser.architectures import Axis, Reading, read_as
from merganser.architectures.inferred import infer, read_with
from merganser.errors import AlgebraError, RequestError, did_you_mean
from merganser.methods.align._descent import CHUNK, Block, Matching, Order, Values, distance, match
from merganser.methods.steps import STAYS, step

Key = tuple[str, tuple[tuple[str, int], ...]]
OUTSIDE = ("vocab", "labels")
"""What these axes count has a name outside the model, so their order is not free."""
MOST_FAMILY_BYTES = 1 << 20


@step("align", paper="arXiv:2209.04836 (Git Re-Basin); P311", claim=STAYS)
def align(
    weights: Weights,
    *,
    to: Weights,
    axes: Sequence[str] | None = None,
    seed: int = 0,
    rounds: int = 100,
    start: Literal["outside", "identity"] = "outside",
    memory: float = 4.0,
    family: Path | None = None,
    inferred: bool = False,
) -> Weights:
    """Align to another model: permute what may be permuted so that the L2 distance to it becomes small.

    Minimises ||A - P(B)||, A being `to`, over one permutation for every instance of every axis whose order is free:
    residual, neurons, heads (with their groups), the elements of heads, experts; not vocabularies, labels and what the
    family's file calls fixed. Coordinate descent (Ainsworth et al. 2022, algorithm 1): axes in a random order, for each
    the best assignment by the products of A's and B's slices while the others stay, until none improves. The function
    stays; what changes is where a straight line to A leads. A bare body without a head gives its hidden states in A's
    order.

    to: a model of the same family and sizes. axes: names of axes to permute (default: all that are free). seed: of the
    order in which axes are visited, default 0; other seeds may find other local optima. rounds: at most so many visits
    of each axis, 1 or more, default 100. start: "outside" (default) makes a first pass from what is fixed inwards;
    "identity" is the paper's. memory: GiB that may be held for tensors and products beside the process,
    default 4; of the models as much is kept as fits, the rest is read again for every axis.
    For models without a family's file: `family`, a file of that format (sizes may be plain numbers), or `inferred:
    true`, which takes the model for a plain sequence of Linear and Conv layers. Whether connections skip layers cannot
    be seen in names and shapes: say it only where none does.

    Reads both models' tensors when called. Raises `AlgebraError` for models of other families or sizes, `RequestError`
    for unknown or fixed axes and too little memory. The report in the manifest has the distances before and after, and
    by axis the share of elements that moved. Papers: arXiv:2209.04836; P311 (what such matching does and does not do).
    """
    if rounds < 1:
        raise RequestError(f"align: rounds must be 1 or more, not {rounds}")
    weights, to = _read(weights, to, family, inferred)
    to = in_label_order(to, weights)
    matched = _Models(to, weights)
    free = matched.free(axes)
    matched.hold(int(memory * 2**30), free)
    blocks = list(matched.blocks())
    identity: dict[Axis, Order] = {}
    before = distance(blocks, identity)
    found = match(blocks, matched.sizes, free, seed=seed, rounds=rounds, start=start)
    after = distance(blocks, found.orders)
    result = _permuted(weights, found, matched.copied)
    return result.with_note(
        {
            "step": "align",
            "to": to.label,
            "seed": seed,
            "l2_before": before,
            "l2_after": after,
            "rounds": found.rounds,
            "settled": found.settled,
            "axes": _moved(found),
            "unmatched": matched.unmatched,
        }
    )


def _read(weights: Weights, to: Weights, family: Path | None, inferred: bool) -> tuple[Weights, Weights]:
    """Both models with their axes known."""
    if family is not None and inferred:
        raise RequestError("align: family and inferred are two ways to name the axes; give one")
    if family is None and not inferred:
        for one in (weights, to):
            try:
                reading_of(one)
            except RequestError as error:
                raise type(error)(
                    f"{error}. align takes such a file as `family: FILE`, or `inferred: true` for a plain sequence of "
                    "Linear and Conv layers"
                ) from None
        return weights, to
    if any(one.origin is None or one.reading is not None for one in (weights, to)):
        raise RequestError(
            "align: family and inferred read models as they are stored, so align must be the first step"
        )
    assert weights.origin is not None and to.origin is not None
    if family is not None:
        text = _text(family)
        readings = [read_with(one, text, family.name) for one in (weights.origin, to.origin)]
    else:
        for name in dict.fromkeys((*weights, *to)):
            shapes = [list(one[name].shape) if name in one else "lacking" for one in (weights, to)]
            if shapes[0] != shapes[1]:
                raise AlgebraError(
                    f"align: tensor {name!r} is {shapes[0]} in {weights.label!r} and {shapes[1]} in {to.label!r}; "
                    "without a family's file only models of the same names and shapes can be aligned"
                )
        first = infer(weights.origin)
        readings = [first, read_as(to.origin, first.family, to.origin.config or {})]
    own, other = (
        one._with({name: one.entry(name) for name in one}, reading=reading)
        for one, reading in zip((weights, to), readings, strict=True)
    )
    return own, other


def _text(path: Path) -> str:
    with path.open("rb") as file:
        raw = file.read(MOST_FAMILY_BYTES + 1)
    if len(raw) > MOST_FAMILY_BYTES:
        raise RequestError(f"{path}: is larger than {MOST_FAMILY_BYTES} bytes, so it is no family file")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise RequestError(f"{path}: is not text, so it is no family file") from None


class _Models:
    """A and B with their axes, and the tensors of both as far as they fit in memory."""

    def __init__(self, a: Weights, b: Weights) -> None:
        self.a, self.b = a, b
        self.readings = reading_of(a), reading_of(b)
        one, other = self.readings
        if one.family != other.family:
            raise AlgebraError(
                f"align: {b.label!r} is of the family {other.family.name} and {a.label!r} of {one.family.name}"
            )
        self.names: tuple[dict[Key, str], dict[Key, str]] = (_names(a, one), _names(b, other))
        self.shared = [key for key in self.names[1] if key in self.names[0]]
        self.unmatched = [
            name for names in self.names for key, name in names.items() if key not in set(self.shared)
        ]
        self.sizes = {axis: size for axis, size in other.sizes.items() if axis in one.sizes}
        self._check_sizes()
        self.copied = {
            axis
            for axis in self.sizes
            if axis.name in other.family.indices
            and any(axis.name in dim.axes for spec in other.family.tensors for dim in spec.dims)
        }
        self.spare = 0
        self.kept: tuple[dict[str, Values], dict[str, Values]] = {}, {}

    def _check_sizes(self) -> None:
        one, _ = self.readings
        for axis, size in self.sizes.items():
            if one.sizes[axis] != size:
                raise AlgebraError(
                    f"align: {axis} is {size} in {self.b.label!r} and {one.sizes[axis]} in {self.a.label!r}; only "
                    "models of the same sizes can be aligned (take, pad or widen makes them equal)"
                )

    def free(self, chosen: Sequence[str] | None, *, none_is_fine: bool = False) -> list[Axis]:
        """The axes that may be permuted, in the order of the family's file."""
        family = self.readings[1].family
        fixed = dict(family.fixed) | {
            name: "its elements have names outside the model"
            for name in (*family.axes, *family.indices)
            if name.endswith(OUTSIDE)
        }
        for index in family.indices:
            if not any(axis.name == index for axis in self.copied):
                fixed.setdefault(index, "it numbers parts that follow one another")
        known = [name for name in (*family.axes, *family.indices) if name not in fixed]
        for name in chosen or ():
            if name in fixed:
                raise RequestError(f"align: axes: the order of {name} is not free: {fixed[name]}")
            if name not in known:
                raise RequestError(
                    f"align: axes: the family {family.name} has no axis {name!r}{did_you_mean(name, known)} "
                    f"(free are {', '.join(known) or 'none'})"
                )
        wanted = set(known if chosen is None else chosen)
        held = {axis for key in self.shared for axis in self._axes(key)} | self.copied
        free = [
            axis for axis, size in self.sizes.items() if axis.name in wanted and size > 1 and axis in held
        ]
        if not free and not none_is_fine:
            raise RequestError(
                f"align: {self.b.label!r} has no axis of those chosen whose elements could be moved"
            )
        return free

    def hold(self, limit: int, free: Sequence[Axis]) -> None:
        """Check what the matching needs against a limit; the rest of it is for tensors that are kept."""
        wide = 8 if any(expression.wide for one in (self.a, self.b) for expression in one.values()) else 4
        largest = max((self.a[self.names[0][key]].size for key in self.shared), default=0)
        longest = max(self.sizes[axis] for axis in free)
        grouped = max((self._beside(axis, free) for axis in free), default=0)
        needed = wide * (6 * largest + 2 * grouped) + 40 * longest**2 + 24 * CHUNK
        if needed > limit:
            raise RequestError(
                f"align: memory {limit / 2**30:.2f} GiB is too little: the largest tensor has {largest} elements and "
                f"the longest axis {longest}, which needs {needed / 2**30:.2f} GiB. Raise memory, or choose axes"
            )
        self.spare = limit - needed

    def _beside(self, axis: Axis, free: Sequence[Axis]) -> int:
        """Elements of the tensors that are held together while the pairs of an axis are compared."""
        total = 0
        for key in self.shared:
            for dim in self.readings[0].parts(self.names[0][key]):
                if any(axis in part and any(f in free for f in part[part.index(axis) + 1 :]) for part in dim):
                    total += self.a[self.names[0][key]].size
        return total

    def blocks(self) -> Iterator[Block]:
        """The products of axes in all tensors that both have."""
        one = self.readings[0]
        for key in self.shared:
            name = self.names[0][key]
            shape, theirs = self.a[name].shape, self.b[self.names[1][key]].shape
            if shape != theirs:
                raise AlgebraError(
                    f"align: tensor {name!r} has shape {list(shape)} in {self.a.label!r} and {list(theirs)} in "
                    f"{self.b.label!r}"
                )
            place = dict(one.tensors[name].at)
            copies = {
                axis: place[axis.name]
                for axis in self.copied
                if axis.name in place and axis == one.tensors[name].axis(one.family, axis.name)
            }
            for piece, (cut, dims) in enumerate(_pieces(one, name)):
                lengths = tuple(f if isinstance(f, int) else one.sizes[f] for dim in dims for f in dim)
                line = (key[0], tuple((n, v) for n, v in key[1] if n not in {a.name for a in copies}), piece)
                yield Block(
                    dims, self._first(key, cut, lengths), self._second(key, cut, lengths), copies, line
                )

    def _first(self, key: Key, cut: tuple[slice, ...], lengths: tuple[int, ...]) -> Callable[[], Values]:
        return lambda: self._tensor(0, key)[cut].reshape(lengths)

    def _second(
        self, key: Key, cut: tuple[slice, ...], lengths: tuple[int, ...]
    ) -> Callable[[Mapping[Axis, int]], Values]:
        def second(place: Mapping[Axis, int]) -> Values:
            moved = {axis.name: value for axis, value in place.items()}
            at = tuple((name, moved.get(name, value)) for name, value in key[1])
            return self._tensor(1, (key[0], at))[cut].reshape(lengths)

        return second

    def _tensor(self, which: int, key: Key) -> Values:
        name = self.names[which][key]
        found = self.kept[which].get(name)
        if found is None:
            found = np.asarray((self.a, self.b)[which].compute(name, allow_nonfinite=False))
            if found.nbytes <= self.spare:
                self.spare -= found.nbytes
                self.kept[which][name] = found
        return found

    def _axes(self, key: Key) -> Iterator[Axis]:
        for dim in self.readings[0].parts(self.names[0][key]):
            for part in dim:
                yield from (factor for factor in part if isinstance(factor, Axis))


def _names(weights: Weights, reading: Reading) -> dict[Key, str]:
    """Float tensors by the line that names them and their indices: the same in models with and without a prefix."""
    return {
        (named.spec.pattern, named.at): name
        for name, named in reading.tensors.items()
        if not weights.entry(name).carried
    }


def _pieces(
    reading: Reading, name: str
) -> Iterator[tuple[tuple[slice, ...], tuple[tuple[Axis | int, ...], ...]]]:
    """Where the products of axes in a tensor lie, and their factors by dimension."""
    found: list[tuple[tuple[slice, ...], tuple[tuple[Axis | int, ...], ...]]] = [((), ())]
    for dim in reading.parts(name):
        ends = np.cumsum([0, *(reading.length(part) for part in dim)]).tolist()
        found = [
            ((*cut, slice(at, end)), (*dims, part))
            for cut, dims in found
            for (at, end), part in zip(pairwise(ends), dim, strict=True)
        ]
    return iter(found)


def _permuted(weights: Weights, found: Matching, copied: set[Axis]) -> Weights:
    """Copies first: what is inside them is numbered by where they come to stand."""
    by_name: dict[str, dict[int | tuple[int, ...], Keep]] = {}
    for axis in sorted(found.orders, key=lambda axis: axis not in copied):
        order = found.orders[axis]
        if not np.array_equal(order, np.arange(len(order))):
            by_name.setdefault(axis.name, {})[axis.at] = order
    for name, orders in by_name.items():
        weights = permute(weights, name, orders)
    return weights


def _moved(found: Matching) -> dict[str, Any]:
    """By axis: how many instances and elements there are, and how many elements are at another place than before."""
    report: dict[str, Any] = {}
    for axis, order in found.orders.items():
        one = report.setdefault(axis.name, {"instances": 0, "elements": 0, "moved": 0})
        one["instances"] += 1
        one["elements"] += len(order)
        one["moved"] += int((order != np.arange(len(order))).sum())
    for one in report.values():
        one["share_moved"] = round(one["moved"] / one["elements"], 4)
    return report
