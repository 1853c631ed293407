"""TIES: merging by trimming, electing signs and averaging what agrees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from merganser.algebra import Coefficient, Weights, match_l1, trim
from merganser.algebra.vocabulary import per_part
from merganser.methods.merge._vectors import consensus, mergekit_dialect, task_vectors
from merganser.methods.registry import PerModel, method


@method(
    "ties",
    paper="P267",
    mergekit=mergekit_dialect(
        ("weight", "density", "normalize", "rescale", "scale"), density=1.0, tie="plus", divisor="weights"
    ),
)
def ties(
    base: Weights,
    models: Sequence[Weights],
    *,
    density: PerModel = 0.2,
    weight: PerModel = 1.0,
    scale: Coefficient = 1.0,
    normalize: bool = True,
    rescale: Literal["none", "l1"] = "none",
    scope: Literal["tensor", "model"] = "tensor",
    election: Literal["weighted", "unweighted"] = "weighted",
    tie: Literal["zero", "plus"] = "zero",
    divisor: Literal["magnitudes", "weights", "count"] = "magnitudes",
) -> Weights:
    """TIES: base + scale * disjoint mean of the trimmed task vectors whose sign is the elected one.

    1. trim: of every v_i = m_i - base keep the `density` entries of largest magnitude (and all equal to the
    smallest of them), zero the rest. 2. elect, entry by entry: s = sgn(sum(w_i v_i)). 3. average: sum(w_i
    v_i) / sum(|w_i|) over the models with sgn(w_i v_i) = s.

    density, per model: share in [0, 1], default 0.2 (the paper's). weight, per model: any number, default 1;
    a negative one counts as the vector turned round. scale (`lambda` in recipes): any number, default 1.
    normalize: divide in step 3, default true. rescale "l1": scale each trimmed tensor so that its sum of
    magnitudes is as before; default "none". scope: n entries are counted per "tensor" (default) or over the
    whole "model", as the paper's own code does; that needs one density for all tensors. election: signs are
    elected with the weights or without ("unweighted"; agreement is then that of v_i). tie: what an exact sum
    of 0 elects: "zero" (nobody, default) or "plus". divisor: "magnitudes" sum(|w_i|), "weights" sum(w_i), or
    "count", the number that agree.

    Models need the base's names and shapes (`AlgebraError`); a share outside [0, 1] is a `RequestError`.
    Paper: P267.

    mergekit 0.1.5: density = 1 unless given, tie = "plus", divisor = "weights" (an exact 0 divides by 1);
    `weight` must be given; exactly int(density n) entries are kept, so of entries equal to the threshold it
    drops some at random.
    """
    vectors = task_vectors(base, models)
    shares = per_part(vectors, density)
    kept = [trim(v, share, scope=scope) for v, share in zip(vectors, shares, strict=True)]
    if rescale == "l1":
        kept = [match_l1(k, v) for k, v in zip(kept, vectors, strict=True)]
    how = divisor if normalize else "none"
    return base + consensus(kept, weight, election=election, tie=tie, divisor=how) * scale
