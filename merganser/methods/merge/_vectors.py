"""What the methods on task vectors share."""

from __future__ import annotations

from collections.abc import Sequence

from merganser.algebra import Coefficient, Entry, Weights, axes, disjoint_mean, elect_sign, weighted_sum
from merganser.algebra.agreement import check_agreement
from merganser.algebra.labelled import in_label_order, labels_of, with_labels
from merganser.algebra.live import onto
from merganser.algebra.selection import coefficients
from merganser.algebra.vocabulary import per_part
from merganser.algebra.weights import DEGREE_TOLERANCE
from merganser.architectures import Reading
from merganser.errors import AlgebraError, RequestError
from merganser.methods.registry import Mergekit, PerModel


def task_vectors(base: Weights, models: Sequence[Weights]) -> list[Weights]:
    """`model - base` for every model.

    What is a vector already (a LoRA adapter) stays, with zeros where it is silent.
    """
    vectors = []
    for model in models:
        if abs(model.degree) < DEGREE_TOLERANCE:
            vectors.append(_filled(base, model))
        elif abs(model.degree - 1.0) < DEGREE_TOLERANCE:
            vectors.append(model - base)
        else:
            raise AlgebraError(
                f"{model.label!r} has degree {model.degree:g}; "
                "a task vector is made from a model (1) or is one (0)"
            )
    return vectors


def _filled(base: Weights, vector: Weights) -> Weights:
    check_agreement((base, vector))
    vector = onto(base, vector)
    extra = [name for name in vector if name not in base]
    if extra:
        raise AlgebraError(
            f"{vector.label!r} changes tensor {extra[0]!r}, which {base.label!r} does not have"
        )
    vector = in_label_order(vector, base)
    if len(vector) == len(base):
        return vector
    silent = base.map(lambda _, expression: expression * 0.0, degree=0.0)
    entries = {name: vector.entry(name) if name in vector else silent.entry(name) for name in base}
    zero = {name: Entry(entry.expression, 0.0) for name, entry in entries.items()}
    return Weights(
        zero,
        label=vector.label,
        origin=None,
        checkpoints=(*base.checkpoints, *vector.checkpoints),
        allowed=vector.allowed,
        row_labels=labels_of(base),
    )


def distinct(models: Sequence[Weights], method: str) -> None:
    """Raise `RequestError` where two models have one label: their random draws would be the same."""
    labels = [model.label for model in models]
    for label in labels:
        if labels.count(label) > 1:
            raise RequestError(
                f"{method}: two models are called {label!r}, so the same entries of both would be dropped; "
                "give them names of their own (Weights.relabel, or name: in the recipe)"
            )


def weight_total(models: Sequence[Weights], weight: PerModel) -> Coefficient:
    """The sum of the models' weights, for every tensor."""
    numbers = per_part(models, weight)
    if all(isinstance(number, int | float) for number in numbers):
        return float(sum(number for number in numbers if isinstance(number, int | float)))
    each = [coefficients(number, model) for number, model in zip(numbers, models, strict=True)]
    sums = {
        name: sum(found.get(name, 0.0) for found in each)
        for name in dict.fromkeys(n for e in each for n in e)
    }
    return sums.__getitem__


def plain_sum(vectors: Sequence[Weights], weight: PerModel, normalize: bool) -> Weights:
    """sum(w v), and with `normalize` divided by sum(w), where that is not within 1e-8 of zero."""
    mixed = weighted_sum(vectors, weight)
    if not normalize:
        return mixed
    totals = coefficients(weight_total(vectors, weight), mixed)
    guarded = {name: 1.0 if abs(number) < 1e-8 else number for name, number in totals.items()}
    return mixed / guarded.__getitem__


def consensus(
    vectors: Sequence[Weights], weight: PerModel, *, election: str, tie: str, divisor: str
) -> Weights:
    """Elect a sign for every entry, then combine the vectors that agree with it."""
    signs: PerModel = weight if election == "weighted" else 1.0
    elected = elect_sign(vectors, signs, tie=1.0 if tie == "plus" else 0.0)
    return disjoint_mean(vectors, elected, weight, divisor=divisor, signs=signs)


def dressed(weights: Weights, base: Weights | None) -> Weights:
    """The weights with the small files and integer tensors of a base that is not merged itself."""
    if base is None:
        return weights
    check_agreement((base, weights))
    entries = {}
    for name in weights:
        entry = weights.entry(name)
        entries[name] = base.entry(name) if entry.carried and name in base else entry
    known = {id(checkpoint) for checkpoint in weights.checkpoints}
    extra = tuple(checkpoint for checkpoint in base.checkpoints if id(checkpoint) not in known)
    names = labels_of(weights)
    result = weights._with(
        entries,
        origin=base.origin,
        checkpoints=(*weights.checkpoints, *extra),
        dropped=weights.dropped | base.dropped,
        files={**weights.files, **base.files},
        reading=_reading(weights, base),
        row_labels=base.row_labels,
    )
    return with_labels(result, names)


def _reading(weights: Weights, base: Weights) -> Reading | None:
    """The base's config for axes as they are in the weights; None where neither was changed."""
    if weights.reading is None or base.reading is not None:
        return base.reading
    own = axes.reading_of(base)
    return own.resized(weights.reading.sizes, weights.reading.tensors)


def mergekit_dialect(settable: tuple[str, ...], unused: tuple[str, ...] = (), **defaults: object) -> Mergekit:
    """What mergekit's task-vector methods have in common: their keys, and that `weight` must be given."""
    per_model = ("density", "gamma")
    return Mergekit(
        settable=settable,
        required=("weight",),
        defaults=defaults,
        switches={"rescale": ("none", "l1")} if "rescale" in settable else {},
        unused={"int8_mask": False} | {key: key in per_model for key in unused},
    )
