"""Merged parameters as a differentiable function of a few coefficients. Needs torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from merganser.errors import RequestError
from merganser.search.groups import Group

if TYPE_CHECKING:
    from merganser.running import Model

Tensors = dict[str, torch.Tensor]
Parts = Mapping[int, torch.Tensor]
Arrays = Mapping[str, np.ndarray[Any, Any]]


class Vectors:
    """theta0 and the vectors tau_k, in f32 in memory; a vector has only the tensors that it changes.

    `groups` says which coefficient of a vector is for which tensor: those of one group share one.
    """

    def __init__(self, base: Arrays, vectors: Sequence[Arrays], groups: Mapping[str, Group | None]) -> None:
        self.names = [name for name in base if name in groups]
        self.base: Tensors = {name: torch.from_numpy(base[name]) for name in self.names}
        self.vectors: list[Tensors] = [
            {name: torch.from_numpy(one[name]) for name in self.names if name in one} for one in vectors
        ]
        self.groups = list(dict.fromkeys(groups[name] for name in self.names))
        places = {group: k for k, group in enumerate(self.groups)}
        self.place = {name: places[groups[name]] for name in self.names}

    def merged(self, coefficients: torch.Tensor) -> Tensors:
        """theta0 + sum_k c[k, g] tau_k for coefficients [vectors, groups]."""
        found = {}
        for name in self.names:
            parts = {k: vector[name] for k, vector in enumerate(self.vectors) if name in vector}
            column = coefficients[:, self.place[name]]
            base = self.base[name]
            found[name] = _Sum.apply(base, column, parts) if parts else base  # type: ignore[no-untyped-call]
        return found


class _Sum(torch.autograd.Function):
    """base + sum_k column[k] parts[k] without keeping its terms, which is what plain operations would leave behind."""

    @staticmethod
    def forward(ctx: Any, base: torch.Tensor, column: torch.Tensor, parts: Parts) -> torch.Tensor:
        ctx.parts, ctx.size = parts, len(column)
        total: torch.Tensor | None = None
        for k, part in parts.items():
            total = column[k] * part if total is None else total.add_(column[k] * part)
        assert total is not None
        return total.add_(base)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = gradients
        found = gradient.new_zeros(ctx.size)
        for k, part in ctx.parts.items():
            found[k] = (gradient * part).sum()
        return None, found, None


class _Call(torch.nn.Module):
    """A module whose forward is any function that uses `module`, so that functional_call can lend it parameters."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, function: Callable[[], torch.Tensor]) -> torch.Tensor:
        return function()


class Running:
    """A model that is run with parameters that are not its own, so that gradients reach what they were made from."""

    def __init__(self, model: Model) -> None:
        if model.unnamed:
            raise RequestError(
                f"{model.label}: transformers stores {', '.join(model.unnamed[:5])} otherwise than the "
                "checkpoint, so no gradients reach its coefficients"
            )
        self.model = model
        self._call = _Call(model.module)
        self._buffers = {place for place, _ in model.module.named_buffers(remove_duplicate=False)}

    def __call__(self, tensors: Tensors, function: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What `function` gives while the module has `tensors` (by the checkpoint's names).

        Buffers (the running statistics of BatchNorm) follow the coefficients too, and give them no gradient: torch has
        none for them.
        """
        lent = {
            f"module.{place}": tensors[name].detach() if place in self._buffers else tensors[name]
            for place, name in self.model.names.items()
            if name in tensors
        }
        result: torch.Tensor = torch.func.functional_call(self._call, lent, (function,))
        return result
