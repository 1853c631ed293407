"""Operations on named axes: the meaning of a model's dimensions comes from its family's file.

Every function takes weights and gives weights: each tensor that has the axis is rearranged, config.json follows, and
what the stock loader cannot express is refused, with the nearest legal sizes. An axis that belongs to a layer
(`neurons`) means all layers, each with the same indices, unless a mapping from layer to indices is given.

Layers and experts are axes too: their elements are whole groups of tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from merganser.algebra.agreement import check_agreement
from merganser.algebra.expression import Expression, apply
from merganser.algebra.labelled import in_label_order, labels_of, relabelled, rows_with_labels
from merganser.algebra.rearranged import (
    Array,
    Indices,
    Matrix,
    Mixed,
    joined,
    product,
    reshaped,
    spread,
    taken,
)
from merganser.algebra.weights import Entry, Weights, need_numbers
from merganser.architectures import Axis, NamedTensor, Reading, read
from merganser.architectures.labels import LABELS, label_names, numbered, with_label_names
from merganser.architectures.meaning import TOKENIZER_KEY
from merganser.architectures.notation import NORMS
from merganser.architectures.reading import MOST_COPIES
from merganser.architectures.ties import to_write_out, untied
from merganser.architectures.tokens import VOCAB
from merganser.checkpoint import Checkpoint
from merganser.errors import AlgebraError, RequestError, listing

Keep = Sequence[int] | np.ndarray[Any, Any]
PerAxis = Keep | Mapping[Any, Any]
ORTHOGONAL = 1e-4
"""How far the product of a rotation with its transpose may be from the identity, in any element."""


def reading_of(weights: Weights) -> Reading:
    """How these weights are read: their axes, sizes and config.

    Raises `RequestError` for weights without a config or a family file, `AlgebraError` where names were changed.
    """
    if weights.reading is not None:
        return weights.reading
    need_numbers(weights.checkpoints)
    if any(checkpoint.is_adapter for checkpoint in weights.checkpoints[:1]) and weights.origin is None:
        raise AlgebraError(
            f"{weights.label!r} is a LoRA adapter, a change of a model, and has no axes of its own. Add it to its base "
            "and take the steps on the result"
        )
    if weights.origin is None:
        raise AlgebraError(f"{weights.label!r} has no model directory behind it, so its axes are not known")
    reading = read(weights.origin, weights.passed_over)
    if lost := [name for name in reading.tensors if name not in weights]:
        raise AlgebraError(
            f"{weights.label!r} lacks tensors of its model: {listing(lost)}; named axes need all of them"
        )
    extra = [name for name in weights if name not in reading.tensors]
    if extra and reading.left_out.keys() >= set(extra):  # a tied matrix that was written out under every name
        return replace(reading, tensors={**reading.tensors, **reading.named(extra)})
    if extra:
        raise AlgebraError(
            f"{weights.label!r} has tensors that its family does not name: {listing(extra)}; was it renamed?"
        )
    told = relabelled(weights)
    return reading if told is None else replace(reading, config=told)


def sizes(weights: Weights) -> dict[str, int]:
    """The size of every axis and the count of every index, `neurons[3]` and so on."""
    return {str(axis): size for axis, size in reading_of(weights).sizes.items()}


# Moving elements ------------------------------------------------------------------------------------------------------


def take(weights: Weights, axis: str, keep: PerAxis) -> Weights:
    """Only the elements `keep` of an axis, in that order; all others are left out.

    `keep` holds distinct indices from 0; for an axis of a layer it may be a mapping from layer (or tuple of layer and
    expert) to indices. Raises `AlgebraError` for indices out of range or twice, for an axis whose elements have fixed
    places (rotary pairs), and where config.json cannot follow.
    """
    reading = reading_of(weights)
    wanted = _per_axis(reading, axis, keep)
    for one, index in wanted.items():
        if len(set(index.tolist())) != len(index):
            raise reading.refused(f"take of {one}: an index is given twice; repeat copies elements")
        if not len(index):
            raise reading.refused(f"take of {one}: nothing would be left")
    return rearrange(weights, axis, wanted)


def drop(weights: Weights, axis: str, indices: PerAxis) -> Weights:
    """All elements of an axis but these."""
    reading = reading_of(weights)
    keep = {}
    for one, index in _per_axis(reading, axis, indices).items():
        keep[one.at] = np.setdiff1d(np.arange(reading.sizes[one]), index)
    return take(weights, axis, keep)


def none_of(weights: Weights, axis: str) -> Weights:
    """What stands before and after the copies (layers) of an axis, and none of them: an end of a `stack`."""
    reading = reading_of(weights)
    return rearrange(weights, axis, {one: np.empty(0, np.int64) for one in reading.instances(axis)})


def permute(weights: Weights, axis: str, order: PerAxis) -> Weights:
    """The elements of an axis in another order: element k of the result is element `order[k]`."""
    reading = reading_of(weights)
    wanted = _per_axis(reading, axis, order)
    for one, index in wanted.items():
        if sorted(index.tolist()) != list(range(reading.sizes[one])):
            raise reading.refused(
                f"permute of {one}: the order is no permutation of {reading.sizes[one]} elements"
            )
    return rearrange(weights, axis, wanted)


def repeat(weights: Weights, axis: str, times: int, *, interleave: bool = False) -> Weights:
    """Every element of an axis `times` times: `0 1 2 0 1 2`, or with `interleave` `0 0 1 1 2 2`.

    What reads the axis is repeated too, so sums over it grow by `times`: `widen` keeps the function.
    """
    reading = reading_of(weights)
    if times < 1:
        raise RequestError(f"repeat: times must be 1 or more, not {times}")
    wanted = {}
    for one in reading.instances(axis):
        index = np.arange(reading.sizes[one])
        wanted[one] = np.repeat(index, times) if interleave else np.tile(index, times)
    return rearrange(weights, axis, wanted)


def pad(weights: Weights, axis: str, size: int, *, allow_inexact: bool = False) -> Weights:
    """Zeros after the last element of an axis, up to `size` elements.

    Zero neurons and heads change nothing in the function where zero times anything is zero behind them. Refused where
    the family's file says that the size itself enters the function (`allow_inexact` does it all the same).
    """
    reading = reading_of(weights)
    _refuse_inexact(reading, axis, "pad", allow_inexact)
    if axis in reading.family.indices:
        raise reading.refused(f"pad: {axis} cannot be made of zeros; use repeat, or stack for layers")
    wanted = {}
    for one in reading.instances(axis):
        old = reading.sizes[one]
        if size < old:
            raise reading.refused(f"pad of {one} to {size}: it has {old} already; take leaves elements out")
        wanted[one] = np.concatenate([np.arange(old), np.full(size - old, -1)])
    return rearrange(weights, axis, wanted)


def resize(weights: Weights, axis: str, size: int, *, allow_inexact: bool = False) -> Weights:
    """The first `size` elements of an axis, or zeros after the last."""
    reading = reading_of(weights)
    longest = max(reading.sizes[one] for one in reading.instances(axis))
    if size < longest:
        return take(weights, axis, range(size))
    return pad(weights, axis, size, allow_inexact=allow_inexact or size == longest)


def concat(parts: Sequence[Weights], axis: str) -> Weights:
    """Several models one after the other along an axis; tensors without it are the first model's.

    Two models' neurons side by side compute the sum of both; their layers one after the other are a deeper model.
    Raises `AlgebraError` unless families and all other axes agree, and where configs contradict each other.
    """
    if not parts:
        raise RequestError("concat needs at least one model")
    first, *_ = parts
    readings = [reading_of(part) for part in parts]
    _same_but(readings, axis)
    reading = readings[0]
    if len(parts) > 1:
        _refuse_rigid(reading, axis, f"the elements of {axis} of {len(parts)} models would be joined")
    if axis in reading.family.indices:
        if reading.family.indices[axis].scope:
            raise reading.refused(
                f"concat along {axis}: it is numbered inside another; two models have two routers"
            )
        return stack([(part, range(_count(r, axis))) for part, r in zip(parts, readings, strict=True)], axis)
    if axis != VOCAB:  # rows of tokens are joined by those who know whose they are
        check_agreement(parts, _apart(reading, axis))
    entries: dict[str, Entry] = {}
    for name in first:
        entries[name] = _joined(list(zip(parts, readings, strict=True)), name, axis, "concat")
    sizes, config = dict(reading.sizes), dict(reading.config)
    for one in reading.instances(axis):
        sizes[one] = sum(r.sizes[one] for r in readings)
    if axis == LABELS:
        config = with_label_names(config, _all_names(readings))
    return _changed(first, entries, reading.resized(sizes, reading.tensors, config), parts)


def _apart(reading: Reading, axis: str) -> set[str]:
    """Keys that do not count where models are joined along an axis: sizes are compared as such; tokens where rows meet.

    Rows of tokens meet where an embedding or a head has the axis too.
    """
    family = reading.family
    sizes = {key for spec in (*family.indices.values(), *family.axes.values()) for key in spec.size.names}
    held = (set().union(*(dim.axes for dim in named.spec.dims)) for named in reading.tensors.values())
    met = any({VOCAB, axis} <= names for names in held)
    return {*sizes, *family.lists, *family.numbers, *(() if met else (TOKENIZER_KEY,))}


def _joined(parts: Sequence[tuple[Weights, Reading]], name: str, axis: str, what: str) -> Entry:
    """A tensor of several models with their elements of an axis one after the other; the first model's without it."""
    first, reading = parts[0]
    entry = first.entry(name)
    dims = [k for k, parts_of in enumerate(reading.parts(name)) if any(_has(p, axis) for p in parts_of)]
    if not dims:
        return entry
    if len(dims) > 1 or any(len(p) > 1 and _has(p[1:], axis) for p in reading.parts(name)[dims[0]]):
        raise reading.refused(f"{what} along {axis}: tensor {name!r} does not have it as one outer dimension")
    return Entry(_side_by_side(list(parts), name, dims[0], axis), entry.degree)


def _side_by_side(parts: list[tuple[Weights, Reading]], name: str, dim: int, axis: str) -> Expression:
    """A dimension of several parts (fused projections): each part is joined for itself."""
    rows: list[Expression] = []
    for k, part in enumerate(parts[0][1].parts(name)[dim]):
        for weights, reading in parts if _has(part, axis) else parts[:1]:
            lengths = [reading.length(p) for p in reading.parts(name)[dim]]
            at = sum(lengths[:k])
            index: list[Indices | None] = [None] * len(weights[name].shape)
            index[dim] = np.arange(at, at + lengths[k])
            rows.append(weights[name] if len(lengths) == 1 else taken(weights[name], index))
    return joined(rows, dim)


def rearrange(
    weights: Weights, axis: str, wanted: Mapping[Axis, Indices], *, places_follow: bool = False
) -> Weights:
    """The elements of an axis by index, -1 for zeros; what `take`, `permute`, `repeat`, `pad` and `widen` share.

    places_follow: the caller changes what gives the elements their places, so they may move although those are fixed.

    Raises `AlgebraError` where the elements have fixed places and would get others.
    """
    reading = reading_of(weights)
    if not places_follow:
        _refuse_moved(reading, axis, wanted)
    if axis in reading.family.indices and (most := max(map(len, wanted.values()), default=0)) > MOST_COPIES:
        raise reading.refused(f"{axis} would be there {most:,} times; at most {MOST_COPIES:,} are read")
    entries = {}
    for name in weights:
        index = [_index_of(reading, dim, wanted) for dim in reading.parts(name)]
        entry = weights.entry(name)
        changed = any(i is not None for i in index)
        entries[name] = Entry(taken(entry.expression, index), entry.degree) if changed else entry
    sizes = {one: len(wanted[one]) if one in wanted else size for one, size in reading.sizes.items()}
    tensors = dict(reading.tensors)
    if axis in reading.family.indices:
        entries, tensors, sizes = _copies(reading, entries, sizes, axis, wanted)
        if not reading.family.indices[axis].scope:
            reading = reading.ordered(axis, [(reading, wanted[Axis(axis)].tolist())])
    elif any(
        not np.array_equal(i[: reading.sizes[one]], np.arange(reading.sizes[one]))
        for one, i in wanted.items()
    ):
        reading = replace(reading, rearranged=reading.rearranged | {axis})
    if axis == LABELS:
        (rows,) = wanted.values()
        config = with_label_names(reading.config, _names(reading, rows))
        return _changed(weights, entries, reading.resized(sizes, tensors, config), moved=axis)
    return _changed(weights, entries, reading.resized(sizes, tensors), moved=axis)


def stack(parts: Sequence[tuple[Weights, Keep]], axis: str = "layer") -> Weights:
    """Copies (layers) of several models one after the other: `[(a, range(0, 12)), (b, range(6, 18))]`.

    What stands before the copies in the family's file (embeddings) is the first model's, what stands after them (final
    norm, head) the last one's. A model may be named more than once. Where only one of the first and the last shares its
    head with the embedding, all get a matrix of their own; where both share it, the result does.
    """
    ends = [reading_of(weights).is_tied for weights, _ in (*parts[:1], *parts[-1:])]
    if len(set(ends)) > 1:
        parts = [(untie(weights), keep) for weights, keep in parts]
    readings = [reading_of(weights) for weights, _ in parts]
    if not readings:
        raise RequestError("stack needs at least one model")
    reading = readings[0]
    if axis not in reading.family.indices or reading.family.indices[axis].scope:
        known = [name for name, spec in reading.family.indices.items() if not spec.scope]
        raise reading.refused(
            f"stack: {axis} does not number parts of the whole model (those are {listing(known)})"
        )
    _same_but(readings, axis)
    _same_biases([weights for weights, _ in parts], axis)
    check_agreement([weights for weights, _ in parts], {*reading.family.lists, *reading.family.numbers})
    cut = [_copied(weights, axis, keep) for weights, keep in parts]
    cut[-1] = in_label_order(cut[-1], cut[0], lenient=True)
    entries: dict[str, Entry] = {}
    tensors: dict[str, NamedTensor] = {}
    sizes: dict[Axis, int] = {}
    last = reading_of(cut[-1])
    order = [spec.pattern for spec in reading.family.tensors]
    final = max(k for k, spec in enumerate(reading.family.tensors) if axis in spec.indices)
    begin: list[tuple[str, Entry, NamedTensor]] = []
    late: list[tuple[str, Entry, NamedTensor]] = []
    offset = 0
    for part in cut:
        own = reading_of(part)
        counted = (
            MOST_COPIES if part is cut[-1] else _count(own, axis)
        )  # what comes after the last is the last's
        for name, named in own.tensors.items():
            if dict(named.at).get(axis, counted) >= counted:
                continue
            at = tuple((k, v + offset if k == axis else v) for k, v in named.at)
            new = own.name(named.spec, dict(at))
            entries[new], tensors[new] = part.entry(name), NamedTensor(named.spec, at)
        for one, size in own.sizes.items():
            scope = own.family.axis(one.name).scope
            if axis not in scope or one.at[scope.index(axis)] < counted:
                sizes[_shifted(own, one, axis, offset)] = size
        offset += _count(own, axis)
    if not offset:
        raise reading.refused(f"stack: no {axis} is left")
    sizes[Axis(axis)] = offset
    _all_have_what_all_copies_share(cut, axis)
    for name, named in reading.tensors.items():
        if axis in dict(named.at):
            continue
        after = order.index(named.spec.pattern) > final
        home = cut[-1] if after and name in last.tensors else cut[0]
        entry = home.entry(name)
        if any(axis in dim.axes for dim in named.spec.dims):  # it holds something of every copy
            entry = _joined([(part, reading_of(part)) for part in cut], name, axis, "stack")
        (late if after else begin).append((name, entry, named))
    entries = {n: e for n, e, _ in begin} | entries | {n: e for n, e, _ in late}
    tensors = {n: t for n, _, t in begin} | tensors | {n: t for n, _, t in late}
    runs = [(reading_of(part), range(_count(reading_of(part), axis))) for part in cut]
    reading = reading.ordered(axis, runs)
    names = labels_of(cut[-1])
    if (
        names is not None and names != label_names(reading.config) and rows_with_labels(cut[-1])
    ):  # whose head it is
        reading = replace(reading, config=with_label_names(reading.config, names))
    return _changed(cut[0], entries, reading.resized(sizes, tensors), cut)


def _all_have_what_all_copies_share(parts: Sequence[Weights], axis: str) -> None:
    """Raises `AlgebraError` where a tensor that holds something of every copy is not in all of several models."""
    for part in parts:
        for name, named in reading_of(part).tensors.items():
            if axis in named.spec.indices or not any(axis in dim.axes for dim in named.spec.dims):
                continue
            lacking = [other.label for other in parts if name not in other]
            if lacking:
                raise reading_of(part).refused(
                    f"stack: {lacking[0]!r} has no {name!r}, which holds something of every {axis}. Leave it out of "
                    f"the others as well: merganser.open(MODEL).drop('*{named.spec.module}*').save(OUT, partial=True)"
                )


# Changing elements ----------------------------------------------------------------------------------------------------


def scale(
    weights: Weights,
    axis: str,
    by: Sequence[float] | np.ndarray[Any, Any] | Mapping[Any, Any],
    *,
    side: str = "both",
) -> Weights:
    """Elements of an axis times numbers, one per element.

    `side` is "write" for the tensors that produce the axis, "read" for the matrices that sum over it, "both" for times
    on one and divided by on the other (what is linear in the axis then keeps its function).
    """
    reading = reading_of(weights)
    if side not in ("read", "write", "both"):
        raise RequestError(f"scale: side must be read, write or both, not {side!r}")
    factors = {}
    for one, values in _mapped(reading, axis, by).items():
        vector = np.asarray(values, np.float64)
        if vector.shape != (reading.sizes[one],):
            raise reading.refused(f"scale of {one}: {vector.size} numbers for {reading.sizes[one]} elements")
        if not np.isfinite(vector).all():
            raise reading.refused(f"scale of {one}: a factor is not a finite number")
        if side == "both" and (vector == 0).any():
            raise reading.refused(
                f"scale of {one}: a factor is zero, and the other side would be divided by it"
            )
        factors[one] = vector
    entries = {}
    for name in weights:
        named, entry = reading.tensors[name], weights.entry(name)
        for dim, parts in enumerate(reading.parts(name)):
            if not any(_has(part, axis) for part in parts) or entry.carried:
                continue
            reads = dim == named.spec.reads
            if side != "both" and (side == "read") != reads:
                continue
            vector = _vector_of(
                reading, parts, {k: 1 / v if reads and side == "both" else v for k, v in factors.items()}
            )
            entry = Entry(_times(entry.expression, vector, dim), entry.degree)
        entries[name] = entry
    return _changed(weights, entries, reading, moved=axis)


def fold_norms(weights: Weights) -> Weights:
    """Every norm's weight (and bias) multiplied into the matrices that read it, so that the norm itself is plain.

    The function stays. A head that shares the embedding gets a matrix of its own. Raises `AlgebraError` where a norm's
    output is read by nothing in this checkpoint, or a bias is needed that the model does not have.
    """
    reading = reading_of(weights)
    for norm in reading.family.norms.values():
        plain = [head for head in norm.readers if norm.place == "folded" and "{" not in head]
        if any(reading.name(reading.family.by_module[head][0], {}) in reading.left_out for head in plain):
            weights = untie(weights)
    reading = reading_of(weights)
    entries = {name: weights.entry(name) for name in weights}
    for norm in reading.family.norms.values():
        if norm.place != "folded":
            continue
        for name, named in reading.tensors.items():
            if named.spec.module == norm.module and named.spec.pattern.endswith(".weight"):
                _fold(reading, entries, name, named, norm.readers)
    return _changed(weights, entries, reading, moved="residual")


def _fold(
    reading: Reading, entries: dict[str, Entry], name: str, named: NamedTensor, readers: Sequence[str]
) -> None:
    place = dict(named.at)
    found = [
        (other, tensor)
        for other, tensor in reading.tensors.items()
        if tensor.spec.module in readers and place.items() <= dict(tensor.at).items()
    ]
    weight = entries[name].expression
    bias_name = name.removesuffix("weight") + "bias"
    if not any(tensor.spec.reads is not None for _, tensor in found):
        raise reading.refused(
            f"the norm {name!r} cannot be folded: nothing in this checkpoint reads its output"
        )
    offset = NORMS[named.spec.kind]
    factor = apply("add", weight, offset) if offset else weight
    for other, tensor in found:
        dim = tensor.spec.reads
        if dim is None:
            continue
        matrix = entries[other]
        if bias_name in entries:
            own = other.removesuffix("weight") + "bias"
            if own not in entries:
                raise reading.refused(
                    f"the bias of the norm {bias_name!r} cannot be folded: {other!r} has no bias to take it up"
                )
            row = reshaped(entries[bias_name].expression, (1, entries[bias_name].expression.size))
            moved = product(matrix.expression, row, dim)
            moved = reshaped(moved, entries[own].expression.shape)
            entries[own] = Entry(apply("add", entries[own].expression, moved), entries[own].degree)
        parts = reading.parts(other)[dim]
        beside = [norm for norm, spec in reading.family.norms.items() if tensor.spec.module in spec.readers]
        if len(parts) > 1 and len(parts) == len(beside):  # norms side by side, in the order of the file
            mine = [named.spec.module == norm for norm in beside]
            pieces = [
                factor if own_part else Array(np.ones(reading.length(part), np.float32))
                for own_part, part in zip(mine, parts, strict=True)
            ]
            spread_out = spread(joined(pieces, 0), matrix.expression.shape, dim)
        else:
            spread_out = spread(factor, matrix.expression.shape, dim)
        entries[other] = Entry(apply("mul", matrix.expression, spread_out), matrix.degree)
    plain = apply("add", apply("mul", weight, 0.0), 1.0 - offset)
    entries[name] = Entry(plain, entries[name].degree)
    if bias_name in entries:
        entries[bias_name] = Entry(
            apply("mul", entries[bias_name].expression, 0.0), entries[bias_name].degree
        )


def mix(weights: Weights, axis: str, rows: Matrix, coefficients: Matrix) -> Weights:
    """Elements of an axis as sums of a few old ones: element i is `sum_j coefficients[i, j] * old[rows[i, j]]`.

    rows: int64 [m, k], -1 for none; coefficients: float [m, k]. Tensors that have the axis as one whole dimension
    (an embedding's vocabulary) are computed in f32; for another axis an `AlgebraError` says so.
    """
    reading = reading_of(weights)
    _refuse_rigid(reading, axis, f"the elements of {axis} would be mixed")
    rows, coefficients = np.asarray(rows, np.int64), np.asarray(coefficients, np.float32)
    if rows.ndim != 2 or rows.shape != coefficients.shape:
        raise RequestError(
            f"mix: rows {list(rows.shape)} and coefficients {list(coefficients.shape)} must be [m, k] both"
        )
    for one in reading.instances(axis):
        if rows.size and not (rows.min() >= -1 and rows.max() < reading.sizes[one]):
            raise reading.refused(
                f"mix of {one}: row {int(rows.max())} is out of range, it has {reading.sizes[one]}"
            )
    entries = {}
    for name in weights:
        entry = weights.entry(name)
        for dim, parts in enumerate(reading.parts(name)):
            if not any(_has(part, axis) for part in parts):
                continue
            if len(parts) != 1 or len(parts[0]) != 1:
                raise reading.refused(f"mix: tensor {name!r} has {axis} only as a part of a dimension")
            entry = Entry(_mixed(entry.expression, dim, rows, coefficients), entry.degree)
        entries[name] = entry
    sizes = {one: len(rows) if one.name == axis else size for one, size in reading.sizes.items()}
    config = dict(reading.config)
    if axis == LABELS:  # a row that is a sum of several has the name of none
        config = with_label_names(config, [f"LABEL_{k}" for k in range(len(rows))])
    return _changed(weights, entries, reading.resized(sizes, reading.tensors, config), moved=axis)


def _mixed(node: Expression, dim: int, rows: Matrix, coefficients: Matrix) -> Expression:
    """Rows are mixed lazily; along another dimension the same sums are a matrix."""
    if node.carried:
        raise AlgebraError("integer and bool tensors cannot be mixed")
    if dim == 0:
        return Mixed(node, rows, coefficients)
    matrix = np.zeros((len(rows), node.shape[dim]), np.float32)
    for k in range(rows.shape[1]):
        held = np.flatnonzero(rows[:, k] >= 0)
        np.add.at(matrix, (held, rows[held, k]), coefficients[held, k])
    return product(node, matrix, dim)


def untie(weights: Weights) -> Weights:
    """A matrix of its own for an output head that shares the embedding; the function stays."""
    reading = reading_of(weights)
    names = to_write_out(reading.family, reading.config, reading.left_out)
    if not names:
        return weights
    entries = {name: weights.entry(name) for name in weights}
    entries |= {name: entries[shared] for name, shared in names.items()}
    tensors = {**reading.tensors, **reading.named(names)}
    return _changed(weights, entries, replace(reading, tensors=tensors, config=untied(reading.config)))


def rotate(weights: Weights, axis: str, matrix: Matrix | Mapping[int | tuple[int, ...], Matrix]) -> Weights:
    """An orthogonal matrix on an axis, applied to every tensor that carries it: x becomes `matrix @ x`.

    The function stays. Only axes on which the model is linear can be turned: `residual` and `value_dim`. Norms on the
    residual stream are folded first; where they are layer norms (which subtract the mean) the matrix must keep the
    vector of ones. Models that normalise the stream itself (BERT) or the end of a branch (Gemma 2) cannot be turned.
    """
    reading = reading_of(weights)
    reading.family.axis(axis)
    if not axis.endswith(("residual", "value_dim")):
        raise reading.refused(
            f"rotate: {axis} passes through a nonlinearity; residual and value_dim can be rotated"
        )
    if axis in reading.family.fixed:
        raise reading.refused(f"the elements of {axis} have fixed places: {reading.family.fixed[axis]}")
    for module, reason in reading.family.curved.items():
        specs = reading.family.by_module[module]
        present = any(named.spec.module == module for named in reading.tensors.values())
        if present and any(s.writes is not None and axis in s.dims[s.writes].axes for s in specs):
            raise reading.refused(f"rotate: what {module} writes passes through a nonlinearity: {reason}")
    matrices = {}
    for one, values in _mapped(reading, axis, matrix).items():
        matrices[one] = _orthogonal(reading, one, values)
    touched = {
        name: named
        for name, named in reading.tensors.items()
        if named.spec.kind in (*NORMS, "scale")
        and any(_has(p, axis) for dim in reading.parts(name) for p in dim)
    }
    for name, named in touched.items():
        norm = reading.family.norms.get(named.spec.module)
        if norm is None or norm.place != "folded":
            where = norm.place if norm else "axis itself"
            if named.spec.kind == "scale":
                raise reading.refused(
                    f"rotate: {name!r} multiplies the elements of {axis} as they are, one by one"
                )
            raise reading.refused(
                f"rotate: the norm {name!r} is on the {where}, its weights belong to the axes as they are"
            )
        if named.spec.kind.startswith("layernorm"):
            _refuse_off_centre(reading, matrices, repr(name))
    if axis in reading.family.centred:
        _refuse_off_centre(reading, matrices, "a norm without weights")
    if touched:
        weights = fold_norms(weights)
        reading = reading_of(weights)
    entries = {}
    for name in weights:
        entry = weights.entry(name)
        if name not in touched:
            for dim, parts in enumerate(reading.parts(name)):
                if any(_has(part, axis) for part in parts):
                    entry = Entry(_turned(reading, entry.expression, dim, parts, matrices), entry.degree)
        entries[name] = entry
    return _changed(weights, entries, reading, moved=axis)


def _refuse_off_centre(reading: Reading, matrices: Mapping[Axis, Matrix], norm: str) -> None:
    for one, values in matrices.items():
        if np.abs(values.sum(axis=1) - 1).max() > ORTHOGONAL:
            raise reading.refused(
                f"rotate of {one}: {norm} subtracts the mean, so the matrix must keep the vector of ones "
                "(every row must sum to 1)"
            )


def widen(weights: Weights, axis: str, size: int, *, allow_inexact: bool = False) -> Weights:
    """More elements of an axis, copies of those there are, with the same function.

    The matrices that sum over the axis are divided by how often an element is there. Exact for neurons, heads and
    groups of heads at any size; for the residual at multiples of its size (every element equally often, so that norms
    see the same mean), except where the family's file says why not (`allow_inexact` does it all the same).
    """
    reading = reading_of(weights)
    _refuse_inexact(reading, axis, "widen", allow_inexact)
    if axis.endswith("residual"):
        weights = untie(weights)
        reading = reading_of(weights)
    wanted, shares = {}, {}
    for one in reading.instances(axis):
        old = reading.sizes[one]
        if size < old:
            raise reading.refused(f"widen of {one} to {size}: it has {old} already; take makes it narrower")
        if axis.endswith("residual") and size % old:
            raise reading.refused(
                f"widen of {axis} to {size}: norms keep their value only when every element is there equally often; "
                f"the nearest sizes are {size // old * old or old} and {(size // old + 1) * old}"
            )
        index = np.arange(size) % old
        wanted[one], shares[one] = index, 1.0 / np.bincount(index, minlength=old)
    _refuse_moved(reading, axis, wanted)
    if axis in reading.family.indices:
        raise reading.refused(f"widen: {axis} is no width; use stack or repeat")
    divided = scale(weights, axis, {one.at: share for one, share in shares.items()}, side="read")
    return rearrange(divided, axis, wanted)


def element_norms(
    weights: Weights, axis: str, norm: str, compute: Callable[[str], Matrix]
) -> dict[Axis, Matrix]:
    """The norm (l1 or l2, f64) of every element of an axis over all tensors that carry it, read one at a time.

    A layer or an expert is carried by all tensors with its number.
    """
    reading = reading_of(weights)
    found = {one: np.zeros(reading.sizes[one]) for one in reading.instances(axis)}
    if not found:
        raise reading.refused(f"this model has no tensor with the axis {axis}")
    for name in weights:
        place = dict(reading.tensors[name].at)
        carries = axis in place or any(_has(p, axis) for dim in reading.parts(name) for p in dim)
        if weights.entry(name).carried or not carries:
            continue
        values = np.abs(np.asarray(compute(name), np.float64))
        powers = values * values if norm == "l2" else values
        if axis in place:
            scope = reading.family.indices[axis].scope
            norms = found[Axis(axis, tuple(place[outer] for outer in scope))]
            if place[axis] < len(norms):
                norms[place[axis]] += powers.sum()
        for dim, parts in enumerate(reading.parts(name)):
            others = tuple(k for k in range(powers.ndim) if k != dim)
            line = powers.sum(axis=others)
            at = 0
            for part in parts:
                lengths = [f if isinstance(f, int) else reading.sizes[f] for f in part]
                end = at + reading.length(part)
                for k, factor in enumerate(part):
                    if isinstance(factor, Axis) and factor in found:
                        rest = tuple(j for j in range(len(part)) if j != k)
                        found[factor] += line[at:end].reshape(lengths).sum(axis=rest)
                at = end
    return {one: np.sqrt(total) if norm == "l2" else total for one, total in found.items()}


def silence(weights: Weights, axis: str, copies: Sequence[int]) -> Weights:
    """Zeros in everything that the given copies (layers) write to the residual stream: they compute nothing.

    In models that normalise what a block reads (all modern decoders) a silent layer is the identity, so a model grown
    by silent layers starts as the same function. Refused where the stream itself is normalised (BERT).
    """
    reading = reading_of(weights)
    if any(norm.place == "stream" and "{" in norm.module for norm in reading.family.norms.values()):
        raise reading.refused(
            f"a {axis} without output is not the identity here: the stream itself is normalised in it"
        )
    return scale_outputs(weights, axis, dict.fromkeys(copies, 0.0))


def scale_outputs(weights: Weights, axis: str, factors: Mapping[int, float]) -> Weights:
    """What copies (layers) write to the residual stream, times a factor for each.

    Where a norm stands at the end of a branch (Gemma 2) its weight is scaled, for it would undo any other factor.
    """
    reading, entries = reading_of(weights), {}
    if not np.isfinite(list(factors.values())).all():
        raise reading.refused(f"a factor on what a {axis} writes is not a finite number")
    norms = reading.family.norms.values()
    branches = {norm.module for norm in norms if norm.place == "branch" and f"{{{axis}}}" in norm.module}
    for name in weights:
        named, entry = reading.tensors[name], weights.entry(name)
        spec = named.spec
        factor = factors.get(dict(named.at).get(axis, -1), 1.0)
        on_stream = [k for k, dim in enumerate(spec.dims) if any("residual" in a for a in dim.axes)]
        if factor != 1.0 and on_stream and not entry.carried:
            expression = entry.expression
            if spec.module in branches:
                offset = 0.0 if spec.pattern.endswith(".bias") else NORMS[spec.kind]
                scaled = apply("mul", apply("add", expression, offset) if offset else expression, factor)
                entry = Entry(apply("sub", scaled, offset) if offset else scaled, entry.degree)
            elif spec.writes in on_stream and spec.kind not in NORMS and (not branches or factor == 0.0):
                entry = Entry(apply("mul", expression, factor), entry.degree)
            elif spec.writes is None and spec.reads is None:
                if factor != 0.0:
                    raise reading.refused(
                        f"a factor of {factor:g} on what a {axis} writes: the file does not say whether {name!r} is "
                        "added to it or multiplied with it"
                    )
                entry = Entry(apply("mul", expression, 0.0), entry.degree)
        entries[name] = entry
    return _changed(weights, entries, reading)


# Helpers --------------------------------------------------------------------------------------------------------------


def _per_axis(reading: Reading, axis: str, given: PerAxis) -> dict[Axis, Indices]:
    """The indices for every instance of an axis, checked for their range."""
    wanted = {}
    for one, values in _mapped(reading, axis, given).items():
        index = np.asarray(list(values) if not isinstance(values, np.ndarray) else values)
        if index.size and (index.ndim != 1 or index.dtype.kind not in "iu"):
            raise RequestError(f"indices of {one} must be whole numbers in a list")
        index = index.astype(np.int64)
        size = reading.sizes[one]
        if wrong := index[(index < 0) | (index >= size)].tolist():
            raise reading.refused(
                f"index {wrong[0]} is out of range: {one} has {size} elements (0 to {size - 1})"
            )
        wanted[one] = index
    return wanted


def _names(reading: Reading, index: Indices) -> list[str]:
    """The labels of rows that are taken by index; a row of zeros (-1) is called LABEL_n by its place."""
    names = label_names(reading.config)
    if names is None:
        raise reading.refused(
            "config.json does not say which row has which label (id2label must number all rows from 0, and num_labels "
            "be their number), so these rows cannot be moved. Correct id2label and num_labels"
        )
    made = [names[old] if old >= 0 else f"LABEL_{new}" for new, old in enumerate(index.tolist())]
    _check_distinct(reading, made, "take leaves rows out")
    return made


def _all_names(readings: Sequence[Reading]) -> list[str]:
    """The labels of several classifiers one after the other."""
    groups = [label_names(reading.config) or () for reading in readings]
    if all(map(numbered, groups)):
        return [f"LABEL_{k}" for k in range(sum(map(len, groups)))]
    made = [name for names in groups for name in names]
    _check_distinct(readings[0], made, "leave it out of one of the models first (take on labels)")
    return made


def _check_distinct(reading: Reading, names: Sequence[str], remedy: str) -> None:
    most = Counter(names).most_common(1)
    if most and most[0][1] > 1:
        raise reading.refused(
            f"{most[0][1]} rows would have the label {most[0][0]!r}, and a label names one row; {remedy}"
        )


def _mapped(reading: Reading, axis: str, given: Any) -> dict[Axis, Any]:
    """A value for every instance of an axis, or for those that a mapping names."""
    instances = reading.instances(axis)
    if not instances:
        raise reading.refused(f"this model has no tensor with the axis {axis}")
    if not isinstance(given, Mapping):
        return dict.fromkeys(instances, given)
    found = {}
    for at, value in given.items():
        one = Axis(axis, at if isinstance(at, tuple) else (at,))
        if one not in reading.sizes:
            raise reading.refused(f"there is no {one} (there are {listing(map(str, instances), 4)})")
        found[one] = value
    return found


def _refuse_moved(reading: Reading, axis: str, wanted: Mapping[Axis, Indices]) -> None:
    """Elements with fixed places may be cut off or added at the end, never moved; of a rigid axis not even that."""
    reason = reading.family.fixed.get(axis)
    if reason is None:
        return
    for one, index in wanted.items():
        size = min(len(index), reading.sizes[one])
        if not np.array_equal(index[:size], np.arange(size)) or (
            len(index) > size and (index[size:] >= 0).any()
        ):
            raise reading.refused(f"the elements of {one} have fixed places: {reason}")
        if len(index) != reading.sizes[one]:
            _refuse_rigid(
                reading, axis, f"{one} has {reading.sizes[one]} elements and would have {len(index)}"
            )


def _refuse_inexact(reading: Reading, axis: str, operation: str, allow_inexact: bool) -> None:
    """Raise `AlgebraError` where more elements change the function, whatever is in them."""
    reason = reading.family.inexact.get(axis)
    if reason and not allow_inexact:
        raise reading.refused(
            f"{operation} of {axis} does not keep the function: {reason}. allow_inexact: true does it all the same"
        )


def _refuse_rigid(reading: Reading, axis: str, what: str) -> None:
    if axis in reading.family.rigid:
        raise reading.refused(
            f"{what}, and they have fixed places of which none can go or come: {reading.family.fixed[axis]}, which "
            f"depends on how many there are. Leave {axis} as it is"
        )


def _index_of(
    reading: Reading, dim: Sequence[tuple[Axis | int, ...]], wanted: Mapping[Axis, Indices]
) -> Indices | None:
    """Where each element of a dimension comes from; None where nothing moves."""
    if not any(factor in wanted for part in dim for factor in part):
        return None
    pieces, offset = [], 0
    for part in dim:
        lengths = [f if isinstance(f, int) else reading.sizes[f] for f in part]
        count = int(np.prod(lengths, dtype=np.int64))
        grid = np.arange(count).reshape(lengths)
        for k, factor in enumerate(part):
            index = wanted.get(factor) if isinstance(factor, Axis) else None
            if index is not None:
                grid = np.take(grid, np.maximum(index, 0), axis=k)
                grid[(slice(None),) * k + (index < 0,)] = -1
        flat = grid.reshape(-1)
        pieces.append(np.where(flat < 0, -1, flat + offset))
        offset += count
    return np.concatenate(pieces)


def _vector_of(
    reading: Reading, dim: Sequence[tuple[Axis | int, ...]], factors: Mapping[Axis, Matrix]
) -> Matrix:
    """One number per element of a dimension, from numbers per element of an axis in it."""
    pieces = []
    for part in dim:
        lengths = [f if isinstance(f, int) else reading.sizes[f] for f in part]
        grid = np.ones(lengths)
        for k, factor in enumerate(part):
            if isinstance(factor, Axis) and factor in factors:
                shape = [1] * len(lengths)
                shape[k] = lengths[k]
                grid = grid * factors[factor].reshape(shape)
        pieces.append(grid.reshape(-1))
    return np.concatenate(pieces)


def _times(node: Expression, vector: Matrix, dim: int) -> Expression:
    values = vector.astype(np.float64 if node.wide else np.float32)
    return apply("mul", node, spread(Array(values), node.shape, dim))


def _turned(
    reading: Reading,
    node: Expression,
    dim: int,
    parts: Sequence[tuple[Axis | int, ...]],
    matrices: Mapping[Axis, Matrix],
) -> Expression:
    """A dimension with matrices applied to an axis inside it."""
    lengths = [reading.length(part) for part in parts]
    pieces = []
    for part, (at, end) in zip(parts, pairwise(np.cumsum([0, *lengths]).tolist()), strict=True):
        index: list[Indices | None] = [None] * len(node.shape)
        index[dim] = np.arange(at, end)
        piece = node if len(parts) == 1 else taken(node, index)
        for k, factor in enumerate(part):
            if isinstance(factor, Axis) and factor in matrices:
                inner = [f if isinstance(f, int) else reading.sizes[f] for f in part]
                shape = piece.shape
                wide = (*shape[:dim], *inner, *shape[dim + 1 :])
                piece = reshaped(product(reshaped(piece, wide), matrices[factor], dim + k), shape)
        pieces.append(piece)
    return joined(pieces, dim)


def _orthogonal(reading: Reading, one: Axis, values: Matrix) -> Matrix:
    matrix = np.asarray(values, np.float64)
    size = reading.sizes[one]
    if matrix.shape != (size, size):
        raise reading.refused(f"rotate of {one}: a matrix of shape {list(matrix.shape)} for {size} elements")
    if not np.abs(matrix @ matrix.T - np.eye(size)).max() <= ORTHOGONAL:
        raise reading.refused(f"rotate of {one}: the matrix is not orthogonal")
    return matrix.astype(np.float32)


def _copies(
    reading: Reading,
    entries: Mapping[str, Entry],
    sizes: Mapping[Axis, int],
    axis: str,
    wanted: Mapping[Axis, Indices],
) -> tuple[dict[str, Entry], dict[str, NamedTensor], dict[Axis, int]]:
    """Whole groups of tensors (layers, experts) by index, renumbered."""
    scope = reading.family.indices[axis].scope
    made: list[tuple[tuple[int, int, int], str, Entry, NamedTensor]] = []
    first = min((k for k, t in enumerate(reading.tensors.values()) if axis in dict(t.at)), default=0)
    for k, (name, named) in enumerate(reading.tensors.items()):
        place = dict(named.at)
        index = wanted.get(Axis(axis, tuple(place[outer] for outer in scope))) if axis in place else None
        if index is None:
            made.append(((first if axis in place else k, place.get(axis, -1), k), name, entries[name], named))
            continue
        for new in _new_numbers(
            reading, Axis(axis, tuple(place[outer] for outer in scope)), place[axis], index
        ):
            moved = NamedTensor(named.spec, tuple((n, new if n == axis else v) for n, v in named.at))
            made.append(((first, new, k), reading.name(moved.spec, dict(moved.at)), entries[name], moved))
    made.sort(key=lambda item: item[0])
    moved_sizes: dict[Axis, int] = {}
    for one, size in sizes.items():
        outer = reading.family.axis(one.name).scope
        index = None
        if axis in outer:
            place = dict(zip(outer, one.at, strict=True))
            index = wanted.get(Axis(axis, tuple(place[o] for o in scope)))
        if index is None:
            moved_sizes[one] = size
            continue
        for new in _new_numbers(reading, Axis(axis, tuple(place[o] for o in scope)), place[axis], index):
            moved_sizes[Axis(one.name, tuple(new if o == axis else place[o] for o in outer))] = size
    return {n: e for _, n, e, _ in made}, {n: t for _, n, _, t in made}, moved_sizes


def _new_numbers(reading: Reading, one: Axis, old: int, index: Indices) -> list[int]:
    """The numbers that a copy gets; one after the last that is counted stays after the last."""
    count = reading.sizes[one]
    return [len(index) + old - count] if old >= count else np.flatnonzero(index == old).tolist()


def _copied(weights: Weights, axis: str, keep: Keep) -> Weights:
    """Copies by number, any of them more than once."""
    reading = reading_of(weights)
    wanted = _per_axis(reading, axis, keep)
    return rearrange(weights, axis, wanted)


def _shifted(reading: Reading, one: Axis, axis: str, offset: int) -> Axis:
    scope = reading.family.axis(one.name).scope
    return Axis(one.name, tuple(v + offset if o == axis else v for o, v in zip(scope, one.at, strict=True)))


def _count(reading: Reading, axis: str) -> int:
    return reading.sizes[Axis(axis)]


def _has(part: Sequence[Axis | int], axis: str) -> bool:
    return any(isinstance(factor, Axis) and factor.name == axis for factor in part)


def _same_biases(parts: Sequence[Weights], axis: str) -> None:
    """Raise `AlgebraError` unless a module of the copies has a bias in all parts or in none, as one config says it."""

    def held(weights: Weights) -> tuple[set[str], set[str]]:
        specs = [named.spec for named in reading_of(weights).tensors.values() if axis in named.spec.indices]
        biased = {spec.module for spec in specs if spec.pattern.endswith(".bias")}
        return {spec.module for spec in specs}, biased

    first, *others = parts
    modules, biased = held(first)
    for other in others:
        theirs, own = held(other)
        if apart := sorted((biased ^ own) & modules & theirs):
            has, lacks = (first, other) if apart[0] in biased else (other, first)
            raise AlgebraError(
                f"{has.label!r} has biases in {listing(apart)} and {lacks.label!r} has none there: a model has them in "
                f"all layers or in none. Give {lacks.label!r} biases of zeros first, which change nothing: a recipe "
                f"with method: linear, models: {lacks.label!r} of weight 1 after {has.label!r} of weight 0, and "
                'mismatch: {"*.bias": zero}'
            )


def _same_but(readings: Sequence[Reading], axis: str) -> None:
    """Raise `AlgebraError` unless models agree in family, tensors and the sizes of all other axes."""
    first = readings[0]
    for other in readings[1:]:
        if other.family.name != first.family.name:
            raise AlgebraError(
                f"{first.source} is of the family {first.family.name} and {other.source} of {other.family.name}"
            )
        mine = {one.name: size for one, size in first.sizes.items()}
        theirs = {one.name: size for one, size in other.sizes.items()}
        for name in mine:
            if name != axis and theirs.get(name, mine[name]) != mine[name]:
                raise AlgebraError(
                    f"{name} is {mine[name]} in {first.source} and {theirs[name]} in {other.source}; only {axis} may "
                    f"differ (take, pad or widen makes {name} equal)"
                )


def _changed(
    weights: Weights,
    entries: Mapping[str, Entry],
    reading: Reading,
    others: Sequence[Weights] = (),
    moved: str | None = None,
) -> Weights:
    """The weights with new tensors, and the config that says so. `moved` is an axis that is not as it was."""
    checkpoints: dict[int, Checkpoint] = {}
    for part in (weights, *others):
        checkpoints |= {id(c): c for c in part.checkpoints}
    if moved is not None:
        reading = replace(reading, moved=reading.moved | {moved})
    kept: Callable[[str], bool] = reading.tensors.__contains__
    return weights._with(
        entries,
        reading=reading,
        checkpoints=tuple(checkpoints.values()),
        dropped=frozenset(filter(kept, weights.dropped)),
        row_labels=None,
    )
