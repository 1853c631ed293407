"""Learning the coefficients of task vectors by gradients: AdaMerging, aTLAS, Self-Positioning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser._progress import Progress
from merganser.errors import RequestError, did_you_mean
from merganser.search.descent import METHODS, Method, Settings, train
from merganser.search.groups import Group, float_names, groups
from merganser.search.vector_recipe import LINEAR_TOLERANCE, VectorRecipe
from merganser.search.writer import check_out, write_recipe

if TYPE_CHECKING:
    from merganser.evaluate import Suite

COEFFICIENTS = ("task", "layer", "tensor")
OBJECTIVES = ("entropy", "labels")


@dataclass(frozen=True)
class Learned:
    """Learned coefficients by model and group (None: one for the whole model), and the recipe that they make.

    `losses` are the sums over tasks by step, before the step was taken; `difference` is the largest one between the
    tensors that were learned and those that the recipe makes, as a share of the largest change of the base.
    """

    method: str
    coefficients: Mapping[str, Mapping[Group | None, float]]
    documents: Sequence[Any]
    losses: Sequence[float]
    difference: float

    def as_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            "method": self.method,
            "coefficients": {
                model: {"*" if group is None else group.pattern: value for group, value in found.items()}
                for model, found in self.coefficients.items()
            },
            "losses": list(self.losses),
            "difference": self.difference,
        }


def learn(
    recipe: str | Path | Mapping[str, Any],
    suite: Suite | str | Path | Mapping[str, Any],
    *,
    by: str = "adamerging",
    coefficients: str | None = None,
    objective: str | None = None,
    steps: int | None = None,
    rate: float | None = None,
    batch: int | None = None,
    start: float | None = None,
    seed: int = 0,
    memory: int | None = None,
    progress: Progress | None = None,
) -> Learned:
    """Learn the models' weights in a recipe that is linear in them, theta = theta0 + sum_k c_k tau_k.

    recipe: one on task vectors (task_arithmetic; ties with election: unweighted and normalize: false,
    AdaMerging++); any weights that it has are replaced. suite: the tasks whose data are learned from, with their heads.

    adamerging (P185): the entropy of the predictions, summed over the tasks, one batch of each a step; labels are not
    read. Adam at 1e-3, coefficients from 0.3, kept in [0, 1]. atlas (P094): cross-entropy, or entropy (objective), the
    mean over tasks; AdamW at 0.1 with a cosine to 0, decay 0.1, gradients cut to norm 1, coefficients from 0.
    self_positioning (P457): the loss on a probe set with as many rows of each task a step, SGD at 0.1; theta = theta0 +
    s sum_k a_k tau_k with a = softmax and s free, from equal a and s = 1, the average of the models.

    coefficients: one for each "task" vector, "layer" (and module outside the layers) of it, or "tensor", which
    is what the authors of adamerging call layer-wise and of atlas a parameter block. objective: "entropy" or
    "labels"; of language models and pairs only labels are known. steps, rate, batch (rows of a task a step), start:
    defaults by method.

    Differences from the papers: docs/search.md. Memory beside the process itself: (4 + models) x 4 bytes a parameter
    (base, a vector for each model, the module, one merged copy, its gradients), and the activations of a batch. Where
    it is more than `memory` bytes (None: no limit) without activations, nothing is computed.

    Raises `RequestError` where the recipe or the suite cannot be used, `NonFiniteError` where the loss is NaN.
    """
    from merganser.evaluate import Suite
    from merganser.running import require

    require("torch", "transformers")
    method = _method(by)
    chosen = _one_of("coefficients", coefficients or method.coefficients, COEFFICIENTS)
    goal = _one_of("objective", objective or method.objective, OBJECTIVES)
    if by == "adamerging" and goal == "labels":
        raise RequestError("adamerging learns from entropy; for labels take atlas or self_positioning")
    if by == "self_positioning" and chosen != "task":
        raise RequestError("self_positioning has one coefficient a task vector, so coefficients is task")
    settings = Settings(
        method,
        goal == "entropy",
        _count("steps", method.steps if steps is None else steps),
        _positive("rate", method.rate if rate is None else rate),
        _count("batch", method.batch if batch is None else batch),
        method.start if start is None else start,
        seed,
    )
    source = VectorRecipe.open(recipe)
    opened = suite if isinstance(suite, Suite) else Suite.open(suite)
    from merganser.search.objectives import check

    for task in opened.tasks:
        check(task, goal == "entropy")
    source.check_memory(memory)
    base, taus, zero = source.vectors()
    found = groups(float_names(zero), chosen) if chosen != "task" else dict.fromkeys(float_names(zero))
    raw, losses, tensors = train(base, taus, zero, found, opened, settings, progress)
    order = list(dict.fromkeys(found.values()))
    values = [dict(zip(order, row, strict=True)) for row in raw]
    document = source.document(values)
    made = source.computed(document)
    size = max((float(np.abs(tensors[n] - base[n]).max(initial=0.0)) for n in tensors), default=0.0) or 1.0
    off = max((float(np.abs(tensors[n] - made[n]).max(initial=0.0)) for n in tensors), default=0.0) / size
    if off > LINEAR_TOLERANCE:
        raise source.not_linear(off)
    return Learned(by, dict(zip(source.labels, values, strict=True)), [document], losses, off)


def learn_into(
    recipe: str | Path, suite: Any, out: str | Path, *, overwrite: bool = False, **settings: Any
) -> Learned:
    """`learn`, and the recipe with the learned weights written to `out`."""
    from merganser.evaluate import Suite

    out = Path(out)
    check_out(out, overwrite)
    opened = suite if isinstance(suite, Suite) else Suite.open(suite)
    found = learn(recipe, opened, **settings)
    provenance = {
        "found by": f"merganser learn ({found.method}, {METHODS[found.method].paper})",
        "of": Path(recipe).name,
        "suite": opened.name,
        "suite_digest": opened.digest,
        **{
            key: value
            for key, value in sorted(settings.items())
            if key not in ("by", "memory", "progress") and value is not None
        },
        "loss": [found.losses[0], found.losses[-1]],
    }
    write_recipe(
        out, found.documents, provenance, source=Path(recipe).expanduser().parent, overwrite=overwrite
    )
    return found


def _method(by: str) -> Method:
    if by not in METHODS:
        raise RequestError(
            f"unknown way to learn {by!r}{did_you_mean(by, METHODS)} (known: {', '.join(METHODS)})"
        )
    return METHODS[by]


def _one_of(what: str, value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise RequestError(
            f"{what}: {value!r} is unknown{did_you_mean(value, known)} (known: {', '.join(known)})"
        )
    return value


def _count(what: str, value: int) -> int:
    if isinstance(value, bool) or value < 1:
        raise RequestError(f"{what}: expected a whole number from 1, not {value}")
    return value


def _positive(what: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise RequestError(f"{what}: expected a number above 0, not {value}")
    return value


__all__ = ["COEFFICIENTS", "METHODS", "OBJECTIVES", "Learned", "learn", "learn_into"]
