"""What TIES trims and where signs disagree, at the densities of a merge (P267)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, Literal

from merganser._facade import compute_scalars
from merganser.algebra import Coefficient, Weights, total, trim, where
from merganser.algebra.expression import Expression, apply
from merganser.algebra.vocabulary import per_part
from merganser.methods.merge._vectors import task_vectors
from merganser.methods.registry import PerModel


def conflicts(
    base: Weights,
    models: Sequence[Weights],
    *,
    density: PerModel = 0.2,
    scope: Literal["tensor", "model"] = "tensor",
    threads: int = 0,
    memory: int | None = None,
) -> dict[str, Any]:
    """Counts over all tensors, and by tensor, of the task vectors as `ties` trims them with this density and scope.

    entries: of all vectors together; kept: how many trimming leaves (and are not 0); trimmed = 1 - kept / entries.
    touched: entries of the base that some vector still changes; opposed: those where two of them still have opposite
    signs; conflicts = opposed / touched (0 where nothing is touched). Streams the parents, once or twice more than the
    merge does.
    """
    vectors = task_vectors(base, models)
    kept = [
        trim(vector, share, scope=scope)
        for vector, share in zip(vectors, per_part(vectors, density), strict=True)
    ]
    targets: dict[str, list[Expression]] = {}
    for name in base:
        if base.entry(name).carried:
            continue
        parts = [vector[name] for vector in kept if name in vector]
        if not parts:
            continue
        up, down = ([one > 0 if sign > 0 else one < 0 for one in parts] for sign in (1, -1))
        some_up, some_down = (reduce(lambda a, b: a | b, each) for each in (up, down))
        counts = [apply("or", a, b) for a, b in zip(up, down, strict=True)]
        targets[name] = [
            reduce(lambda a, b: a + b, [_count(one) for one in counts]),
            _count(some_up | some_down),
            _count(some_up & some_down),
        ]
    found = compute_scalars(targets, base.checkpoints + _all(models), threads=threads, memory=memory)
    tensors = {
        name: _row(base[name].size * len(vectors), *map(round, numbers)) for name, numbers in found.items()
    }
    sums = [sum(row[key] for row in tensors.values()) for key in ("entries", "kept", "touched", "opposed")]
    return {**_row(*sums), "tensors": tensors}


def _count(condition: Expression) -> Expression:
    return total(where(condition, 1.0, 0.0))


def _all(models: Sequence[Weights]) -> tuple[Any, ...]:
    return tuple(checkpoint for model in models for checkpoint in model.checkpoints)


def _row(entries: int, kept: int, touched: int, opposed: int) -> dict[str, Any]:
    return {
        "entries": entries,
        "kept": kept,
        "trimmed": 1.0 - kept / entries if entries else 0.0,
        "touched": touched,
        "opposed": opposed,
        "conflicts": opposed / touched if touched else 0.0,
    }


__all__ = ["Coefficient", "conflicts"]
