"""Weighted averages of checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from merganser.algebra import Weights, weighted_sum
from merganser.algebra.selection import coefficients
from merganser.errors import RequestError, listing
from merganser.methods.merge._vectors import dressed, weight_total
from merganser.methods.registry import Mergekit, PerModel, method


@method(
    "linear",
    paper="Wortsman et al. 2022, Model soups, arXiv:2203.05482",
    base="optional",
    mergekit=Mergekit(settable=("weight", "normalize"), required=("weight",), defaults={"total": "any"}),
)
def linear(
    base: Weights | None,
    models: Sequence[Weights],
    *,
    weight: PerModel = 1.0,
    normalize: bool = True,
    total: Literal["one", "any"] = "one",
) -> Weights:
    """Weighted average of checkpoints (model soups): sum(w_i m_i) / sum(w_i).

    weight, per model: any number, no unit, default 1 (so the plain mean). normalize: divide by the sum of the
    weights, default true; without it the sum is left as it is. total: with "one" (default) saving then refuses
    what does not add up to one model; "any" takes the result for a model whatever the weights add up to. base is
    not averaged (list it among the models for that); if given, its config, tokenizer and other small files and
    its integer tensors go to the result, else those of the first model.

    All models need the names and shapes of the first. Raises `RequestError` where the weights sum to zero,
    `AlgebraError` where names or shapes differ. Paper: Model soups (arXiv:2203.05482; not in papers.jsonl).

    mergekit 0.1.5: the same arithmetic in f32; `weight` must be given, total = "any"; a `base_model` that is not
    listed is averaged too, under the global weight.
    """
    _check_kinds(models)
    mixed = weighted_sum(models, weight)
    if normalize:
        totals = coefficients(weight_total(models, weight), mixed)
        zero = [name for name, number in totals.items() if number == 0.0]
        if zero:
            raise RequestError(
                f"linear: the weights of tensor {zero[0]!r} sum to zero, so there is no average"
            )
        mixed = mixed / totals.__getitem__
    elif total == "any":
        mixed = mixed.map(lambda _, expression: expression, degree=models[0].degree)
    if base is None and models[0].origin is not None and mixed.origin is not models[0].origin:
        base = models[0]  # with weight 0 it counts as a vector in the sum, and lends its files all the same
    return dressed(mixed, base)


def _check_kinds(models: Sequence[Weights]) -> None:
    """A change of a model among models is likely a slip; changes among themselves may be averaged."""
    changes = [model.label for model in models if model.origin is None and not model.degree]
    if changes and len(changes) < len(models):
        raise RequestError(
            f"linear averages models, and {listing(map(repr, changes))} is a change of one (a LoRA adapter or a task "
            "vector); add it to its base first (path: base, lora: adapter; in mergekit's form base+adapter), or use "
            "a method on task vectors such as task_arithmetic"
        )
