"""DELLA: drop entries of task vectors at random, the smaller ones more often, and rescale the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from merganser.algebra import Coefficient, Expression, Weights, apply, match_l1
from merganser.algebra.computed import by_rows
from merganser.algebra.expression import Draw
from merganser.algebra.selection import coefficients
from merganser.algebra.vocabulary import per_part
from merganser.engine.kernels.ranks import above, ranks
from merganser.errors import RequestError
from merganser.methods.merge._vectors import consensus, distinct, mergekit_dialect, plain_sum, task_vectors
from merganser.methods.registry import PerModel, method

PAPER = "Deep et al. 2024, DELLA-Merging, arXiv:2406.11617"
KEYS = ("weight", "density", "epsilon", "normalize", "rescale", "scale")
Rows = np.ndarray[Any, Any]


@method("della_linear", paper=PAPER, mergekit=mergekit_dialect(KEYS, density=1.0, rescale="l1"))
def della_linear(
    base: Weights,
    models: Sequence[Weights],
    *,
    density: PerModel = 0.5,
    epsilon: PerModel = 0.15,
    weight: PerModel = 1.0,
    scale: Coefficient = 1.0,
    normalize: bool = False,
    rescale: Literal["share", "l1", "none"] = "share",
    seed: int = 0,
) -> Weights:
    """DELLA with task arithmetic: base + scale * sum(w_i magprune(m_i - base)).

    magprune ranks the n entries of a row by magnitude, from 0 for the smallest, and keeps the one of rank k
    with probability p = density - epsilon + 2 epsilon k / (n - 1); what is kept is divided by p, so that its
    expectation stays. Of equal magnitudes, those at even places (from 0) have the first of their ranks, those
    at odd places the last. A row is what one output has: all of a tensor but its first dimension, or a whole
    vector; a row of one entry keeps it with probability density.

    density, per model: share in [0, 1], default 0.5; 1 keeps all, 0 nothing. epsilon, per model: half the
    spread of the probabilities, not negative, default 0.15; density - epsilon and density + epsilon must lie
    in (0, 1) (`RequestError`). weight, per model: any number, default 1. scale (`lambda` in recipes): any
    number, default 1. normalize: divide by sum(w_i), default false (a sum within 1e-8 of zero divides by 1).
    rescale: "share" (by p, the paper's), "l1" (each tensor keeps its sum of magnitudes) or "none". seed: a
    whole number, default 0; a draw depends on (seed, method, the model's label, tensor name, index) only.

    Models need the base's names and shapes (`AlgebraError`) and labels of their own (`RequestError`). Paper:
    arXiv:2406.11617 (not in papers.jsonl).

    mergekit 0.1.5: density = 1 unless given, rescale = "l1" (`rescale: false` is "none"), other random
    numbers, ranks of equal magnitudes by an unstable sort, ranks along dimension 1 of tensors with more than
    two; `weight` must be given.
    """
    kept = _pruned("della_linear", base, models, density, epsilon, rescale, seed)
    return base + plain_sum(kept, weight, normalize) * scale


@method(
    "della",
    paper=PAPER,
    mergekit=mergekit_dialect(KEYS, density=1.0, rescale="l1", tie="plus", divisor="weights"),
)
def della(
    base: Weights,
    models: Sequence[Weights],
    *,
    density: PerModel = 0.5,
    epsilon: PerModel = 0.15,
    weight: PerModel = 1.0,
    scale: Coefficient = 1.0,
    normalize: bool = True,
    rescale: Literal["share", "l1", "none"] = "share",
    election: Literal["weighted", "unweighted"] = "weighted",
    tie: Literal["zero", "plus"] = "zero",
    divisor: Literal["magnitudes", "weights", "count"] = "magnitudes",
    seed: int = 0,
) -> Weights:
    """DELLA: base + scale * disjoint mean of the task vectors that magprune thinned.

    magprune as in della_linear; then signs are elected and the agreeing averaged as in ties. density,
    epsilon, weight, scale, rescale, seed: as in della_linear. normalize (default true), election, tie,
    divisor: as in ties.

    Models need the base's names and shapes (`AlgebraError`) and labels of their own (`RequestError`). Papers:
    arXiv:2406.11617 (not in papers.jsonl) and P267.

    mergekit 0.1.5: density = 1 unless given, rescale = "l1" (`rescale: false` is "none"), tie = "plus",
    divisor = "weights", other random numbers, ranks of equal magnitudes by an unstable sort, ranks along dimension 1
    of tensors with more than two; `weight` must be given.
    """
    kept = _pruned("della", base, models, density, epsilon, rescale, seed)
    how = divisor if normalize else "none"
    return base + consensus(kept, weight, election=election, tie=tie, divisor=how) * scale


def _pruned(
    method: str,
    base: Weights,
    models: Sequence[Weights],
    density: PerModel,
    epsilon: PerModel,
    rescale: str,
    seed: int,
) -> list[Weights]:
    if rescale not in ("share", "l1", "none"):
        raise RequestError(f"{method}: rescale must be 'share', 'l1' or 'none', not {rescale!r}")
    distinct(models, method)
    vectors = task_vectors(base, models)
    return [
        _thinned(method, vector, share, spread, rescale, seed)
        for vector, share, spread in zip(
            vectors, per_part(vectors, density), per_part(vectors, epsilon), strict=True
        )
    ]


def _thinned(
    method: str, vector: Weights, density: Coefficient, epsilon: Coefficient, rescale: str, seed: int
) -> Weights:
    shares, spreads = coefficients(density, vector), coefficients(epsilon, vector)
    for name in vector:
        _check(method, vector.label, name, shares[name], spreads[name])

    def thin(name: str, change: Expression) -> Expression:
        share = shares[name]
        if share >= 1.0:
            return change
        if share <= 0.0:
            return change * 0.0
        # A head that is stored beside the embedding it shares must lose the same entries.
        draws = Draw(
            (str(seed), method, vector.label, vector.aliases.get(name, name)), change.shape, change.wide
        )
        outputs = change.shape[0] if len(change.shape) > 1 else 1
        width = max(change.size // max(outputs, 1), 1)
        if width < 2 or spreads[name] == 0.0:
            kept = change * apply("lt", draws, share)
            kept = kept / share if rescale == "share" else kept
        else:
            # An entry stays if draw < low + rank / rate, that is if its rank is above this:
            low, rate = share - spreads[name], (width - 1) / (2.0 * spreads[name])
            bound = draws * rate - low * rate
            if rescale == "share":
                kept = by_rows(_rescaled, (change, bound), low, rate, width=width)
            else:
                kept = change * by_rows(above, (change, bound + 1.0), width=width, flags=True)
        return match_l1(kept, change) if rescale == "l1" else kept

    return vector.map(thin)


def _check(method: str, label: str, name: str, density: float, epsilon: float) -> None:
    where = f"of {label!r} (tensor {name!r})"
    if not 0.0 <= density <= 1.0:
        raise RequestError(f"{method}: density {where} must be in [0, 1], not {density}")
    if epsilon < 0.0:
        raise RequestError(f"{method}: epsilon {where} must not be negative, not {epsilon}")
    if 0.0 < density < 1.0 and not (density - epsilon > 0.0 and density + epsilon < 1.0):
        room = min(density, 1.0 - density)
        raise RequestError(
            f"{method}: density - epsilon and density + epsilon {where} must lie between 0 and 1, but density is "
            f"{density} and epsilon {epsilon}; take an epsilon below {room:g}"
        )


def _rescaled(values: Rows, bound: Rows, low: float, rate: float) -> Rows:
    """Rows of the entries whose rank is above the bound, divided by their probability; others 0."""
    found = ranks(values)
    kept: Rows = values * (found > bound)
    kept /= (found / rate + low).astype(values.dtype)
    return kept
