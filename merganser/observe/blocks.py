"""A model without its weights, as a row of blocks that get theirs when their turn comes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from merganser.algebra import Weights
from merganser.errors import RequestError, listing
from merganser.running import Model, live_tensors


class Blocks:
    """A model on the meta device with the blocks that it runs one after the other."""

    def __init__(self, model: Model, weights: Weights) -> None:
        self.model, self.weights = model, weights
        self.path, self.blocks = _find(model)
        owned = {id(p) for block in self.blocks for p in [*block.parameters(), *block.buffers()]}
        if model.unnamed:
            raise RequestError(
                f"{model.label}: cannot be run layer by layer: transformers stores {listing(model.unnamed, 3)} "
                "otherwise than the checkpoint. Give it more --memory, to be run whole"
            )
        self.outside = [
            (place, part)
            for place, part in model.module.named_modules()
            if _own(part) and not any(id(value) in owned for _, value in _own(part))
        ]

    def inside(self, place: str) -> int | None:
        """The number of the block that a place is in."""
        prefix = f"{self.path}."
        return int(place.removeprefix(prefix).split(".")[0]) if place.startswith(prefix) else None

    def bytes_of(self, number: int) -> int:
        """What the weights of a block hold in f32."""
        return sum(value.numel() * 4 for value in self.blocks[number].parameters())

    # Weights ----------------------------------------------------------------------------------------------------------

    @contextmanager
    def filled(self, parts: Sequence[tuple[str, Any]]) -> Iterator[None]:
        """Parameters and stored buffers of modules (by place, with what is below them) out of the checkpoint."""
        held = self.fill(parts)
        try:
            yield
        finally:
            put_back(held)

    def fill(self, parts: Sequence[tuple[str, Any]]) -> list[tuple[Any, str, Any]]:
        """Fill modules until `put_back` is given what this gives."""
        import torch

        wanted: list[tuple[Any, str, str | None]] = []
        for place, part in parts:
            for leaf, value in _own(part):
                at = f"{place}.{leaf}".lstrip(".")
                if value.is_meta:
                    wanted.append((part, leaf, self.model.names.get(at)))
        names = dict.fromkeys(name for _, _, name in wanted if name is not None)
        tensors = live_tensors(self.weights._with({n: self.weights.entry(n) for n in names})) if names else {}
        held = []
        for part, leaf, name in wanted:
            slots = part._parameters if leaf in part._parameters else part._buffers
            held.append((part, leaf, slots[leaf]))
            if name is None:  # a pooler that the checkpoint does without, as nothing reads what it gives
                value = torch.zeros_like(slots[leaf], device="cpu")
            else:
                value = torch.from_numpy(tensors[name])
            slots[leaf] = (
                torch.nn.Parameter(value, requires_grad=False) if slots is part._parameters else value
            )
        return held


def _own(part: Any) -> list[tuple[str, Any]]:
    """Parameters and buffers of a module itself that a checkpoint holds, or would."""
    buffers = [
        (name, value)
        for name, value in part.named_buffers(recurse=False, remove_duplicate=False)
        if name not in part._non_persistent_buffers_set
    ]
    return [*part.named_parameters(recurse=False, remove_duplicate=False), *buffers]


def put_back(held: Sequence[tuple[Any, str, Any]]) -> None:
    """Undo `Blocks.fill`."""
    for part, leaf, value in held:
        slots = part._parameters if leaf in part._parameters else part._buffers
        slots[leaf] = value


def _find(model: Model) -> tuple[str, list[Any]]:
    """The list of blocks with the most parameters."""
    import torch

    lists = [
        (sum(value.numel() for value in part.parameters()), place, list(part))
        for place, part in model.module.named_modules()
        if isinstance(part, torch.nn.ModuleList) and len(part) and len({type(one) for one in part}) == 1
    ]
    size, place, blocks = max(lists, key=lambda one: one[0], default=(0, "", []))
    if not size:
        raise RequestError(
            f"{model.label}: has no list of blocks, so it cannot be run layer by layer; give it more --memory"
        )
    return place, blocks
