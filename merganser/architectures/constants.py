"""Tensors that are stored and are no weights: a model computes them itself, and older libraries saved them."""

from __future__ import annotations

import re
from functools import lru_cache

_NAMES = re.compile(
    r"(^|\.)(inv_freq|cos_cached|sin_cached|embed_positions|embed_positions\.weights|position_ids|token_type_ids|"
    r"causal_mask|masked_bias|num_batches_tracked|relative_position_index)$"
)
_MASK = re.compile(r"(^|\.)(attn|attention|self_attn|attn\.attention)\.bias$")
"""The triangle of GPT-2 and its kin, which has the name of a bias and four dimensions."""


@lru_cache(maxsize=100_000)
def is_constant(name: str, dimensions: int) -> bool:
    """Whether a tensor of that name and number of dimensions is a constant: positions, rotary speeds, causal masks.

    Nothing learns them, so they are carried from one parent and may be missing in another.
    """
    return _NAMES.search(name) is not None or (dimensions == 4 and _MASK.search(name) is not None)
