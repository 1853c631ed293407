"""LoRA adapters added up to one LoRA adapter, exactly or re-ranked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from merganser._facade import compute_scalars
from merganser.algebra import Coefficient, Expression, Leaf, Weights, total
from merganser.algebra.computed import whole
from merganser.algebra.rearranged import joined
from merganser.errors import AlgebraError, RequestError
from merganser.methods.adapters._layout import (
    Factors,
    Sum,
    adapters_of,
    base_of,
    common,
    sides,
    sums,
    written,
)
from merganser.methods.adapters._svd import balanced, least_rank, product_svd, product_workspace

Array = np.ndarray[Any, Any]


def combine(
    adapters: Sequence[Weights],
    weights: Sequence[Coefficient] | Coefficient = 1.0,
    *,
    rank: int | None = None,
    energy: float | None = None,
    base: str | None = None,
    threads: int = 0,
    memory: int | None = None,
) -> Weights:
    """One LoRA adapter that changes the base by `sum_i w_i * s_i * B_i @ A_i`: A stacked, B side by side.

    adapters: opened LoRA adapters (`merganser.open`), of any ranks, scales and modules; a module that one of them
    lacks is zero there. weights: a number for all, or one each (a number, numbers by name pattern or a function of
    the tensor's name), default 1; negative ones are fine. The rest, errors and the result: as in `lora`.
    """
    if not adapters:
        raise RequestError("combine needs at least one adapter")
    for adapter in adapters:
        if not adapters_of(adapter):
            raise AlgebraError(
                f"{adapter.label!r} is no LoRA adapter; extract (merganser extract-lora) makes one of a fine-tune"
            )
    summed = _sum(adapters, weights)
    return lora(summed, rank=rank, energy=energy, base=base, threads=threads, memory=memory)


def lora(
    vector: Weights,
    *,
    rank: int | None = None,
    energy: float | None = None,
    base: str | None = None,
    threads: int = 0,
    memory: int | None = None,
) -> Weights:
    """A LoRA adapter of a sum of LoRA changes, such as `0.7 * a - 0.2 * b` of opened adapters.

    Without rank and energy it is exact: the rank of a module is the sum of its ranks, its A is [A_1; A_2; ...] and
    its B is [w_1 s_1 B_1, w_2 s_2 B_2, ...], s_i = alpha_i / r_i (with use_rslora alpha_i / sqrt(r_i)). With them it
    is the best approximation of that sum: QR of the stacked factors and an SVD of the small core between, in f64, so
    that the product is never formed; singular values lie half in A and half in B.

    rank: at most so many per module, from 1. energy: the share of the sum of squared singular values to keep, in (0,
    1]; the least rank of every module that does (at most `rank` where both are given); this reads all factors once
    before the plan is made. base: what base_model_name_or_path says; default what the adapters say. threads, memory
    (bytes): of the reading, as in `merganser.save`.

    The result has the factors' names, degree 0, and adapter_config.json beside it: alpha = r, so the scale is 1, other
    ranks in rank_pattern and alpha_pattern; F32 unless saved with a dtype. Save it with `degree=0`.

    Raises `AlgebraError` for what is no sum of LoRA changes and for adapters that mix Linear and Conv1D layers,
    `RequestError` for adapters of different bases and settings out of range. Adapters that mean more than their factors
    (DoRA, biases, whole modules) were refused when they were opened.
    """
    check_sizes(rank, energy)
    found = sums(vector)
    adapters = adapters_of(vector)
    stacked = {name: sum(delta.rank for _, delta in one.parts) for name, one in found.items()}
    wanted = {name: stacked[name] if rank is None else min(rank, stacked[name]) for name in found}
    note: dict[str, Any] = {"step": "lora", "adapters": [a.name for a in adapters]}
    if energy is not None:
        needed = _by_energy(found, vector, energy, threads, memory)
        wanted = {name: min(most, needed[name][0]) for name, most in wanted.items()}
        kept = sum(share for _, share, _ in needed.values()) if rank is None else None
        whole_energy = sum(own for _, _, own in needed.values())
        note["energy_kept"] = round(kept / whole_energy, 6) if kept is not None and whole_energy else None
    zero = [name for name, own in wanted.items() if own == 0]
    modules = {
        name: _recompressed(one, wanted[name])
        if energy is not None or wanted[name] < stacked[name]
        else _stacked(one)
        for name, one in found.items()
        if wanted[name]
    }
    if not modules:
        raise AlgebraError(f"{vector.label!r} changes nothing: the adapters cancel")
    ranks = sorted({factors.rank for factors in modules.values()})
    note |= {
        "modules": len(modules),
        "rank": ranks[0] if len(ranks) == 1 else [ranks[0], ranks[-1]],
        "exact": energy is None and all(wanted[name] == own for name, own in stacked.items()),
        "modules_without_change": zero,
    }
    return written(
        modules, vector, note, base=base_of(adapters, base), task_type=common(adapters, "task_type")
    )


def check_sizes(rank: int | None, energy: float | None) -> None:
    """Raise `RequestError` for a rank or an energy out of range."""
    if rank is not None and rank < 1:
        raise RequestError(f"rank must be at least 1, not {rank}")
    if energy is not None and not 0.0 < energy <= 1.0:
        raise RequestError(f"energy must be in (0, 1], not {energy}")


def _sum(adapters: Sequence[Weights], weights: Sequence[Coefficient] | Coefficient) -> Weights:
    numbers = list(weights) if isinstance(weights, Sequence) else [weights] * len(adapters)
    if len(numbers) != len(adapters):
        raise RequestError(f"{len(numbers)} weights for {len(adapters)} adapters")
    result = adapters[0] * numbers[0]
    for adapter, number in zip(adapters[1:], numbers[1:], strict=True):
        result = result + adapter * number
    return result


def _stacked(one: Sum) -> Factors:
    pairs = [(number * delta.scale, *sides(delta)) for number, delta in one.parts]
    above = joined([Leaf(a) for _, a, _ in pairs], 0)
    beside = joined([Leaf(b) if by == 1.0 else Leaf(b) * by for by, _, b in pairs], 1)
    return Factors(above, beside, one.kind, one.shape)


def _recompressed(one: Sum, rank: int) -> Factors:
    operands, scales, (outputs, inputs) = _operands(one)
    stacked = sum(delta.rank for _, delta in one.parts)
    rank = min(rank, outputs, inputs)
    a, b = whole(
        recompressed,
        operands,
        rank,
        *scales,
        shapes=[(rank, inputs), (outputs, rank)],
        workspace=product_workspace(outputs, inputs, stacked),
    )
    return Factors(a, b, one.kind, one.shape)


def _operands(one: Sum) -> tuple[list[Expression], list[float], tuple[int, int]]:
    pairs = [sides(delta) for _, delta in one.parts]
    scales = [number * delta.scale for number, delta in one.parts]
    a, b = pairs[0]
    return [*(Leaf(a) for a, _ in pairs), *(Leaf(b) for _, b in pairs)], scales, (b.shape[0], a.shape[1])


def _split(arguments: tuple[Any, ...]) -> tuple[list[Array], list[Array], float]:
    """What a node of factors gets: A_1 ..., B_1 ..., a number, the scale of each pair. B come back scaled."""
    count = (len(arguments) - 1) // 3
    rights, lefts, scales = arguments[:count], arguments[count : 2 * count], arguments[2 * count + 1 :]
    scaled = [left.astype(np.float64) * scale for left, scale in zip(lefts, scales, strict=True)]
    return scaled, list(rights), arguments[2 * count]


def recompressed(*arguments: Any) -> tuple[Array, Array]:
    """(A, B) of a rank from stacked factors."""
    lefts, rights, wanted = _split(arguments)
    left, values, right = product_svd(lefts, rights)
    rank = int(wanted)
    pad = max(0, rank - len(values))
    left, right = np.pad(left, ((0, 0), (0, pad))), np.pad(right, ((0, pad), (0, 0)))
    values = np.pad(values, (0, pad))
    return balanced(left[:, :rank], values[:rank], right[:rank])


def spectrum(*arguments: Any) -> tuple[Array, Array, Array]:
    """([least rank], [kept energy], [energy]) of stacked factors."""
    lefts, rights, energy = _split(arguments)
    return told(product_svd(lefts, rights)[1] ** 2, energy)


def told(squares: Array, energy: float) -> tuple[Array, Array, Array]:
    """The least rank that keeps a share of the energy, what it keeps, and all of it, each an array of one number."""
    rank = least_rank(squares, energy)
    return np.array([rank]), np.array([squares[:rank].sum()]), np.array([squares.sum()])


def _by_energy(
    found: dict[str, Sum], vector: Weights, energy: float, threads: int, memory: int | None
) -> dict[str, tuple[int, float, float]]:
    """By module: the least rank, the energy it keeps, all of it."""
    targets = {}
    for name, one in found.items():
        operands, scales, (outputs, inputs) = _operands(one)
        space = product_workspace(outputs, inputs, sum(delta.rank for _, delta in one.parts))
        made = whole(spectrum, operands, energy, *scales, shapes=[(1,)] * 3, workspace=space)
        targets[name] = [total(number) for number in made]
    values = compute_scalars(
        targets, vector.checkpoints, threads=threads, memory=memory, allow_nonfinite=False
    )
    return {name: (int(rank), kept, own) for name, (rank, kept, own) in values.items()}
