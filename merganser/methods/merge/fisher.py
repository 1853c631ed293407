"""Fisher-weighted averaging: every model counts in an entry as much as its data speak about it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce as fold
from operator import add
from typing import Literal

from merganser.algebra import Expression, Weights, apply
from merganser.algebra.expression import Reduce
from merganser.algebra.weights import combine_named
from merganser.errors import RequestError
from merganser.methods.merge._statistics import (
    lined_up,
    models_only,
    plain_mean,
    shares,
    told,
    with_statistics,
)
from merganser.methods.merge._vectors import dressed
from merganser.methods.registry import PerModel, method


@method("fisher", paper="P059", base="optional", statistics="fisher")
def fisher(
    base: Weights | None,
    models: Sequence[Weights],
    *,
    statistics: Sequence[Weights],
    weight: PerModel = 1.0,
    floor: float = 1e-6,
    floored: Literal["all", "first"] = "all",
    normalize: bool = False,
) -> Weights:
    """Fisher-weighted averaging: sum(w_i F_i m_i) / sum(w_i F_i), entry by entry.

    statistics: of every model, F_i: the diagonal of its Fisher information (mean over rows of squared gradients), in
    the shapes of the model's tensors. weight (the paper's lambda), per model: 0 or more, no unit, default 1.
    floor: entries of F_i below it count as it; 0 or more, in the unit of F, default 1e-6. floored: the floor is put
    under "all" models' (default), or only under the "first" one's: where no Fisher says anything the first model then
    stays. normalize: divide w_i by the Euclidean norm of F_i over all tensors, default false. A base is not merged; it
    lends its config, tokenizer and integer tensors.

    Tensors for which not all models have F are sum(w_i m_i) / sum(w_i); the report and the manifest list them. The same
    is taken where all F_i are 0 and the floor is too. With equal F_i and weights the result is, bit for bit, that of
    `linear`; one model gives itself. Computed in f32, with F_i divided by the largest of them in each entry so that
    small ones do not vanish.

    Models need one another's names and shapes and degree 1, statistics the shapes of the tensors (`AlgebraError`);
    negative weights and floors are a `RequestError`. Paper: P059, section 3.

    The authors' code has floored = "first" and normalize = true. mergekit 0.1.5 has no such method.
    """
    if not 0.0 <= floor < float("inf"):
        raise RequestError(f"fisher: floor must be 0 or more, not {floor}")
    models_only(models, "fisher")
    weights = shares(models, weight, "fisher")
    found = lined_up(models[0], models, statistics, lambda _, shape: [shape], "fisher")
    complete = [name for name in models[0] if all(name in own for own in found)]
    lengths = [_norm([own[name] for name in complete]) for own in found] if normalize and complete else None
    missing: list[str] = []

    def one(name: str, *tensors: Expression) -> Expression:
        numbers = [own[name] for own in weights]
        used = [k for k, number in enumerate(numbers) if number]
        if name not in chosen:
            missing.append(name)
        if name not in chosen or len(used) == 1:
            return plain_mean(tensors, numbers)
        limits = [floor if k == 0 or floored == "all" else 0.0 for k in used]
        heights = [_at_least(found[k][name], limit) for k, limit in zip(used, limits, strict=True)]
        top = fold(lambda a, b: apply("where", a < b, b, a), heights)
        parts = [apply("where", apply("eq", top, 0.0), 1.0, height / top) for height in heights]
        for position, k in enumerate(used):
            if lengths is not None:
                parts[position] = parts[position] * (numbers[k] / lengths[k])
            elif numbers[k] != 1.0:
                parts[position] = parts[position] * numbers[k]
        mixed = fold(add, [tensors[k] * part for k, part in zip(used, parts, strict=True)])
        return mixed / fold(add, parts)

    chosen = set(complete)
    merged = dressed(combine_named(models, one, degree=1.0), base)
    return told(with_statistics(merged, statistics), missing, "fisher")


def _at_least(height: Expression, limit: float) -> Expression:
    """Not `maximum`, which would pass over a NaN."""
    return apply("where", height < limit, limit, height)


def _norm(tensors: Sequence[Expression]) -> Expression:
    """The Euclidean norm over tensors, in units of the largest entry: squares of small numbers vanish in f32."""
    largest = Reduce("max", tuple(tensors))
    unit = apply("where", apply("eq", largest, 0.0), 1.0, largest)
    parts = tuple(tensor / unit for tensor in tensors)
    length = apply("sqrt", Reduce("sum", tuple(part * part for part in parts)))
    return apply("where", apply("eq", length, 0.0), 1.0, length * unit)
