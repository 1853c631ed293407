"""Spherical interpolation of two checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from merganser.algebra import Coefficient, Weights
from merganser.algebra import slerp as interpolate
from merganser.methods.registry import Mergekit, method


@method(
    "slerp",
    paper="Shoemake 1985, Animating rotation with quaternion curves",
    max_models=1,
    mergekit=Mergekit(settable=("t",), required=("t",), defaults={"tiny": 1e-8, "zero": "orthogonal"}),
)
def slerp(
    base: Weights,
    models: Sequence[Weights],
    *,
    t: Coefficient,
    collinear: float = 0.9995,
    tiny: float = 0.0,
    zero: Literal["linear", "orthogonal"] = "linear",
) -> Weights:
    """Spherical interpolation from the base to one model, tensor by tensor.

    With theta the angle between the two tensors as vectors: sin((1-t) theta)/sin(theta) base + sin(t
    theta)/sin(theta) model. t, required: 0 gives the base, 1 the model; other values outside [0, 1]
    extrapolate; it may differ from tensor to tensor. Where |cos(theta)| > collinear (in [0, 1], default
    0.9995) it is (1-t) base + t model. A norm of at most `tiny` (default 0) is zero; a zero tensor has no
    direction, so it is interpolated linearly ("linear"), or counts as orthogonal to the other ("orthogonal").

    Both need the same names and shapes (`AlgebraError`). Formula: Shoemake 1985 (not in papers.jsonl).

    mergekit 0.1.5: tiny = 1e-8 and zero = "orthogonal".
    """
    return interpolate(base, models[0], t, collinear=collinear, tiny=tiny, zero=zero)
