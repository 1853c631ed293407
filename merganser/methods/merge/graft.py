"""Grafting: fine-tuned values where a mask says, the base's everywhere else."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce as fold
from operator import add
from typing import Literal

from merganser.algebra import Expression, Weights, apply
from merganser.algebra.vocabulary import clip
from merganser.algebra.weights import DEGREE_TOLERANCE, combine_named
from merganser.methods.merge._statistics import lined_up, told, with_statistics
from merganser.methods.merge._vectors import task_vectors
from merganser.methods.registry import method


@method("graft", paper="P084", statistics="mask")
def graft(
    base: Weights,
    models: Sequence[Weights],
    *,
    statistics: Sequence[Weights],
    overlap: Literal["mean", "last"] = "mean",
) -> Weights:
    """Grafting: (1 - mask) * base + mask * model, entry by entry, for one model or several with masks of their own.

    statistics: of every model, its mask, in the shapes of the model's tensors: bool or integers (0 and 1), or floats,
    which are moved into [0, 1]. overlap, where masks of several models meet: "mean" (default), the mean of those models
    weighted by their masks, (sum(mask_i m_i) + max(0, 1 - s) base) / max(1, s) with s = sum(mask_i); "last", the
    formula for one model applied in the order of the models, so that the last one stands. Where masks are disjoint both
    are base + sum(mask_i (m_i - base)). Where a mask is 1 the model's own bits stand there, where all are 0 the base's.

    Tensors for which no model has a mask are the base's; the report and the manifest list them. Models need the
    base's names and shapes, masks those of the model (`AlgebraError`). Paper: P084, definition 2.1; its section on
    several tasks takes unions of masks of one model, which are disjoint masks here. mergekit 0.1.5 has no such method.
    """
    tuned = [model if abs(model.degree - 1.0) < DEGREE_TOLERANCE else _added(base, model) for model in models]
    found = lined_up(base, tuned, statistics, lambda _, shape: [shape], "graft")
    missing: list[str] = []

    def one(name: str, old: Expression, *new: Expression) -> Expression:
        pairs = [(own[name], tensor) for own, tensor in zip(found, new, strict=True) if name in own]
        if not pairs:
            missing.append(name)
            return old
        masks = [(clip(mask, 0.0, 1.0), tensor) for mask, tensor in pairs]
        if overlap == "last":
            for mask, tensor in masks:
                old = (1.0 - mask) * old + mask * tensor
            return old
        total = fold(add, [mask for mask, _ in masks])
        mixed = fold(add, [mask * tensor for mask, tensor in masks])
        left = apply("where", total > 1.0, 0.0, 1.0 - total)
        return (left * old + mixed) / apply("where", total > 1.0, total, 1.0)

    merged = combine_named([base, *tuned], one, degree=1.0)
    return told(with_statistics(merged, statistics), missing, "graft")


def _added(base: Weights, change: Weights) -> Weights:
    """A change of the base (a LoRA adapter, a task vector) as the model it makes."""
    return base + task_vectors(base, [change])[0]
