"""Token ids of texts, and batches of rows of about the same length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from merganser.errors import RequestError

if TYPE_CHECKING:
    import torch

    from merganser.running.model import Model


def encode(model: Model, texts: Sequence[str], max_length: int | None = None) -> list[list[int]]:
    """Token ids of each text with the model's special tokens, cut after `max_length` (default: what the model takes).

    Raises `RequestError` where a row is no text, or has no tokens.
    """
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise RequestError(f"row {number} is no text but {type(text).__name__}: {str(text)[:40]!r}")
    limit = max_length or model.positions
    settings = {"truncation": True, "max_length": limit} if limit else {}
    ids: list[list[int]] = model.tokenizer(list(texts), verbose=False, **settings)["input_ids"]
    for number, row in enumerate(ids, 1):
        if not row:
            raise RequestError(f"row {number} has no tokens: the text is {texts[number - 1][:40]!r}")
    return ids


def batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Row numbers in batches of `size`, rows of about the same length together (equal ones in their order)."""
    order = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
    return [order[start : start + size] for start in range(0, len(order), size)]


def pad(
    ids: Sequence[Sequence[int]], pad_id: int = 0, *, left: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [rows, longest] padded on the right (or left), and the mask, 1 where a token is; both int64."""
    import torch

    width = max(map(len, ids))
    batch = torch.full((len(ids), width), pad_id, dtype=torch.long)
    mask = torch.zeros(len(ids), width, dtype=torch.long)
    for row, one in enumerate(ids):
        place = slice(width - len(one), width) if left else slice(0, len(one))
        batch[row, place] = torch.tensor(one, dtype=torch.long)
        mask[row, place] = 1
    return batch, mask
