"""Units of two models that are merged in part: which axes allow it, and where each unit of the result comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from merganser.algebra import Weights
from merganser.architectures import Axis, Reading
from merganser.errors import AlgebraError
from merganser.methods.align._descent import Order, Values
from merganser.methods.align.activation_matching import side
from merganser.methods.align.weight_matching import Key, _Models


@dataclass(frozen=True, eq=False)
class Kept:
    """The units of a merged axis: which of A's and which of B's each one is, -1 for none of it."""

    a: Order
    b: Order
    likeness: float = 1.0

    @property
    def shares(self) -> tuple[Values, Values]:
        """How much of each model a unit is: a half of both, or one and nothing."""
        both = np.where((self.a >= 0) & (self.b >= 0), 0.5, 1.0)
        return np.where(self.a >= 0, both, 0.0), np.where(self.b >= 0, both, 0.0)


class Equal(_Models):
    """Both models, where the neurons may differ in number."""

    def __init__(self, a: Weights, b: Weights) -> None:
        self.neurons: list[Axis] = []
        super().__init__(a, b)

    def _check_sizes(self) -> None:
        one, other = self.readings
        self.neurons = _neurons(one)
        for axis in self.sizes:
            if one.sizes[axis] != other.sizes[axis] and axis not in self.neurons:
                raise AlgebraError(
                    f"pleas: {axis} is {one.sizes[axis]} in {self.a.label!r} and {other.sizes[axis]} in "
                    f"{self.b.label!r}; only the number of neurons may differ: a norm or an attention mixes all "
                    "elements of other axes, so they can be merged whole only"
                )

    def key(self, name: str) -> Key:
        """The place in the family's file of one of B's tensors."""
        return next(key for key, own in self.names[1].items() if own == name)


def _neurons(reading: Reading) -> list[Axis]:
    """Axes whose units stand alone: written and read by linear layers, never beside another axis, not the stream."""
    family = reading.family
    apart: set[Axis] = set()
    roles: dict[Axis, set[str]] = {}
    for name, named in reading.tensors.items():
        for k, dim in enumerate(reading.parts(name)):
            for part in dim:
                axes = [factor for factor in part if isinstance(factor, Axis)]
                if len(axes) > 1:
                    apart.update(axes)
                for axis in axes:
                    role = "reads" if k == named.spec.reads else "writes" if k == named.spec.writes else ""
                    roles.setdefault(axis, set()).add(role)
    normed = {
        axis
        for name, named in reading.tensors.items()
        if "norm" in named.spec.kind
        for dim in reading.parts(name)
        for part in dim
        for axis in part
        if isinstance(axis, Axis)
    }
    return [
        axis
        for axis in reading.sizes
        if {"reads", "writes"} <= roles.get(axis, set())
        and axis not in apart | normed
        and axis.name not in family.fixed
        and axis.name not in family.indices
        and not axis.name.endswith(("vocab", "labels"))
        and "residual" not in axis.name
    ]


def elements(
    a: Reading, b: Reading, name: str, theirs: str, dim: int, kept: Mapping[Axis, Kept]
) -> Kept | None:
    """Where each element of a dimension of the result comes from; None where all are merged as they stand."""
    ours, others = a.parts(name)[dim], b.parts(theirs)[dim]
    if not any(factor in kept for part in ours for factor in part):
        return None
    found: tuple[list[Order], list[Order]] = [], []
    offsets = [0, 0]
    for part, other in zip(ours, others, strict=True):
        for which, (reading, own) in enumerate(((a, part), (b, other))):
            shape = [f if isinstance(f, int) else reading.sizes[f] for f in own]
            grid = np.arange(int(np.prod(shape))).reshape(shape)
            for k, factor in enumerate(own):
                if isinstance(factor, Axis) and factor in kept:
                    index = (kept[factor].a, kept[factor].b)[which]
                    grid = grid.take(np.maximum(index, 0), axis=k)
                    grid[(slice(None),) * k + (index < 0,)] = -1
            flat = grid.reshape(-1)
            found[which].append(np.where(flat < 0, -1, flat + offsets[which]))
            offsets[which] += int(np.prod(shape))
    return Kept(np.concatenate(found[0]), np.concatenate(found[1]))


def order_read(reading: Reading, name: str, orders: Mapping[Axis, Order]) -> Order:
    """The order that permuted axes give to what a tensor reads."""
    found = []
    for cut, part in side(reading, name, "reads"):
        shape = [f if isinstance(f, int) else reading.sizes[f] for f in part]
        grid = np.arange(cut.start, cut.stop).reshape(shape)
        for k, factor in enumerate(part):
            if isinstance(factor, Axis) and factor in orders:
                grid = grid.take(orders[factor], axis=k)
        found.append(grid.reshape(-1))
    return np.concatenate(found)
