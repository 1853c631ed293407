"""DARE: drop entries of task vectors at random and rescale the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from merganser.algebra import Coefficient, Weights, random_drop
from merganser.algebra.vocabulary import per_part
from merganser.methods.merge._vectors import consensus, distinct, mergekit_dialect, plain_sum, task_vectors
from merganser.methods.registry import PerModel, method

PAPER = "Yu et al. 2024, Language models are super Mario (DARE), arXiv:2311.03099"
KEYS = ("weight", "density", "normalize", "rescale", "scale")


def _dropped(
    method: str, base: Weights, models: Sequence[Weights], density: PerModel, rescale: str, seed: int
) -> list[Weights]:
    distinct(models, method)
    vectors = task_vectors(base, models)
    return [
        random_drop(v, share, seed=seed, method=method, rescale=rescale)
        for v, share in zip(vectors, per_part(vectors, density), strict=True)
    ]


@method("dare_linear", paper=PAPER, mergekit=mergekit_dialect(KEYS, density=1.0, rescale="l1"))
def dare_linear(
    base: Weights,
    models: Sequence[Weights],
    *,
    density: PerModel = 0.1,
    weight: PerModel = 1.0,
    scale: Coefficient = 1.0,
    normalize: bool = False,
    rescale: Literal["share", "l1", "none"] = "share",
    seed: int = 0,
) -> Weights:
    """DARE with task arithmetic: base + scale * sum(w_i drop(m_i - base)).

    drop keeps each entry with probability `density`, independently, and divides what is kept by density, so
    that its expectation stays. density, per model: share in [0, 1], default 0.1 (the paper drops 90% and
    more); 1 keeps all, 0 nothing. weight, per model: any number, default 1. scale (`lambda` in recipes): any
    number, default 1. normalize: divide by sum(w_i), default false (a sum within 1e-8 of zero divides by 1).
    rescale: "share" (the paper's), "l1" (each tensor keeps its sum of magnitudes) or "none". seed: a whole
    number, default 0; a draw depends on (seed, method, the model's label, tensor name, index) only.

    Models need the base's names and shapes (`AlgebraError`) and labels of their own (`RequestError`). Paper:
    arXiv:2311.03099 (not in papers.jsonl).

    mergekit 0.1.5: density = 1 unless given, rescale = "l1" (`rescale: false` is "none"), other random
    numbers; `weight` must be given.
    """
    kept = _dropped("dare_linear", base, models, density, rescale, seed)
    return base + plain_sum(kept, weight, normalize) * scale


@method(
    "dare_ties",
    paper=PAPER,
    mergekit=mergekit_dialect(
        KEYS, density=1.0, rescale="l1", normalize=False, tie="plus", divisor="weights"
    ),
)
def dare_ties(
    base: Weights,
    models: Sequence[Weights],
    *,
    density: PerModel = 0.1,
    weight: PerModel = 1.0,
    scale: Coefficient = 1.0,
    normalize: bool = True,
    rescale: Literal["share", "l1", "none"] = "share",
    election: Literal["weighted", "unweighted"] = "weighted",
    tie: Literal["zero", "plus"] = "zero",
    divisor: Literal["magnitudes", "weights", "count"] = "magnitudes",
    seed: int = 0,
) -> Weights:
    """DARE with TIES: base + scale * disjoint mean of the randomly thinned task vectors.

    drop as in dare_linear takes the place of TIES's trim; then signs are elected and the agreeing averaged as
    in ties. density, weight, scale, rescale, seed: as in dare_linear. normalize (default true), election,
    tie, divisor: as in ties.

    Models need the base's names and shapes (`AlgebraError`) and labels of their own (`RequestError`). Papers:
    arXiv:2311.03099 (not in papers.jsonl) and P267. The paper's experiments also trim after the drop; that is
    not done.

    mergekit 0.1.5: density = 1 unless given, rescale = "l1" (`rescale: false` is "none"), normalize = false,
    tie = "plus", divisor = "weights", other random numbers; `weight` must be given.
    """
    kept = _dropped("dare_ties", base, models, density, rescale, seed)
    how = divisor if normalize else "none"
    return base + consensus(kept, weight, election=election, tie=tie, divisor=how) * scale
