"""Which tensor of a checkpoint each parameter of a module is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

OPTIONAL = ("pooler.",)
"""Parts of an encoder that its checkpoints may lack and that nothing here runs."""


def names_of(module: Any, tensors: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, str], list[str]]:
    """Which tensor each parameter is: by its name, with or without the body's prefix, or as transformers renames it.

    A parameter that is tied to another is the other's tensor.
    """
    places = dict(module.named_parameters(remove_duplicate=False))
    stored = module.state_dict(keep_vars=True)
    places |= {name: buffer for name, buffer in module.named_buffers() if name in stored}
    spellings = _renamed(module)
    prefix = getattr(module, "base_model_prefix", "") or ""
    names: dict[str, str] = {}
    by_memory: dict[int, str] = {}
    for place, value in places.items():
        old = place.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        for spelling in dict.fromkeys((place, old, *spellings.get(_address(value), ()))):
            for candidate in (spelling, spelling.removeprefix(f"{prefix}."), f"{prefix}.{spelling}"):
                if place not in names and tensors.get(candidate) == tuple(value.shape):
                    names[place] = candidate
                    by_memory.setdefault(_address(value), candidate)
    for place, value in places.items():
        if place not in names and value.numel() and _address(value) in by_memory:
            names[place] = by_memory[_address(value)]
    return names, [place for place in places if place not in names and not place.startswith(OPTIONAL)]


def _renamed(module: Any) -> dict[int, list[str]]:
    """The names that transformers saves parameters by, by the address of their first element."""
    from transformers.core_model_loading import revert_weight_conversion

    found: dict[int, list[str]] = {}
    for name, value in revert_weight_conversion(module, dict(module.state_dict(keep_vars=True))).items():
        found.setdefault(_address(value), []).append(name)
    return found


def _address(value: torch.Tensor) -> int:
    """What tells that two tensors are one: where it lies; on the meta device, where nothing lies, the object itself."""
    return id(value) if value.is_meta else value.data_ptr()
