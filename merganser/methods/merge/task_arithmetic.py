"""Adding task vectors."""

from __future__ import annotations

from collections.abc import Sequence

from merganser.algebra import Coefficient, Weights
from merganser.methods.merge._vectors import mergekit_dialect, plain_sum, task_vectors
from merganser.methods.registry import PerModel, method


@method(
    "task_arithmetic",
    paper="Ilharco et al. 2023, Editing models with task arithmetic, arXiv:2212.04089",
    mergekit=mergekit_dialect(("weight", "normalize", "scale"), unused=("density", "rescale")),
)
def task_arithmetic(
    base: Weights,
    models: Sequence[Weights],
    *,
    weight: PerModel = 1.0,
    scale: Coefficient = 1.0,
    normalize: bool = False,
) -> Weights:
    """Task arithmetic: base + scale * sum(w_i (m_i - base)).

    weight, per model: any number, no unit, default 1; a negative one takes the task away. scale (`lambda` in
    recipes): any number, default 1; the paper chooses it on validation data. normalize: divide the sum by
    sum(w_i), default false (a sum within 1e-8 of zero divides by 1).

    Models need the base's names and shapes (`AlgebraError`); a LoRA adapter of the base counts as a vector as
    it is. Paper: arXiv:2212.04089 (not in papers.jsonl; P094 builds on it).

    mergekit 0.1.5: the same formula; `weight` must be given; density, rescale and int8_mask are accepted and
    unused.
    """
    return base + plain_sum(task_vectors(base, models), weight, normalize) * scale
