"""How many directions a change of a matrix has: effective and stable rank."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser._facade import compute_scalars
from merganser.algebra import Expression, total
from merganser.algebra.computed import whole
from merganser.algebra.rearranged import Array, reshaped
from merganser.compare.lineup import Lineup, Place
from merganser.errors import RequestError

if TYPE_CHECKING:
    from merganser._progress import Progress

CHOICES = ("sample", "all", "none")
EXACT = 2048
"""Up to this many rows or columns the singular values are all computed."""
PROBES, STEPS, TOP = 8, 48, 128
PER_KIND = 4
SHARE = 64
"""A sampled matrix has at most memory / SHARE elements (2**24 for 1 GiB)."""
SAMPLERS = 2
"""Threads that rank a sample: each holds a matrix, so more of them would need more memory."""
BLOCK = 4096
"""Columns of a matrix that are widened to f64 at a time."""
Matrix = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Rank:
    """Of the change of one tensor by one model. `full` is the smaller side; `exact` or estimated."""

    tensor: str
    model: str
    kind: str
    layer: int | None
    effective: float
    stable: float
    full: int
    exact: bool


def ranks_of(
    lineup: Lineup,
    places: list[Place],
    choice: str,
    *,
    threads: int = 0,
    memory: int | None = None,
    progress: Progress | None = None,
) -> tuple[list[Rank], list[str]]:
    """The ranks of the chosen matrices, and the names of matrices that were too large for the sample.

    `choice` "sample" takes PER_KIND matrices of each kind, evenly over the layers, "all" every one, "none" none. What
    is ranked is the task vector; without a base, the difference of each model from the first.
    """
    if choice not in CHOICES:
        raise RequestError(f"--rank must be one of {', '.join(CHOICES)}, not {choice!r}")
    chosen, large = _chosen(places, choice, memory or 2**30)
    targets: dict[str, list[Expression]] = {}
    of: dict[str, tuple[Place, int]] = {}
    for k, place in enumerate(chosen):
        for model, change in _changes(lineup, place).items():
            rows = place.shape[0]
            matrix = reshaped(change, (rows, place.size // rows))
            side = min(matrix.shape)
            more = (
                3 * side * side + BLOCK * side
                if side <= EXACT
                else place.size + (PROBES * STEPS + 4 * TOP) * side
            )
            (found,) = whole(spectrum, [matrix], shapes=[(2,)], workspace=8 * more)
            targets[f"{k} {model}"] = [total(found * Array(one)) for one in np.eye(2, dtype=np.float32)]
            of[f"{k} {model}"] = (place, model)
    if not targets:
        return [], large
    checkpoints = [c for one in (*lineup.models, lineup.base) if one is not None for c in one.checkpoints]
    if choice == "sample":
        threads = min(threads or SAMPLERS, SAMPLERS)
    values = compute_scalars(targets, checkpoints, threads=threads, memory=memory, progress=progress)
    return [_rank(lineup, *of[name], values[name]) for name in targets], large


def _rank(lineup: Lineup, place: Place, model: int, values: list[float]) -> Rank:
    rows = place.shape[0]
    side = min(rows, place.size // rows)
    return Rank(
        place.name, lineup.labels[model], place.kind, place.layer, values[0], values[1], side, side <= EXACT
    )


def _changes(lineup: Lineup, place: Place) -> Mapping[int, Expression]:
    found: dict[int, Expression] = {}
    for model in sorted(place.names):
        vector = lineup.vector(place, model)
        if vector is None and lineup.base is None and model and 0 in place.names:
            vector = lineup.expression(place, model) - lineup.expression(place, 0)
        if vector is not None:
            found[model] = vector
    return found


def _chosen(places: list[Place], choice: str, memory: int) -> tuple[list[Place], list[str]]:
    matrices = [place for place in places if place.matrix]
    if choice == "none":
        return [], []
    if choice == "all":
        return matrices, []
    large = [place.name for place in matrices if place.size > memory // SHARE]
    groups: dict[str, list[Place]] = {}
    for place in matrices:
        if place.size <= memory // SHARE:
            groups.setdefault(place.kind, []).append(place)
    found = []
    for group in groups.values():
        count = min(PER_KIND, len(group))
        found += [group[round(k * (len(group) - 1) / max(1, count - 1))] for k in range(count)]
    return found, large


def spectrum(matrix: Matrix) -> Matrix:
    """Effective rank exp(-sum p log p), p = s^2 / sum s^2, and stable rank sum s^2 / max s^2, as [2].

    0 for a zero matrix. Exact up to EXACT rows or columns (eigenvalues of the smaller Gram matrix in f64); beyond, the
    TOP largest values are found by subspace iteration, and the entropy of the rest is estimated by stochastic Lanczos
    quadrature with PROBES fixed random vectors of STEPS steps each.
    """
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.T
    side, length = matrix.shape
    if not np.isfinite(matrix).all() or not matrix.any():
        return np.zeros(2)
    if side <= EXACT:
        gram = np.zeros((side, side))
        for at in range(0, length, BLOCK):
            block = matrix[:, at : at + BLOCK].astype(np.float64)
            gram += block @ block.T
        values = np.maximum(np.linalg.eigvalsh(gram / np.trace(gram)), 0.0)
        entropy, largest = _entropy(values), float(values[-1])
    else:
        wide = matrix.astype(np.float64)
        entropy, largest = _quadrature(wide, float(np.sum(wide * wide)))
    return np.array([math.exp(entropy), 1.0 / largest])


def _entropy(shares: Matrix) -> float:
    kept = shares[shares > 0]
    return float(-np.sum(kept * np.log(kept)))


def _quadrature(matrix: Matrix, square: float) -> tuple[float, float]:
    """The entropy -tr(G log G) and the largest eigenvalue of G = A A' / |A|^2."""
    size = len(matrix)
    random = np.random.default_rng(0)

    def gram(x: Matrix) -> Matrix:
        made: Matrix = matrix @ (matrix.T @ x) / square
        return made

    top = random.standard_normal((size, TOP))
    for _ in range(3):
        top = np.linalg.qr(gram(top))[0]
    values = np.maximum(np.linalg.eigvalsh(top.T @ gram(top)), 0.0)
    rest = 1.0 - float(np.sum(values))
    if rest <= 1e-9:
        return _entropy(values), float(values[-1])

    def outside(x: Matrix) -> Matrix:
        found: Matrix = x - top @ (top.T @ x)
        return found

    start = outside(random.choice([-1.0, 1.0], (size, PROBES)))
    basis = np.zeros((STEPS, size, PROBES))
    diagonal, beside = np.zeros((STEPS, PROBES)), np.zeros((STEPS, PROBES))
    basis[0] = start / np.linalg.norm(start, axis=0)
    for step in range(STEPS):
        following = outside(gram(basis[step]))
        diagonal[step] = np.sum(following * basis[step], axis=0)
        for _ in range(2):  # twice keeps the basis orthogonal to rounding
            along = np.einsum("ksp,sp->kp", basis[: step + 1], following)
            following -= np.einsum("ksp,kp->sp", basis[: step + 1], along)
        beside[step] = np.linalg.norm(following, axis=0)
        if step + 1 < STEPS:
            basis[step + 1] = following / np.maximum(beside[step], 1e-300)
    entropies, largest = [], float(values[-1])
    for probe in range(PROBES):
        side = beside[:-1, probe]
        ended = np.flatnonzero(side < 1e-13)
        count = int(ended[0]) + 1 if len(ended) else STEPS
        small = np.diag(diagonal[:count, probe])
        small += np.diag(side[: count - 1], 1) + np.diag(side[: count - 1], -1)
        nodes, vectors = np.linalg.eigh(small)
        nodes, weights = np.maximum(nodes, 0.0), vectors[0] ** 2
        logs = np.log(np.maximum(nodes, 1e-300))
        largest = max(largest, float(nodes[-1]))
        # the trace of what is left is known, so each probe is scaled to it
        entropies.append(-rest * float(np.sum(weights * nodes * logs)) / max(float(weights @ nodes), 1e-300))
    return _entropy(values) + float(np.mean(entropies)), largest
