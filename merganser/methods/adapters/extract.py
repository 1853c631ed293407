"""A LoRA adapter made of any change to a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from merganser._facade import compute_scalars
from merganser.algebra import Expression, LowRank, Weights, axes, total
from merganser.algebra.computed import whole
from merganser.algebra.selection import matching
from merganser.errors import AlgebraError, MerganserError, RequestError, listing
from merganser.methods.adapters import _svd
from merganser.methods.adapters._layout import Factors, Kind, module_of, sides, written
from merganser.methods.adapters.combine import check_sizes, told

Array = np.ndarray[Any, Any]
RANK = 32
_EMBEDDINGS = ("embed", "wte", "wpe", "shared", "relative_attention_bias")
"""What the last part of an embedding's name begins with or contains, where no family file says it."""


def extract(
    vector: Weights,
    *,
    rank: int | None = None,
    energy: float | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    embeddings: bool = False,
    allow_loss: bool = False,
    base: str | None = None,
    task_type: str | None = None,
    threads: int = 0,
    memory: int | None = None,
) -> Weights:
    """A LoRA adapter nearest to a change D: `B @ A`, the leading part of the SVD of D, for every linear layer.

    vector: weights of degree 0, such as `model - base`, a task vector or a merged one. rank: at most so many per
    module, default 32. energy: the share of ||D||^2 to keep per module, in (0, 1]; the least rank that does (at most
    `rank` where given); the spectra are then read in a pass before the plan is made. include: name patterns of the
    tensors to take (default: the 2-D `.weight` of every linear layer, output head among them); exclude: those to
    leave. embeddings: take embeddings too. base: for the config. task_type: for the config, `CAUSAL_LM` for instance.
    threads, memory (bytes): of the readings before the plan, as in `merganser.save`.

    What a LoRA cannot carry (norms, biases, convolutions, embeddings unless asked for) is read first. Where such a
    tensor has changed, this is an `AlgebraError` that names it and its norm; with allow_loss it is in the note of the
    result. What include and exclude leave out is in the note too.

    Accuracy: singular vectors by block Krylov iteration that stops when a step adds less than 1e-5 of the kept
    energy, by the f64 Gram matrix where it does not converge or the rank is above a sixth of the smaller side (see
    `_svd`). Singular values lie half in A and half in B. The result is as that of `lora`.

    Raises `AlgebraError` for weights of another degree, `RequestError` for settings out of range.
    """
    check_sizes(rank, energy)
    if abs(vector.degree) > 1e-6:
        raise AlgebraError(
            f"extract works on a change (degree 0), but {vector.label!r} has degree {vector.degree:g}; "
            "subtract the base first"
        )
    kinds = _kinds(vector, include, exclude, embeddings)
    norms = _norms(vector, threads, memory)
    lost, excluded, zero = _left_out(norms, vector, kinds, include, exclude)
    if lost and not allow_loss:
        worst = sorted(lost.items(), key=lambda item: -item[1]["norm"])
        told_of = listing((f"{name} (norm {entry['norm']:.4g}, {entry['why']})" for name, entry in worst), 6)
        raise AlgebraError(
            f"{vector.label!r} changes {len(lost)} tensors that the adapter would not carry: {told_of}. "
            "--allow-loss (allow_loss=True) leaves them out and lists them in the report"
        )
    chosen = {name: kind for name, kind in kinds.items() if name not in zero}
    if not chosen:
        raise AlgebraError(f"{vector.label!r} changes no linear layer, so there is nothing to extract")
    most = rank if rank is not None else RANK if energy is None else None
    ranks = {name: min(vector[name].shape[:2]) for name in chosen}
    if most is not None:
        ranks = {name: min(most, own) for name, own in ranks.items()}
    note: dict[str, Any] = {"step": "extract_lora"}
    if energy is not None:
        needed = _by_energy(vector, chosen, energy, threads, memory)
        ranks = {name: min(own, needed[name][0]) for name, own in ranks.items()}
    modules = {module_of(name): _extracted(vector[name], kind, ranks[name]) for name, kind in chosen.items()}
    distinct = sorted(set(ranks.values()))
    note |= {
        "modules": len(modules),
        "rank": distinct[0] if len(distinct) == 1 else [distinct[0], distinct[-1]],
        "energy": energy,
        "norms": {name: norms[name] for name in chosen},
        "modules_without_change": [module_of(name) for name in zero],
        "lost": lost,
        "left_out": excluded,
    }
    return written(modules, vector, note, base=base, task_type=task_type)


def kept_energy(adapter: Weights) -> dict[str, float]:
    """By tensor the energy `||B A||^2` that an extracted adapter holds.

    Over the square of the change's norm, which is in the note of `extract`, this is the share that was kept. For
    adapters of `extract` and `resize` only, whose factors have orthogonal rows and columns.
    """
    found = {}
    for name in adapter:
        node = adapter[name]
        if not isinstance(node, LowRank):
            raise AlgebraError(f"{adapter.label!r} is no LoRA adapter: open it anew")
        a, b = (stored.numpy().astype(np.float64) for stored in sides(node.delta))
        found[name] = float(np.sum(np.square(a).sum(axis=1) * np.square(b).sum(axis=0))) * node.delta.scale**2
    return found


def _kinds(
    vector: Weights, include: Sequence[str], exclude: Sequence[str], embeddings: bool
) -> dict[str, Kind]:
    """The tensors to factor, and what layer each belongs to."""
    embedding = _embeddings(vector)
    conv1d = _has_conv1d(vector)
    out = set(matching(vector, tuple(exclude))) if exclude else set()
    wanted = set(matching(vector, tuple(include))) if include else set(vector)
    found: dict[str, Kind] = {}
    for name in vector:
        if name in out or name not in wanted or _why_not(vector, name):
            continue
        if name in embedding:
            if embeddings:
                _free_of_ties(vector, name)
                found[name] = "embedding"
        elif not conv1d:
            found[name] = "linear"
        elif _is_conv1d(name):
            found[name] = "conv1d"
        elif include:
            found[name] = "linear"
    if include and (fit := [name for name in vector if name in wanted - out and name not in found]):
        reasons = {name: _why_not(vector, name) or "it is an embedding: pass --embeddings" for name in fit}
        if len(fit) == len(wanted - out):
            raise RequestError(
                f"no tensor that --include matches can be factored: {fit[0]}: {reasons[fit[0]]}"
            )
    return found


def _why_not(vector: Weights, name: str) -> str:
    """Why a tensor is no weight of a linear layer or an embedding, or an empty string."""
    expression = vector[name]
    if expression.carried:
        return "holds integers or constants"
    if name in vector.aliases:
        return "is tied to the embedding"
    if len(expression.shape) != 2 or 0 in expression.shape:
        return f"has shape {list(expression.shape)}"
    return "" if name.endswith(".weight") else "is no weight of a module"


def _embeddings(vector: Weights) -> set[str]:
    """The embeddings, by the family file where there is one and by their names."""
    found = set()
    for name in vector:
        last = module_of(name).rpartition(".")[2]
        if "embed" in last or last in _EMBEDDINGS:
            found.add(name)
    try:
        reading = axes.reading_of(vector)
    except MerganserError:
        return found
    return found | {name for name, named in reading.tensors.items() if named.spec.kind == "embedding"}


def _has_conv1d(vector: Weights) -> bool:
    """Whether the model has transformers' Conv1D layers: an expanding one then has more columns than rows."""
    for name in vector:
        shape = vector[name].shape
        if (
            module_of(name).rpartition(".")[2] in ("c_attn", "c_fc")
            and len(shape) == 2
            and shape[0] < shape[1]
        ):
            return True
    return False


def _is_conv1d(name: str) -> bool:
    from merganser.checkpoint.adapter import CONV1D_NAMES

    return module_of(name).rpartition(".")[2] in CONV1D_NAMES


def _free_of_ties(vector: Weights, name: str) -> None:
    heads = [head for head, embedding in vector.aliases.items() if embedding == name]
    if heads:
        raise RequestError(
            f"{name!r} is tied to {heads[0]!r}, and a LoRA of the embedding would change the embedding alone; "
            "extract without --embeddings"
        )


def _norms(vector: Weights, threads: int, memory: int | None) -> dict[str, float]:
    """By name the norm of every change, read in one pass."""
    names = [name for name in vector if not vector[name].carried and name not in vector.aliases]
    targets = {name: [total(vector[name] * vector[name])] for name in names}
    values = compute_scalars(targets, vector.checkpoints, threads=threads, memory=memory)
    return {name: math.sqrt(own) for name, (own,) in values.items()}


def _left_out(
    norms: dict[str, float],
    vector: Weights,
    kinds: dict[str, Kind],
    include: Sequence[str],
    exclude: Sequence[str],
) -> tuple[dict[str, dict[str, Any]], dict[str, float], list[str]]:
    """Changes that the adapter lacks, those left out by a pattern (by norm), and chosen tensors without change."""
    embedding = _embeddings(vector)
    out = set(matching(vector, tuple(exclude))) if exclude else set()
    wanted = set(matching(vector, tuple(include))) if include else set(norms)
    lost, excluded = {}, {}
    for name in norms:
        if name in kinds or norms[name] == 0.0:
            continue
        if name in out or name not in wanted:
            excluded[name] = float(f"{norms[name]:.6g}")
        else:
            why = _why_not(vector, name) or (
                "is an embedding: --embeddings takes it" if name in embedding else "is no Conv1D layer"
            )
            lost[name] = {"norm": float(f"{norms[name]:.6g}"), "why": why}
    return lost, excluded, [name for name in kinds if norms[name] == 0.0]


def _extracted(change: Expression, kind: Kind, rank: int) -> Factors:
    m, n = change.shape
    turned = kind != "linear"
    inputs, outputs = (m, n) if turned else (n, m)
    a, b = whole(
        factored,
        [change],
        rank,
        turned,
        shapes=[(rank, inputs), (outputs, rank)],
        workspace=_svd.workspace(change.shape, rank),
    )
    return Factors(a, b, kind, change.shape)


def factored(change: Array, rank: int, turned: bool) -> tuple[Array, Array]:
    """(A, B) of a change; `turned` where its weight is (in, out), so that the change is (B A)'."""
    left, values, right = _svd.leading(change.T if turned else change, rank)
    return _svd.balanced(left, values, right)


def spectrum(change: Array, energy: float) -> tuple[Array, Array, Array]:
    """([least rank], [kept energy], [energy]) of a change."""
    squares = np.maximum(np.linalg.eigvalsh(_svd.gram(change))[::-1], 0.0)
    return told(squares, energy)


def _by_energy(
    vector: Weights, chosen: dict[str, Kind], energy: float, threads: int, memory: int | None
) -> dict[str, tuple[int, float, float]]:
    targets = {}
    for name in chosen:
        space = _svd.gram_workspace(vector[name].shape)
        made = whole(spectrum, [vector[name]], energy, shapes=[(1,)] * 3, workspace=space)
        targets[name] = [total(number) for number in made]
    values = compute_scalars(targets, vector.checkpoints, threads=threads, memory=memory)
    return {name: (int(rank), kept, own) for name, (rank, kept, own) in values.items()}
