"""A model without its weights: the module on torch's meta device, to be filled piece by piece."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from merganser.algebra import Weights
from merganser.errors import CheckpointError
from merganser.running.kinds import Kind, class_for
from merganser.running.library import quiet, short
from merganser.running.model import Model, of_source
from merganser.running.needs import require
from merganser.running.source import read_source


def open_skeleton(
    source: str | Path, *, kind: Kind | None = None, label: str | None = None
) -> tuple[Model, Weights]:
    """The model of a directory on the meta device, and its weights, lazy.

    Buffers that no checkpoint holds (rotary frequencies, position ids) are real; parameters and other buffers have
    shapes only. Raises as `open_model` does, where the config alone tells.
    """
    require("torch", "transformers")
    import torch

    found = read_source(source, kind, label)
    family = class_for(found.config, found.kind, found.label)
    try:
        with quiet(), torch.device("meta"):
            module = family._from_config(found.config, dtype=torch.float32).eval().requires_grad_(False)
        _make_buffers(module)
    except Exception as error:  # whatever transformers has against it
        raise CheckpointError(
            f"{found.label}: transformers does not open it as {found.kind}: {short(error)}"
        ) from None
    return of_source(module, found), found.weights


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
