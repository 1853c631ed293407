"""Joint second moments of two models' layers, as `merganser observe-pair` writes them, read for what is needed here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from merganser.algebra import Weights
from merganser.algebra.expression import Leaf
from merganser.architectures import Reading
from merganser.checkpoint.digest import identity
from merganser.errors import RequestError
from merganser.lineage import PAIRED, raw_note

Values = np.ndarray[Any, Any]


class Moments:
    """By A's tensor names: the mean of v v^T over tokens, v = [x_A, x_B, 1], f64.

    `statistics` must be of these two models, in this order, as they are stored; anything else is a `RequestError`.
    """

    def __init__(self, statistics: Weights, a: Weights, b: Weights, step: str) -> None:
        self.statistics = statistics
        note = _note(statistics, step)
        self.shared: Mapping[str, str] = note.get("shared") or {}
        for which, (weights, model) in enumerate(zip((a, b), note.get("models") or (), strict=False)):
            _check(weights, model, f"{step}: statistics {statistics.label!r}", which)

    def joint(self, name: str, sizes: tuple[int, int]) -> Values | None:
        """Of the inputs of one tensor, [in_A + in_B + 1] squared; None where that layer was not observed."""
        own = self.shared.get(name, name)
        if own not in self.statistics:
            return None
        found = np.asarray(self.statistics.compute(own, allow_nonfinite=False), np.float64)
        wide = sum(sizes) + 1
        if found.shape != (wide, wide):
            raise RequestError(
                f"the statistics {self.statistics.label!r} of {name} have shape {list(found.shape)}; layers that take "
                f"in {sizes[0]} and {sizes[1]} need {[wide, wide]}: were they made with these two models in this order?"
            )
        return found

    def own(self, name: str) -> str:
        """The name that this tensor's moments lie under."""
        return self.shared.get(name, name)


def factors(joint: Values, size: int, centred: bool) -> tuple[Values, Values, Values]:
    """Rows whose products are the moments: [in_A, r], [in_B, r] and [1, r] for the constant.

    With `centred` the means are taken out of the first two, so that products are covariances.
    """
    values, vectors = np.linalg.eigh(joint)
    rows = vectors * np.sqrt(np.maximum(values, 0.0))
    one = rows[-1:]
    if centred:
        rows = rows - (rows @ one.T) * one / (one @ one.T).item()
    return rows[:size], rows[size:-1], one


def as_matrix(values: Values, reading: Reading, name: str) -> Values:
    """A linear tensor as [out, in], whichever way it is stored."""
    return values.T if reading.tensors[name].spec.reads == 0 else values


def _note(statistics: Weights, step: str) -> Mapping[str, Any]:
    found = raw_note(statistics.notes or statistics.origin)
    if not isinstance(found, Mapping) or found.get("kind") != PAIRED:
        raise RequestError(
            f"{step}: {statistics.label!r} holds no joint moments of two models; `merganser observe-pair A B DATA OUT` "
            "writes them"
        )
    return found


def _check(weights: Weights, model: Any, what: str, which: int) -> None:
    wanted = model.get("identity") if isinstance(model, Mapping) else None
    if wanted is None:
        return
    stored = weights.origin is not None and all(isinstance(weights[name], Leaf) for name in weights)
    if not stored:
        raise RequestError(f"{what} are of models as they are stored; no other step may come before")
    assert weights.origin is not None
    if identity(weights.origin.tensors) != wanted:
        raise RequestError(
            f"{what} are of other models: the {('first', 'second')[which]} one was {model.get('label')!r} with other "
            f"weights than {weights.label!r}"
        )
