"""One linear layer of a merge fitted by least squares to what two models' layers give."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from merganser.methods.align._descent import Order, Values
from merganser.methods.align._kept import Kept


@dataclass(frozen=True)
class Layer:
    """A model's layer as a matrix [out, in], and what it adds [out]."""

    weight: Values
    bias: Values


@dataclass(frozen=True)
class Fit:
    """The fitted layer [out, in], with the bias as its last column where it has one; mean squared errors of outputs."""

    layer: Values
    before: float
    after: float


def refit(
    start: Values, first: Layer, second: Layer, given: Kept, taken: Kept, joint: Values, ridge: float
) -> Fit:
    """Minimise the mean over tokens of |W z - t|^2 + ridge s |W - W0|^2, s being the mean of z^2.

    start: W0 [out, in], with a bias as its last column where the layer has one. given, taken: what the outputs and the
    inputs of the result are of both models. joint: the mean of v v^T, v = [x_A, x_B, 1].
    """
    one, two = first.weight.shape[1], second.weight.shape[1]
    into = _selection(taken, one, two)
    if start.shape[1] < len(into):
        into = into[:-1]
    target = _selection(given, len(first.weight), len(second.weight))[:-1, :-1] @ np.block(
        [
            [first.weight, np.zeros((len(first.weight), two)), first.bias[:, None]],
            [np.zeros((len(second.weight), one)), second.weight, second.bias[:, None]],
        ]
    )
    gap = target - start @ into
    gram = into @ joint @ into.T
    change = np.zeros_like(start)
    product = gap @ joint @ into.T
    own = np.append(_origin(taken), 0)[: len(gram)]
    for kind in (0, 1, 2):  # merged, A's, B's: what is A's alone never reads what is B's alone
        rows = np.flatnonzero(_origin(given) == kind)
        if not len(rows):
            continue
        columns = np.flatnonzero((own != 3 - kind) | (kind == 0))
        inner = gram[np.ix_(columns, columns)]
        scale = float(np.trace(inner)) / len(columns)
        if scale <= 0:
            continue
        inner = inner + ridge * scale * np.eye(len(columns))
        change[np.ix_(rows, columns)] = np.linalg.solve(inner, product[np.ix_(rows, columns)].T).T
    return Fit(start + change, _error(gap, joint), _error(gap - change @ into, joint))


def _origin(units: Kept) -> Order:
    """0 for merged units, 1 for A's alone, 2 for B's alone."""
    return np.where(units.b < 0, 1, np.where(units.a < 0, 2, 0))


def _selection(units: Kept, one: int, two: int) -> Values:
    """The matrix that makes merged values (and the constant) of [x_A, x_B, 1]."""
    count = len(units.a)
    matrix = np.zeros((count + 1, one + two + 1))
    shares = units.shares
    for index, share, at in ((units.a, shares[0], 0), (units.b, shares[1], one)):
        rows = np.flatnonzero(index >= 0)
        matrix[rows, at + index[rows]] = share[rows]
    matrix[-1, -1] = 1.0
    return matrix


def _error(gap: Values, joint: Values) -> float:
    """The mean over tokens and outputs of the squared gap."""
    return max(0.0, float(np.einsum("ij,ij->", gap @ joint, gap)) / max(1, len(gap)))
