"""Running models: opening them in torch, reading data, batches, linear heads. Needs the `models` extra.

Everything that only names or reads data works without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from merganser._lazy import lazy

if TYPE_CHECKING:
    from merganser.running.checks import finite
    from merganser.running.heads import Head, check_one_label, class_logits, class_numbers, pool, pooled
    from merganser.running.images import image_of, not_beside, upright
    from merganser.running.live import live_tensors
    from merganser.running.model import Model, open_model
    from merganser.running.needs import require
    from merganser.running.rows import Rows, read_rows
    from merganser.running.sentence import Sentence
    from merganser.running.skeleton import open_skeleton
    from merganser.running.tokens import batches, encode, pad
    from merganser.running.trust import batch_size, check_causal

_HOMES = {
    "Head": "heads",
    "Model": "model",
    "Rows": "rows",
    "Sentence": "sentence",
    "batch_size": "trust",
    "batches": "tokens",
    "check_causal": "trust",
    "check_one_label": "heads",
    "class_logits": "heads",
    "class_numbers": "heads",
    "encode": "tokens",
    "finite": "checks",
    "image_of": "images",
    "live_tensors": "live",
    "not_beside": "images",
    "open_model": "model",
    "open_skeleton": "skeleton",
    "pad": "tokens",
    "pool": "heads",
    "pooled": "heads",
    "read_rows": "rows",
    "require": "needs",
    "upright": "images",
}
__all__ = [
    "Head",
    "Model",
    "Rows",
    "Sentence",
    "batch_size",
    "batches",
    "check_causal",
    "check_one_label",
    "class_logits",
    "class_numbers",
    "encode",
    "finite",
    "image_of",
    "live_tensors",
    "not_beside",
    "open_model",
    "open_skeleton",
    "pad",
    "pool",
    "pooled",
    "read_rows",
    "require",
    "upright",
]

__getattr__ = lazy(__name__, _HOMES)
