"""RegMean: linear layers merged by the least squares of what each did to its own inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from merganser.algebra import Expression, Weights
from merganser.algebra.computed import whole
from merganser.algebra.weights import combine_named
from merganser.errors import RequestError
from merganser.lineage import statistics_note
from merganser.methods.merge._matrices import Array, Which, matrix_test
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

PAPER = "Jin et al. 2023, Dataless Knowledge Fusion by Merging Weights of Language Models, arXiv:2212.09849"
SETTLED = 0.999
"""Up to this alpha the scaled normal equations have a condition number of at most 1000 times the inputs."""
ROWS = 1024
"""Rows of a matrix that are merged together: the workspace does not grow with their number."""


def _regression(*arguments: Any) -> Array:
    arrays = [argument for argument in arguments if isinstance(argument, np.ndarray)]
    if not all(np.isfinite(array).all() for array in arrays):
        return np.full_like(arrays[0], np.nan)  # for the engine to find and name
    alpha, inputs, *weights = arguments[len(arrays) :]
    half = len(arrays) // 2
    matrices = [array.T if inputs == 0 else array.reshape(len(array), -1) for array in arrays[:half]]
    grams = [_shrunk(gram, alpha, weight) for gram, weight in zip(arrays[half:], weights, strict=True)]
    solve = _Solver(sum(grams[1:], start=grams[0]), alpha)
    merged = np.empty_like(matrices[0])
    for start in range(0, len(merged), ROWS):
        block = slice(start, start + ROWS)
        parts = [matrix[block].astype(np.float64) for matrix in matrices]
        mean = sum(part * weight for part, weight in zip(parts, weights, strict=True)) / sum(weights)
        pull = sum((part - mean) @ gram for part, gram in zip(parts, grams, strict=True))
        merged[block] = mean + solve(pull)
    return merged.T if inputs == 0 else merged.reshape(arrays[0].shape)


def _shrunk(gram: Array, alpha: float, weight: float) -> Array:
    """W (alpha G + (1 - alpha) diag(G)) for the weight W, f64."""
    found = gram.astype(np.float64) * (alpha * weight)
    np.fill_diagonal(found, gram.diagonal().astype(np.float64) * weight)
    return found


class _Solver:
    """X with X S = B, of least norm, for rows B in the range of the positive semidefinite S.

    Inputs are scaled to unit length first: their sizes differ by orders of magnitude, which says nothing.
    """

    def __init__(self, gram: Array, alpha: float) -> None:
        diagonal = gram.diagonal()
        seen = diagonal > 0
        self.scale = np.where(seen, 1 / np.sqrt(np.where(seen, diagonal, 1.0)), 0.0)
        scaled = gram * self.scale[:, None] * self.scale
        self.settled = alpha <= SETTLED
        if self.settled:
            np.fill_diagonal(scaled, 1.0)  # inputs that were never seen: their columns of B are 0
            self.matrix = scaled
            return
        values, vectors = np.linalg.eigh(scaled)
        least = values[-1] * np.sqrt(len(values)) * np.finfo(np.float32).eps if len(values) else 0.0
        kept = values > least
        self.vectors, self.values = vectors[:, kept], values[kept]

    def __call__(self, pull: Array) -> Array:
        scaled = pull * self.scale
        if self.settled:
            found: Array = np.linalg.solve(self.matrix, scaled.T).T
        else:
            found = (scaled @ self.vectors / self.values) @ self.vectors.T
        return found * self.scale


@method("regmean", paper=PAPER, base="optional", statistics="gram")
def regmean(
    base: Weights | None,
    models: Sequence[Weights],
    *,
    statistics: Sequence[Weights],
    weight: PerModel = 1.0,
    alpha: float = 0.9,
    by_tokens: bool = False,
    matrices: Which = "all",
) -> Weights:
    """RegMean: W^T = sum(w_i G_i)^-1 sum(w_i G_i W_i^T) for linear layers [outputs, inputs], the mean of all else.

    It minimises sum(w_i |X_i W^T - X_i W_i^T|^2) over what the layer of model i was given, X_i [tokens, inputs], with
    G_i = X_i^T X_i, of which the off-diagonal entries are multiplied by alpha.

    statistics: of every model, G_i (mean over tokens), [inputs, inputs] under the name of the layer's weight. weight,
    per model: 0 or more, no unit, default 1. alpha: in [0, 1], default 0.9 (the paper's); 0 leaves the diagonals, 1
    changes nothing. by_tokens: multiply w_i by the number of tokens that G_i was observed on, so that the sums
    over tokens count, default false. matrices: "all" tensors that have statistics (default); "layers" leaves out
    embeddings and output heads, "none" all. Every other tensor is sum(w_i m_i) / sum(w_i); the report and the
    manifest list them. Inputs stand in the dimension that the family's file says (GPT-2's matrices are [inputs,
    outputs]); without one in the last. A convolution is a matrix of its patches. A base is not merged; it lends its
    config, tokenizer and integer tensors.

    Computed in f64 as the mean M plus (sum(w_i (W_i - M) G_i)) S^+, with S = sum(w_i G_i): what no data speak about
    (inputs that are always 0; with alpha above 0.999 also directions in which S is below sqrt(inputs) 1.2e-7 of its
    largest, inputs scaled to unit length) stays at the mean, so that a singular S is no error. One model gives itself.

    Models need one another's names and shapes and degree 1, statistics the shapes above (`AlgebraError`). Memory, for
    an m x n matrix of T models: a thread holds (T + 1) m n + T n^2 numbers in f32 and a workspace of
    8 ((T + 4) n^2 + 4096 n) bytes, twice n^2 more with alpha above 0.999. Time: T m n^2 + n^3 operations. Paper:
    arXiv:2212.09849 (not in papers.jsonl), equations 2 and 3. The authors' code divides G_i by tokens too. mergekit
    0.1.5 has no such method.
    """
    if not 0.0 <= alpha <= 1.0:
        raise RequestError(f"regmean: alpha must be in [0, 1], not {alpha}")
    models_only(models, "regmean")
    weights = shares(models, weight, "regmean")
    tokens = [_tokens(observed) if by_tokens else 1 for observed in statistics]
    inputs_of = {which: matrix_test(models[0], which) for which in ("all", matrices)}

    def orientation(name: str, which: Which) -> int | None:
        """The dimension of inputs; 1 also for convolutions, whose inputs are patches (all dimensions but the first)."""
        tensor = models[0][name]
        if len(tensor.shape) > 2:
            return None if which == "none" else 1
        return inputs_of[which](name, tensor)

    def shapes(name: str, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        inputs = orientation(name, "all")
        return [] if inputs is None else [(_count(shape, inputs),) * 2]

    found = lined_up(models[0], models, statistics, shapes, "regmean")
    missing: list[str] = []

    def one(name: str, *tensors: Expression) -> Expression:
        numbers = [own[name] for own in weights]
        used = [k for k, number in enumerate(numbers) if number]
        inputs = orientation(name, matrices)
        if inputs is None or not all(name in own for own in found):
            missing.append(name)
            return plain_mean(tensors, numbers)
        if len(used) == 1:
            return tensors[used[0]]
        operands = [tensors[k] for k in used] + [found[k][name] for k in used]
        size, count = _count(tensors[0].shape, inputs), len(used)
        squares = count + (4 if alpha <= SETTLED else 6)
        return whole(
            _regression,
            operands,
            float(alpha),
            inputs,
            *(numbers[k] * tokens[k] for k in used),
            shapes=[tensors[0].shape],
            workspace=8 * (squares * size * size + (count + 4) * ROWS * size),
        )[0]

    merged = dressed(combine_named(models, one, degree=1.0), base)
    return told(with_statistics(merged, statistics), missing, "regmean")


def _count(shape: tuple[int, ...], inputs: int) -> int:
    return shape[0] if inputs == 0 else math.prod(shape[1:])


def _tokens(observed: Weights) -> int:
    noted = [note["statistics"].get("tokens", 0) for note in observed.notes if "statistics" in note]
    if not noted and observed.checkpoints and (note := statistics_note(observed.checkpoints[0])) is not None:
        noted = [note.tokens]
    if not noted or noted[0] < 1:
        raise RequestError(
            f"regmean: by_tokens needs to know how many tokens {observed.label!r} was observed on; nothing says so"
        )
    return int(noted[0])
