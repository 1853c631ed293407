"""Random numbers for tiny models, so that no norm is all ones and no bias all zeros."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def shake(model: Model, size: float = 0.2, seed: int = 0) -> Model:
    """Add noise to every float parameter, and to every stored float buffer of more than one element."""
    generator = torch.Generator().manual_seed(seed)
    stored = model.state_dict().keys()
    buffers = [buffer for name, buffer in model.named_buffers() if name in stored and buffer.numel() > 1]
    with torch.no_grad():
        for tensor in (*model.parameters(), *buffers):
            if tensor.is_floating_point():
                tensor.add_(size * torch.randn(tensor.shape, generator=generator).to(tensor.dtype))
    return model.eval()
