"""What the methods on statistics share: statistics beside the tensors they were observed on, and plain means."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from merganser.algebra import Expression, Weights
from merganser.algebra.computed import numbers
from merganser.algebra.selection import coefficients
from merganser.algebra.vocabulary import per_part
from merganser.algebra.weights import DEGREE_TOLERANCE
from merganser.errors import AlgebraError, RequestError, did_you_mean
from merganser.methods.registry import PerModel

UNOBSERVED = "tensors without statistics"
"""The key of a note: the tensors for which a model has no statistics, so that they are merged without."""
Shapes = Callable[[str, tuple[int, ...]], Sequence[tuple[int, ...]]]
"""The shapes that the statistics of a tensor, given its name and shape, may have; none where it has none."""


def lined_up(
    names: Iterable[str],
    models: Sequence[Weights],
    statistics: Sequence[Weights],
    shapes: Shapes,
    method: str,
) -> list[dict[str, Expression]]:
    """For every model, its statistics by the names of tensors, of those that it has.

    Raises `AlgebraError` for statistics of tensors that the model lacks, and for those of another shape.
    """
    found, names = [], list(names)
    for model, observed in zip(models, statistics, strict=True):
        for name in observed:
            if model.find(name) is None:
                raise AlgebraError(
                    f"{method}: {observed.label!r} has statistics of tensor {name!r}, which {model.label!r} lacks"
                    f"{did_you_mean(name, model)}"
                )
        own = {}
        for name in names:
            entry, tensor = _of(observed, model, name), model.find(name)
            if entry is None or tensor is None or tensor.carried:
                continue
            allowed = shapes(name, tensor.expression.shape)
            if entry.shape not in allowed:
                wanted = " or ".join(str(list(shape)) for shape in allowed) or "none"
                raise AlgebraError(
                    f"{method}: statistics of tensor {name!r} in {observed.label!r} have shape {list(entry.shape)}; "
                    f"for {list(tensor.expression.shape)} in {model.label!r} it must be {wanted}"
                )
            own[name] = numbers(entry)
        found.append(own)
    return found


def _of(observed: Weights, model: Weights, name: str) -> Expression | None:
    """The statistics under a name, or under that of the tensor it is tied to."""
    for candidate in (name, model.aliases.get(name, name)):
        if candidate in observed:
            return observed[candidate]
    return None


def models_only(models: Sequence[Weights], method: str) -> None:
    """Raise `AlgebraError` unless all models are models: degree 1."""
    for model in models:
        if abs(model.degree - 1.0) > DEGREE_TOLERANCE:
            raise AlgebraError(
                f"{method} averages models, and {model.label!r} has degree {model.degree:g}; add a change of a model "
                "to its base first"
            )


def shares(models: Sequence[Weights], weight: PerModel, method: str) -> list[dict[str, float]]:
    """Every model's weight by the first model's names; `RequestError` where one is negative or all are zero."""
    found = []
    for model, value in zip(models, per_part(models, weight), strict=True):
        own = coefficients(value, model)
        known = {name: own.get(name, own.get(model.aliases.get(name, name), 0.0)) for name in models[0]}
        for name, number in known.items():
            if number < 0.0:
                raise RequestError(
                    f"{method}: the weight of {model.label!r} must not be negative, not {number} (tensor {name!r})"
                )
        found.append(known)
    for name in models[0]:
        if not any(own[name] for own in found):
            raise RequestError(f"{method}: all weights of tensor {name!r} are zero, so there is no average")
    return found


def plain_mean(tensors: Sequence[Expression], weights: Sequence[float]) -> Expression:
    """sum(w x) / sum(w), by the arithmetic of the method linear; one tensor is itself."""
    used = [(x, w) for x, w in zip(tensors, weights, strict=True) if w]
    if len(used) == 1:
        return used[0][0]
    total: Expression | None = None
    for x, w in used:
        part = x if w == 1.0 else x * w
        total = part if total is None else total + part
    assert total is not None
    return total / sum(w for _, w in used)


def with_statistics(merged: Weights, statistics: Sequence[Weights]) -> Weights:
    """The result with the statistics among its parents, so that their digests are in the manifest."""
    known = {id(checkpoint): checkpoint for checkpoint in merged.checkpoints}
    for observed in statistics:
        known |= {id(checkpoint): checkpoint for checkpoint in observed.checkpoints}
    entries = {name: merged.entry(name) for name in merged}
    return merged._with(entries, checkpoints=tuple(known.values()))


def told(merged: Weights, names: Sequence[str], method: str) -> Weights:
    """The result with a note of the tensors that had no statistics, if there are any."""
    return merged.with_note(unobserved_note(method, names)) if names else merged


def unobserved_note(method: str, names: Sequence[str]) -> Mapping[str, Any]:
    """The note of tensors that were merged without statistics."""
    return {"step": method, UNOBSERVED: list(names)}
