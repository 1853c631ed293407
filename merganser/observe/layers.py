"""Which layers read an input that is worth keeping statistics of, and which of them read the same one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from merganser.observe.feed import Batch
from merganser.running import Model

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Layer:
    """A matrix product: the module's place, its tensor, and how many channels its input has."""

    place: str
    tensor: str
    width: int


@dataclass(frozen=True, slots=True)
class Tap:
    """An input that one or several layers read; it is taken at the first of them."""

    place: str
    tensors: tuple[str, ...]
    width: int


def layers(model: Model) -> tuple[dict[str, Layer], dict[str, str]]:
    """The layers by place, and why other tensors with two dimensions or more have no statistics of inputs.

    Layers: nn.Linear and transformers' Conv1D (x is the input, [in]), nn.Conv2d without groups (x is an unfolded patch,
    [channels * height * width], in the order of the weight's last three dimensions).
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    found: dict[str, Layer] = {}
    left: dict[str, str] = {}
    embedded = {id(m.weight) for m in model.module.modules() if isinstance(m, torch.nn.Embedding)}
    for place, module in model.module.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            at = f"{place}.{leaf}".lstrip(".")
            tensor = model.names.get(at)
            if parameter.ndim < 2:
                continue
            if tensor is None:
                left[at] = "no single tensor of the checkpoint stands for it"
            elif isinstance(module, torch.nn.Embedding):
                left[tensor] = "an embedding: its inputs are ids"
            elif id(parameter) in embedded:
                left.setdefault(tensor, "tied to an embedding")
            elif isinstance(module, torch.nn.Linear) and leaf == "weight":
                found[place] = Layer(place, tensor, int(module.weight.shape[1]))
            elif isinstance(module, Conv1D) and leaf == "weight":
                found[place] = Layer(place, tensor, int(module.weight.shape[0]))
            elif (
                isinstance(module, torch.nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros"
            ):
                found[place] = Layer(place, tensor, int(module.weight[0].numel()))
            else:
                left[tensor] = f"a {type(module).__name__} is no plain matrix product"
    return found, left


def taps(module: Any, found: Mapping[str, Layer], run: Callable[[], object]) -> tuple[list[Tap], list[str]]:
    """The inputs that a run of the module shows, in the order in which they are read, and the places that read none.

    Layers read the same input where they get the same memory, unchanged in between, in every call, and make the same
    rows of it: two convolutions of one tensor that differ in kernel, stride, padding or dilation see other patches.
    """
    shared: dict[tuple[Any, ...], list[str]] = {}
    alive: list[Any] = []  # so that no memory is used twice

    def note(place: str, value: Any) -> None:
        alive.append(value)
        memory = (value.data_ptr(), tuple(value.shape), value.stride(), value._version)
        key = (memory, _geometry(module.get_submodule(place)))
        shared.setdefault(key, []).append(place)

    hooks = [
        module.get_submodule(place).register_forward_pre_hook(
            lambda _, arguments, place=place: note(place, arguments[0])
        )
        for place in found
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    company: dict[str, set[tuple[str, ...]]] = {}
    for places in shared.values():
        for place in places:
            company.setdefault(place, set()).add(tuple(dict.fromkeys(places)))
    made: dict[str, Tap] = {}
    done: set[str] = set()
    for place in company:
        if place in done:
            continue
        group = next(iter(company[place])) if len(company[place]) == 1 else (place,)
        if any(company[other] != company[place] for other in group):
            group = (place,)
        tensors = tuple(dict.fromkeys(found[other].tensor for other in group))
        made[place] = Tap(place, tensors, found[place].width)
        done.update(group)
    return list(made.values()), [place for place in found if place not in done]


def _geometry(layer: torch.nn.Module) -> tuple[Any, ...]:
    """What decides, beside the tensor that it gets, which rows a layer multiplies by its weight."""
    import torch

    if isinstance(layer, torch.nn.Conv2d):
        return ("patches", layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    return ("last axis",)


def tokens_of(module: torch.nn.Module, value: torch.Tensor, batch: Batch) -> torch.Tensor | None:
    """The input of a layer as [tokens, in], without padding; None where nothing tells which of it is padding."""
    import torch

    if isinstance(module, torch.nn.Conv2d):
        padding: Any = module.padding
        if isinstance(padding, str):
            return None
        patches = torch.nn.functional.unfold(
            value, module.kernel_size, module.dilation, padding, module.stride
        )
        return patches.transpose(1, 2).reshape(-1, patches.shape[1])
    width = value.shape[-1]
    counts, places = batch.counts, batch.places
    if counts is None or places is None or (value.ndim == 2 and len(value) == len(batch.rows)):
        return value.reshape(-1, width)
    if value.shape[:-1] in (counts.shape, (counts.numel(),)):
        return value.reshape(-1, width).index_select(0, places)
    return None
