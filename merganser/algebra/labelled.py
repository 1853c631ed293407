"""Rows with names: a classifier has a row for each label, and config.json says which label a row is of.

Where classifiers of several models meet (sums, differences, merges, comparisons), their rows are lined up by label, or
refused. The rows move lazily, as with `take`. The order is that of the weights whose config the result gets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser.algebra.rearranged import Indices, taken
from merganser.architectures.family import family_of
from merganser.architectures.labels import label_count, label_names, label_rows, numbered, with_label_names
from merganser.errors import AlgebraError, listing

if TYPE_CHECKING:
    from merganser.algebra.weights import Weights

Order = Mapping[str, tuple[int, Indices]]
"""By tensor, a dimension and the elements of it that are taken."""


def labels_of(weights: Weights) -> tuple[str, ...] | None:
    """The labels of a classifier's rows, by config.json; None where no config says what rows are."""
    if weights.row_labels is not None:
        return weights.row_labels
    config = config_of(weights)
    return None if config is None else label_names(config)


def with_labels(weights: Weights, names: tuple[str, ...] | None) -> Weights:
    """The weights as they are, their rows called by these labels."""
    config, reading = config_of(weights), weights.reading
    if names is None or labels_of(weights) == names:
        return weights
    if config is not None and label_rows(config, _shapes(weights), len(names)) == {}:
        return weights  # what a config without such rows says of labels stays
    if reading is not None:
        reading = replace(reading, config=with_label_names(reading.config, names))
    return weights._with(weights._entries, row_labels=names, reading=reading)


def relabelled(weights: Weights) -> dict[str, Any] | None:
    """The origin's config with the labels of the rows as they are; None where it says them already."""
    config, names = config_of(weights), weights.row_labels
    if config is None or names is None or label_names(config) == names or not _has_rows(weights):
        return None
    return with_label_names(config, names)


def rows_with_labels(weights: Weights) -> dict[str, int]:
    """The tensors with a row for each label, and the dimension that these rows are.

    Raises `AlgebraError` where the model has no family file and which tensors they are is not clear.
    """
    names, config = labels_of(weights), config_of(weights)
    if names is None or config is None:
        return {}
    found = label_rows(config, _shapes(weights), len(names))
    if found is None:
        raise AlgebraError(
            f"which rows of {weights.label!r} are its labels ({listing(names, 4)}) is not known: there is no family "
            f"file for model_type {config.get('model_type')!r}"
        )
    return found


def label_order(weights: Weights, reference: Weights) -> Order:
    """What puts the rows of a classifier into the order of another's: the rows to take of every tensor that both have.

    Empty where the labels are the same, or one of the two has no labels or no such tensors. Raises `AlgebraError` where
    the two have other labels.
    """
    own, wanted = labels_of(weights), labels_of(reference)
    if own == wanted or _same_table(weights, reference):
        return {}
    if (own is None and config_of(weights) is None) or (wanted is None and config_of(reference) is None):
        return {}
    shared = _shared_rows(weights, reference)
    if not shared:
        return {}
    tensor = next(iter(shared))
    for names, which in ((own, weights), (wanted, reference)):
        if names is None:
            raise AlgebraError(
                f"config.json of {which.label!r} does not say which row of {tensor!r} has which label: id2label must "
                "number all rows from 0, and num_labels be their number. Correct id2label and num_labels there"
            )
    assert own is not None
    assert wanted is not None
    if sorted(own) != sorted(wanted) or len(set(own)) < len(own):
        raise AlgebraError(_other_labels(weights, reference, tensor, own, wanted))
    place = {name: k for k, name in enumerate(own)}
    index = np.array([place[name] for name in wanted], np.int64)
    return {name: (dim, index) for name, dim in shared.items()}


def in_label_order(weights: Weights, reference: Weights, *, lenient: bool = False) -> Weights:
    """The weights with a classifier's rows lined up by label with another model's, lazily; see `label_order`.

    `lenient`: weights with other labels come back as they are.
    """
    try:
        order = label_order(weights, reference)
    except AlgebraError:
        if lenient:
            return weights
        raise
    return with_labels(rows_taken(weights, order), labels_of(reference)) if order else weights


def rows_taken(weights: Weights, order: Order) -> Weights:
    """The rows of an order. Tensors that it does not name stay, and so do those without the dimension."""
    entries = dict(weights._entries)
    for name, (dim, index) in order.items():
        entry = entries.get(name)
        if entry is None or entry.expression.is_scalar or len(entry.expression.shape) <= dim:
            continue
        if entry.expression.shape[dim] == len(index) + 1:  # a detector's last row stays, which is of no label
            index = np.append(index, len(index))
        along = [index if k == dim else None for k in range(len(entry.expression.shape))]
        entries[name] = replace(entry, expression=taken(entry.expression, along))
    return weights._with(entries)


def other_rows(weights: Weights, reference: Weights) -> dict[str, tuple[int, Indices, Indices]]:
    """The tensors of both whose rows have other labels in the one than in the other.

    By name the dimension, for each row of the reference the row of that label in `weights` (-1: none), and the rows of
    `weights` whose labels the reference does not have. Empty where labels can be lined up.
    """
    try:
        label_order(weights, reference)
    except AlgebraError:
        own, wanted = labels_of(weights), labels_of(reference)
        if own is None or wanted is None:
            raise
        shared = _shared_rows(weights, reference)
        spare = {name: weights[name].shape[dim] - len(own) for name, dim in shared.items()}
        if any(
            not 0 <= more <= 1 or reference[name].shape[shared[name]] - len(wanted) != more
            for name, more in spare.items()
        ):
            raise
        place = {name: k for k, name in enumerate(own)}
        here = np.array([place.get(name, -1) for name in wanted], np.int64)
        extra = np.array([k for k, name in enumerate(own) if name not in set(wanted)], np.int64)
        last = np.append(here, len(own))  # a detector's row for no object, which both have
        return {name: (dim, last if spare[name] else here, extra) for name, dim in shared.items()}
    return {}


def by_labels(parts: Sequence[Weights]) -> list[Weights]:
    """Several weights with their classifiers' rows in the order of the first that has such rows."""
    known = {labels_of(part) for part in parts}
    if len(known) < 2:
        return list(parts)
    first = reference_of(parts)
    return list(parts) if first is None else [in_label_order(part, first) for part in parts]


def reference_of(parts: Iterable[Weights]) -> Weights | None:
    """The first of several weights whose config names rows that it has."""
    return next((part for part in parts if config_of(part) is not None and _has_rows(part)), None)


def _has_rows(weights: Weights) -> bool:
    names, config = labels_of(weights), config_of(weights)
    if config is None:
        return False
    count = len(names) if names is not None else label_count(config)
    return label_rows(config, _shapes(weights), count) != {}


def _shared_rows(weights: Weights, reference: Weights) -> dict[str, int]:
    """The tensors of `weights` with a row for each label that `reference` has too."""
    shared: dict[str, int] = {}
    for one, other in ((weights, reference), (reference, weights)):
        names, config = labels_of(one), config_of(one)
        if config is None:
            continue
        count = len(names) if names is not None else label_count(config)
        rows = label_rows(config, _shapes(one), count)
        if rows is None:
            rows_with_labels(one)
        shared |= {n: d for n, d in (rows or {}).items() if n in weights and other.find(n) is not None}
    return shared


def config_of(weights: Weights) -> Mapping[str, Any] | None:
    if weights.reading is not None:
        return weights.reading.config
    return None if weights.origin is None else weights.origin.config


def _same_table(a: Weights, b: Weights) -> bool:
    """Whether two configs have one table, be it one that does not number rows."""
    if a.row_labels is not None or b.row_labels is not None:
        return False
    tables = [(config_of(one) or {}).get("id2label") for one in (a, b)]
    return bool(tables[0]) and tables[0] == tables[1]


def _shapes(weights: Weights) -> dict[str, tuple[int, ...]]:
    return {n: e.expression.shape for n, e in weights._entries.items() if not e.expression.is_scalar}


def _other_labels(
    weights: Weights, reference: Weights, tensor: str, own: Sequence[str], wanted: Sequence[str]
) -> str:
    told = (
        f"the rows of {tensor!r} are {listing(own, 6)} in {weights.label!r} and {listing(wanted, 6)} in "
        f"{reference.label!r}, so they cannot be lined up by name"
    )
    module = tensor.rpartition(".")[0]
    policy = f'in a recipe, mismatch: {{"{module}.*": base}} keeps the rows of the base or first model'
    if len(own) == len(wanted):
        loose = weights if numbered(own) else reference
        why = "LABEL_n is a place and no name" if numbered(own) or numbered(wanted) else "Under other names"
        return (
            f"{told}. {why}: where these are the same labels, write their names into id2label of {loose.label!r}'s "
            f"config.json, in the order of its rows; where they are not, {policy}"
        )
    more, less = (weights, reference) if len(own) > len(wanted) else (reference, weights)
    held, kept = (own, wanted) if more is weights else (wanted, own)
    if set(kept) <= set(held):
        rows = [list(held).index(name) for name in kept]
        config = config_of(more)
        if config is None or family_of(str(config.get("model_type"))) is None:
            return (
                f'{told}. In a recipe with {less.label!r} as the base or first model, mismatch: {{"{module}.*": crop}} '
                "leaves out what it does not have"
            )
        return (
            f'{told}. `merganser reshape {more.label} OUT "take: {{axis: labels, keep: {rows}}}"` leaves out what '
            f"{less.label!r} does not have"
        )
    return f"{told}. They are classifiers of different things; correct id2label in config.json if it is wrong; {policy}"
