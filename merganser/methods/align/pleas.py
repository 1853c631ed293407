"""PLeaS: units that match are merged, the others of both models are kept, and layers are fitted by least squares."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from merganser.algebra import Weights
from merganser.algebra.axes import pad
from merganser.algebra.labelled import in_label_order
from merganser.algebra.rearranged import Array
from merganser.algebra.weights import Entry
from merganser.architectures import Axis, Reading
from merganser.errors import AlgebraError, RequestError, did_you_mean
from merganser.methods.align._descent import Values, pairs
from merganser.methods.align._kept import Equal, Kept, elements, order_read
from merganser.methods.align._paired import Moments, as_matrix
from merganser.methods.align._refit import Layer, refit
from merganser.methods.align.activation_matching import lengths, side, similarities, solve
from merganser.methods.align.weight_matching import _moved, _permuted, _read
from merganser.methods.steps import step

By = Literal["correlation", "distance"]
EXTRA = 1e-9
"""Slack where a width is rounded up."""


@step("pleas", paper="P063")
def pleas(
    weights: Weights,
    *,
    other: Weights,
    statistics: Weights,
    size: float | Mapping[str, float] = 1.0,
    fit: bool = True,
    ridge: float = 1e-3,
    by: By = "correlation",
    family: Path | None = None,
    inferred: bool = False,
) -> Weights:
    """Merge with another model by PLeaS: merge the units that match best, keep the rest of both, refit the layers.

    1. Axes that are no neurons (residual, heads and what is inside) are brought into the order of these weights by
    `align_activations` and merged whole. 2. Of the neurons of each layer the k best pairs of a linear assignment are
    merged; the other neurons of both models stay: n_A + n_B - k in all. 3. Every linear layer is fitted: with z the
    merged inputs (mean of a pair's two, or the unit's own) and t the merged outputs, it minimises the mean over tokens
    of |W z + b - t|^2 + ridge s |(W, b) - (W0, b0)|^2, s being the mean of z^2. W0 is the merge without a fit: means
    where both models meet, each model's own weights otherwise, halves from a kept neuron to what is merged, and zero
    from A's kept neurons to B's, which stays zero. All else (embeddings, norms, convolutions) is the mean of both.

    other: the second model, of the same family; its number of neurons may differ, nothing else. statistics: what
    `merganser observe-pair MODEL OTHER DATA` wrote for these two in this order. size: neurons of the result for each of
    the wider model's, 1 to 2, default 1, rounded up; or by the axis's name. fit: step 3, default true. ridge: above 0,
    default 1e-3. by: how pairs are found and ranked, "correlation" (default) or "distance", the paper's |z_A - z_B|^2.
    family, inferred: as in `align`.

    A permuted copy of the model gives the model back, for any data. With size 2 of a plain MLP the result is the mean
    of both models' outputs; of a transformer it is not, since the residual stream is one and merged.

    Differs from the authors' code, which takes a few hundred steps of Adam from W0: this is the closed form, held near
    W0 by the ridge. Their search for a width per layer needs configs that can say one; here all layers of an axis get
    one ratio. BatchNorm is not re-estimated. Raises `RequestError` for statistics of other models and sizes out of
    range, `AlgebraError` for models that differ in more than neurons. The result is held in memory (f32).
    """
    if not (np.isfinite(ridge) and ridge > 0):
        raise RequestError(f"pleas: ridge must be above 0, not {ridge:g}")
    moments = Moments(statistics, weights, other, "pleas")
    other, a = _read(other, weights, family, inferred)
    other = in_label_order(other, a)
    merging = _Merging(a, other, moments, by)
    widths = merging.widths(size)
    kept = {axis: merging.kept(axis, widths[axis]) for axis in merging.neurons}
    merged = merging.result(kept, fit, ridge)
    if inferred or a.origin is None or a.origin.config is None:
        return merged._with(
            {name: merged.entry(name) for name in merged}, reading=None
        )  # no config says a width
    return merged


class _Merging:
    def __init__(self, a: Weights, b: Weights, moments: Moments, by: By) -> None:
        self.a, self.moments, self.by = a, moments, by
        equal = Equal(a, b)
        self.neurons = equal.neurons
        whole = [axis for axis in equal.free(None, none_is_fine=True) if axis not in self.neurons]
        found, self.without = solve(
            equal, moments, whole, "correlation" if by == "correlation" else "products"
        )
        self.moved = _moved(found)
        self.orders = found.orders
        self.before = equal
        self.b = _permuted(b, found, equal.copied)
        self.models = Equal(a, self.b)

    # Widths and pairs -------------------------------------------------------------------------------------------------

    def widths(self, size: float | Mapping[str, float]) -> dict[Axis, int]:
        """How many neurons each axis gets."""
        known = dict.fromkeys(axis.name for axis in self.neurons)
        if isinstance(size, Mapping):
            for name in size:
                if name not in known:
                    raise RequestError(
                        f"pleas: size: {name} is no axis of neurons{did_you_mean(name, known)} (those are "
                        f"{', '.join(known) or 'none'}; heads and the residual stream are merged whole)"
                    )
        widths = {}
        for axis in self.neurons:
            ratio = size.get(axis.name, 1.0) if isinstance(size, Mapping) else size
            if not 1 <= ratio <= 2:
                raise RequestError(f"pleas: size must be from 1 to 2, not {ratio:g}")
            one, two = (reading.sizes[axis] for reading in self.models.readings)
            widths[axis] = min(one + two, int(np.ceil(ratio * max(one, two) - EXTRA)))
        return widths

    def kept(self, axis: Axis, width: int) -> Kept:
        """The merged units of an axis: pairs in A's order, what else A has, what else B has."""
        one, two = (reading.sizes[axis] for reading in self.models.readings)
        likeness = self._likeness(axis)
        first, second = pairs(likeness)
        values = likeness[first, second]
        count = one + two - width
        best = np.sort(np.argsort(-values, kind="stable")[:count])
        paired, theirs = first[best], second[best]
        alone = np.setdiff1d(np.arange(one), paired)
        others = np.setdiff1d(np.arange(two), theirs)
        a = np.concatenate([paired, alone, np.full(len(others), -1)])
        b = np.concatenate([theirs, np.full(len(alone), -1), others])
        shown = float(values[best].mean()) if count else float("nan")
        return Kept(a, b, shown)

    def _likeness(self, axis: Axis) -> Values:
        """`out[i, j]`: how alike A's unit i and B's unit j are where layers read them, summed over those layers."""
        total: Values | None = None
        for key in self.models.shared:
            name, theirs = self.models.names[0][key], self.models.names[1][key]
            a, b = self.models.readings
            for (cut, part), (other, _) in zip(side(a, name, "reads"), side(b, theirs, "reads"), strict=True):
                if axis not in part:
                    continue
                joint = self._joint(name, theirs)
                if joint is None:
                    continue
                found = _likeness(joint, lengths(a, name, "reads"), cut, other, self.by)
                inner = [f if isinstance(f, int) else 0 for f in part]
                at = part.index(axis)
                before, after = int(np.prod(inner[:at])), int(np.prod(inner[at + 1 :]))
                shape = (before, a.sizes[axis], after, before, b.sizes[axis], after)
                found = np.einsum("aibajb->ij", found.reshape(shape))
                total = found if total is None else total + found
        if total is None:
            raise RequestError(
                f"pleas: the statistics hold nothing about the layers that read {axis}: they were not run, or are no "
                "linear layers of their own"
            )
        return total

    def _joint(self, name: str, theirs: str) -> Values | None:
        """Joint moments with B's inputs in the order that B has by now."""
        a, b = self.models.readings
        one, two = lengths(a, name, "reads"), lengths(b, theirs, "reads")
        joint = self.moments.joint(name, (one, two))
        if joint is None:
            return None
        old = self.before.names[1][self.models.key(theirs)]
        order = order_read(self.before.readings[1], old, self.orders)
        rows = np.concatenate([np.arange(one), one + order, [one + two]])
        return np.asarray(joint[np.ix_(rows, rows)])

    # The result -------------------------------------------------------------------------------------------------------

    def result(self, kept: Mapping[Axis, Kept], fit: bool, ridge: float) -> Weights:
        a, b = self.models.readings
        wide = self.a
        for name in dict.fromkeys(axis.name for axis in kept):
            new = {len(kept[axis].a) for axis in kept if axis.name == name}
            assert len(new) == 1
            wide = pad(wide, name, new.pop())
        names = dict(zip(self.models.names[0].values(), self.models.names[0], strict=True))
        made: dict[str, Values] = {}
        errors: dict[str, tuple[float, float]] = {}
        for name in self.a:
            key = names.get(name)
            if key is None:
                continue
            theirs = self.models.names[1].get(key)
            if theirs is None:
                raise AlgebraError(f"pleas: {self.b.label!r} lacks the tensor {name!r}")
            if name not in made:
                made[name] = self._merged(name, theirs, kept)
        if fit:
            for name, theirs in zip(
                *([names_[key] for key in self.models.shared] for names_ in self.models.names), strict=True
            ):
                joint = self._joint(name, theirs) if side(a, name, "reads") else None
                if joint is not None:
                    errors[name] = self._fit(name, theirs, joint, kept, ridge, made)
        entries = {}
        for name in wide:
            entry = wide.entry(name)
            if name in made:
                dtype = np.float64 if entry.expression.wide else np.float32
                entry = Entry(Array(np.ascontiguousarray(made[name], dtype)), entry.degree)
            entries[name] = entry
        note = {
            "step": "pleas",
            "with": self.b.label,
            "by": self.by,
            "neurons": {
                str(axis): {
                    "first": a.sizes[axis],
                    "second": b.sizes[axis],
                    "merged": int(((one.a >= 0) & (one.b >= 0)).sum()),
                    "result": len(one.a),
                    "likeness": one.likeness if np.isfinite(one.likeness) else None,
                }
                for axis, one in kept.items()
            },
            "axes": self.moved,
            "without_statistics": sorted(map(str, self.without)),
            "fitted": {n: {"before": x, "after": y} for n, (x, y) in errors.items()},
            "ridge": ridge if fit else None,
        }
        return wide._with(entries).with_note(note)

    def _merged(self, name: str, theirs: str, kept: Mapping[Axis, Kept]) -> Values:
        """The tensor without a fit."""
        a, b = self.models.readings
        spec = a.tensors[name].spec
        parts = []
        maps = [elements(a, b, name, theirs, k, kept) for k in range(len(spec.dims))]
        writes = [k for k, one in enumerate(maps) if one is not None and k != spec.reads]
        if len(writes) > 1:
            raise AlgebraError(f"pleas: tensor {name!r} has neurons in two dimensions that it does not read")
        for which, (weights, own) in enumerate(((self.a, name), (self.b, theirs))):
            values = np.asarray(weights.compute(own, allow_nonfinite=False), np.float64)
            for k, one in enumerate(maps):
                if one is None:
                    continue
                index = (one.a, one.b)[which]
                values = values.take(np.maximum(index, 0), axis=k)
                shares = one.shares[which] if k != spec.reads else (index >= 0).astype(np.float64)
                values = values * shares.reshape([-1 if d == k else 1 for d in range(values.ndim)])
            parts.append(values if writes else 0.5 * values)
        return parts[0] + parts[1]

    def _fit(
        self,
        name: str,
        theirs: str,
        joint: Values,
        kept: Mapping[Axis, Kept],
        ridge: float,
        made: dict[str, Values],
    ) -> tuple[float, float]:
        """Refit one linear layer in `made`; the mean squared error of its outputs before and after."""
        a, b = self.models.readings
        spec = a.tensors[name].spec
        assert spec.reads is not None and spec.writes is not None
        one, two = lengths(a, name, "reads"), lengths(b, theirs, "reads")
        taken = elements(a, b, name, theirs, spec.reads, kept) or Kept(np.arange(one), np.arange(two))
        bias = name.removesuffix("weight") + "bias"
        has_bias = bias in made
        first, second = (
            self._layer(weights, reading, own, has_bias)
            for weights, reading, own in ((self.a, a, name), (self.b, b, theirs))
        )
        given = elements(a, b, name, theirs, spec.writes, kept) or Kept(
            np.arange(len(first.weight)), np.arange(len(second.weight))
        )
        start = as_matrix(made[name], a, name)
        if has_bias:
            start = np.concatenate([start, made[bias][:, None]], 1)
        found = refit(start, first, second, given, taken, joint, ridge)
        fitted = found.layer
        if has_bias:
            fitted, made[bias] = fitted[:, :-1], fitted[:, -1]
        made[name] = fitted.T if spec.reads == 0 else fitted
        return found.before, found.after

    @staticmethod
    def _layer(weights: Weights, reading: Reading, name: str, has_bias: bool) -> Layer:
        matrix = as_matrix(
            np.asarray(weights.compute(name, allow_nonfinite=False), np.float64), reading, name
        )
        added = (
            weights.compute(name.removesuffix("weight") + "bias", allow_nonfinite=False)
            if has_bias
            else np.zeros(len(matrix))
        )
        return Layer(matrix, np.asarray(added, np.float64))


def _likeness(joint: Values, one: int, cut: slice, other: slice, by: By) -> Values:
    if by == "correlation":
        return similarities(joint, one, by)[cut, other]
    squares = np.diag(joint)
    cross = joint[:one, one:-1][cut, other]
    return np.asarray(2 * cross - squares[:one][cut][:, None] - squares[one:-1][other][None, :])
