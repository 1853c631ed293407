"""A model without its weights: the module on torch's meta device, to be filled piece by piece."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from merganser.algebra import Weights
from merganser.algebra.weights import from_checkpoint
from merganser.checkpoint import open_checkpoint
from merganser.checkpoint.digest import identity
from merganser.engine import small_files
from merganser.errors import CheckpointError, RequestError
from merganser.running import model as opening
from merganser.running.needs import require


def open_skeleton(
    source: str | Path, *, kind: opening.Kind | None = None, label: str | None = None
) -> tuple[opening.Model, Weights]:
    """The model of a directory on the meta device, and its weights, lazy.

    Buffers that no checkpoint holds (rotary frequencies, position ids) are real; parameters and other buffers have
    shapes only. Raises as `open_model` does, where the config alone tells.
    """
    require("torch", "transformers")
    import torch

    checkpoint = open_checkpoint(source, name=label or str(source))
    name = label or str(source)
    if checkpoint.is_adapter:
        raise RequestError(f"{source}: is a LoRA adapter; merge it into its base first (method: linear)")
    weights = from_checkpoint(checkpoint)
    files = small_files(weights)
    if "config.json" not in files:
        raise RequestError(f"{name}: has no config.json, so nothing says how to run it")
    with opening._folder(files) as folder:
        config = opening._config(folder, name)
        chosen = kind or opening._kind(config)
    family = opening._family(config, chosen, name)
    try:
        with opening._quiet(), torch.device("meta"):
            module = family._from_config(config, dtype=torch.float32).eval().requires_grad_(False)
        _make_buffers(module)
    except Exception as error:  # whatever transformers has against it
        raise CheckpointError(
            f"{name}: transformers does not open it as {chosen}: {opening._short(error)}"
        ) from None
    shapes = {tensor: tuple(weights[tensor].shape) for tensor in weights}
    mark = identity(checkpoint.tensors)
    return opening.Model(module, chosen, label=name, identity=mark, files=files, tensors=shapes), weights


def _make_buffers(module: Any) -> None:
    """Compute the buffers that are not stored, as transformers does where it loads a model."""
    import torch

    owners = {"": module}
    for path, part in module.named_modules():
        owner = owners[""]
        for above, found in owners.items():
            if path == above or path.startswith(f"{above}."):
                owner = found
        if hasattr(part, "_init_weights"):
            owners[path] = owner = part
        unstored = [name for name in part._non_persistent_buffers_set if part._buffers[name] is not None]
        if not unstored:
            continue
        for name in unstored:
            part._buffers[name] = torch.empty_like(part._buffers[name], device="cpu")
        with torch.no_grad():
            owner._init_weights(part)
