"""PortLLM: a patch made on one base, carried to an updated one, with a report of how much of it survives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from merganser._facade import compute_scalars
from merganser.algebra import Expression, Leaf, LowRank, Weights, total
from merganser.algebra.computed import whole
from merganser.algebra.labelled import in_label_order, label_order
from merganser.algebra.live import onto
from merganser.algebra.rearranged import product, reshaped
from merganser.errors import AlgebraError
from merganser.methods.adapters._layout import sides

Array = np.ndarray[Any, Any]


def port(
    patch: Weights,
    old: Weights,
    new: Weights,
    *,
    scale: float = 1.0,
    fresh: Weights | None = None,
    threads: int = 0,
    memory: int | None = None,
) -> Weights:
    """PortLLM: `new + scale * p`, with a report of how much of the patch p survives the update u = new - old.

    patch: a LoRA adapter or another change (degree 0) made on `old`, or a fine-tune of `old` (degree 1; then p =
    patch - old). old, new: two versions of a base with the same names and shapes where the patch changes something.
    fresh: a patch trained on `new`, to compare with. threads, memory (bytes): of the report, as in `merganser.save`.
    The result has degree 1 and the report as its note, see `survival`, which reads the tensors that the patch changes
    once, before the plan is made.

    Raises `AlgebraError` for tensors that a base lacks and for other shapes. Paper: P201.
    """
    for base in (old, new):
        if abs(base.degree - 1) > 1e-6:
            raise AlgebraError(
                f"{base.label!r} has degree {base.degree:g}: a patch is carried from model to model"
            )
    order = label_order(new, old)
    for change in (patch, *([fresh] if fresh is not None else [])):
        if change.origin is None and (odd := [name for name in order if name in change]):
            raise AlgebraError(
                f"{change.label!r} changes {odd[0]!r}, a row for each label, and {old.label!r} and {new.label!r} have "
                "their labels in different orders. Bring the new base into the old one's first: `merganser reshape "
                f'{new.label} OUT "permute: {{axis: labels, order: {next(iter(order.values()))[1].tolist()}}}"`'
            )
    vector = onto(old, _vector(patch, old))
    other = None if fresh is None else _vector(fresh, new)
    told = survival(vector, old, new, fresh=other, threads=threads, memory=memory)
    return (new + vector * scale).with_note({"step": "port", "scale": scale, **told})


def _vector(patch: Weights, base: Weights) -> Weights:
    degree = patch.degree
    if abs(degree) > 1e-6 and abs(degree - 1) > 1e-6:
        raise AlgebraError(
            f"{patch.label!r} has degree {degree:g}: a patch is a change (degree 0) or a model (degree 1)"
        )
    return patch - base if abs(degree - 1) < 1e-6 else patch


def survival(
    patch: Weights,
    old: Weights,
    new: Weights,
    *,
    fresh: Weights | None = None,
    threads: int = 0,
    memory: int | None = None,
) -> dict[str, Any]:
    """How a patch p (degree 0) and an update u = new - old stand to each other, from the weights alone.

    Returns {"summary": {...}, "tensors": {name: {...}}} over the tensors that the patch changes, with
    patch = ||p||, update = ||u||, drift = ||u|| / ||old||, cosine = <u, p> / (||u|| ||p||),
    overlap = <u, p> / ||p||^2, survives = 1 + overlap.

    overlap is the step that the update itself made along the patch: 0, the update leaves it alone; 1, it has made the
    same change already, and the patch is applied twice; -1, it takes the patch back. survives is where the patched new
    base stands along the patch, seen from the old base (1: as far as the patched old one).

    For a LoRA: reads and writes, the shares of ||u||^2 within the span of the patch's inputs (rows of A) and outputs
    (columns of B), beside reads_by_chance and writes_by_chance, rank / size, which a random update has. A share far
    above chance says that the update has changed just what the patch builds on.

    fresh, a patch trained on the new base: residual = ||fresh - p|| / ||fresh||, the term that the paper's argument
    needs to be small, and fresh_cosine.

    The summary sums energies and products over all tensors. What a model does with the patched weights no report on
    weights can say: evaluate it.
    """
    patch = onto(old, patch)
    fresh = None if fresh is None else onto(new, fresh)
    patch, new = in_label_order(patch, old), in_label_order(new, old)
    fresh = None if fresh is None else in_label_order(fresh, old)
    targets: dict[str, list[Expression]] = {}
    keys: dict[str, list[str]] = {}
    for name in patch:
        p = patch[name]
        if p.carried:
            continue
        before, after = _tensor(old, name, patch), _tensor(new, name, patch)
        u = after - before
        wanted = {"p2": p * p, "u2": u * u, "up": u * p, "old2": before * before}
        if isinstance(p, LowRank):
            wanted |= _subspaces(u, p)
        if fresh is not None:
            f = fresh.get(name, p * 0.0)
            wanted |= {"f2": f * f, "fp": f * p, "r2": (f - p) * (f - p)}
        keys[name] = list(wanted)
        targets[name] = [total(expression) for expression in wanted.values()]
    parents = [*patch.checkpoints, *old.checkpoints, *new.checkpoints]
    if fresh is not None:
        parents += fresh.checkpoints
    values = compute_scalars(
        targets, list(dict.fromkeys(parents)), threads=threads, memory=memory, allow_nonfinite=False
    )
    tensors, sums = {}, dict.fromkeys(("p2", "u2", "up", "old2", "f2", "fp", "r2"), 0.0)
    for name, numbers in values.items():
        found = dict(zip(keys[name], numbers, strict=True))
        for key in sums:
            sums[key] += found.get(key, 0.0)
        tensors[name] = _measures(found, fresh is not None) | _shares(found, patch[name])
    return {"summary": {"tensors": len(tensors), **_measures(sums, fresh is not None)}, "tensors": tensors}


def _tensor(base: Weights, name: str, patch: Weights) -> Expression:
    found = base.find(name)
    if found is None:
        raise AlgebraError(
            f"{patch.label!r} changes tensor {name!r}, which {base.label!r} lacks: it was made for another model"
        )
    if found.expression.shape != patch[name].shape:
        raise AlgebraError(
            f"tensor {name!r} has shape {list(patch[name].shape)} in {patch.label!r} and "
            f"{list(found.expression.shape)} in {base.label!r}: a patch is carried between bases of one shape"
        )
    return found.expression


def _subspaces(u: Expression, p: LowRank) -> dict[str, Expression]:
    """The update along orthonormal bases of what the patch reads and of what it writes."""
    a, b = sides(p.delta)
    matrix = reshaped(u, (u.shape[0], -(-u.size // u.shape[0])))
    turned = p.delta.left_transposed
    inputs = whole(orthonormal, [Leaf(a)], False, shapes=[(min(a.shape), a.shape[1])], workspace=a.size * 24)[
        0
    ]
    outputs = whole(orthonormal, [Leaf(b)], True, shapes=[(min(b.shape), b.shape[0])], workspace=b.size * 24)[
        0
    ]
    reads, writes = product(matrix, inputs, 0 if turned else 1), product(matrix, outputs, 1 if turned else 0)
    return {"reads": reads * reads, "writes": writes * writes}


def orthonormal(factor: Array, columns: bool) -> Array:
    """Orthonormal rows that span the rows of a factor, or its columns; zeros for what it does not span."""
    matrix = factor if columns else factor.T
    left, values, _ = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    spanned = values > (values[0] if len(values) else 0.0) * 1e-6
    rows: Array = (left * spanned).T
    return rows


def _measures(sums: Mapping[str, float], fresh: bool) -> dict[str, float | None]:
    p, u, old = (math.sqrt(max(sums[key], 0.0)) for key in ("p2", "u2", "old2"))
    overlap = _quotient(sums["up"], sums["p2"])
    found = {
        "patch": p,
        "update": u,
        "drift": _quotient(u, old),
        "cosine": _quotient(sums["up"], u * p),
        "overlap": overlap,
        "survives": None if overlap is None else 1 + overlap,
    }
    if fresh:
        found["residual"] = _quotient(math.sqrt(max(sums["r2"], 0.0)), math.sqrt(sums["f2"]))
        found["fresh_cosine"] = _quotient(sums["fp"], math.sqrt(sums["f2"]) * p)
    return found


def _shares(found: Mapping[str, float], p: Expression) -> dict[str, float | None]:
    if "reads" not in found or not isinstance(p, LowRank):
        return {}
    a, b = sides(p.delta)
    return {
        "reads": _quotient(found["reads"], found["u2"]),
        "reads_by_chance": min(1.0, a.shape[0] / a.shape[1]),
        "writes": _quotient(found["writes"], found["u2"]),
        "writes_by_chance": min(1.0, b.shape[1] / b.shape[0]),
    }


def _quotient(a: float, b: float) -> float | None:
    return a / b if b else None
