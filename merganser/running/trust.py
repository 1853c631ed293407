"""What a class name or a mask does not prove: that padding does not count, that a language model sees nothing ahead.

One row run alone and beside a longer one, and with another last token, shows it. A probe costs a few forward passes of
six tokens, once for a model.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from merganser.errors import MerganserWarning, RequestError

if TYPE_CHECKING:
    import torch

    from merganser.running.model import Model

TOKENS, ROWS = 6, 8
"""Tokens of the rows that are run, and how many rows."""
CLOSE = 1e-4
"""What outputs may differ by, as a share of the largest: f32 sums in another order stay far below."""


def batch_size(model: Model, wanted: int) -> int:
    """How many rows of different lengths may be run together: `wanted`, or 1 where padding counts.

    Warns where it is 1. Models that take no texts are given what is wanted.
    """
    if wanted == 1 or model.kind not in ("encoder", "classifier", "masked", "causal") or _is_empty(model):
        return wanted
    if model.padding is None:
        model.padding = _padding(model)
    if not model.padding:
        return wanted
    warnings.warn(
        f"{model.label}: {model.padding}, so rows are run one by one (batch 1 instead of {wanted})",
        MerganserWarning,
        stacklevel=2,
    )
    return 1


def check_causal(model: Model) -> None:
    """Raise `RequestError` where a language model's predictions depend on the tokens that come after."""
    if model.kind != "causal" or model.checked or _is_empty(model):
        return
    first = _row(model)
    other = first.clone()
    other[0, -1] = _row(model, 1)[0, 0]
    pair = [_outputs(model, ids) for ids in (first, other)]
    if _differ(pair[0][:, :-1], pair[1][:, :-1]):
        raise RequestError(
            f"{model.label}: sees the tokens ahead: with another last token it predicts other ones before it, so it is "
            "no causal language model and its scores of texts would mean nothing. A model that was trained as a "
            "decoder says is_decoder: true in its config.json; others are scored as encoders, with a linear head"
        )
    model.checked = True


def _is_empty(model: Model) -> bool:
    """Whether the module holds no numbers: it is filled layer by layer, and cannot be run as a whole."""
    return any(parameter.is_meta for parameter in model.module.parameters())


def _padding(model: Model) -> str:
    """Why padding counts; "" where it does not. States are looked at too: few rows show it in what a head gives."""
    import torch

    rows = torch.cat([_row(model, k) for k in range(ROWS)])
    padded = torch.cat([rows, torch.full((ROWS, 3), model.pad_id)], dim=1)
    whole = torch.cat([rows[:1], rows[1:2, :3]], dim=1)
    ids = torch.cat([padded, whole])
    mask = torch.ones_like(ids)
    mask[:ROWS, TOKENS:] = 0
    for run in (_outputs, _states):
        try:
            alone = torch.cat([run(model, row[None]) for row in rows])
        except AttributeError:  # a body that gives no states
            continue
        try:
            beside = run(model, ids, mask)[:ROWS]
        except ValueError as error:
            return f"a batch of rows cannot be run ({' '.join(str(error).split())[:80]})"
        if alone.ndim == 3:
            beside = beside[:, :TOKENS]
        if _differ(alone, beside):
            return "a row beside a longer one gives other numbers than alone"
    return ""


def _tokens(model: Model, count: int) -> list[int]:
    """Different ids, none of which marks padding or the end of a text."""
    rows = model.module.get_input_embeddings()
    size = int(getattr(rows, "num_embeddings", 0) or getattr(model.config, "vocab_size", 0))
    named = {model.pad_id} | {
        value
        for key in ("bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "unk_token_id")
        if isinstance(value := getattr(model.config, key, None), int)
    }
    free = [one for one in (*range(size // 2, size), *range(size // 2)) if one not in named]
    return (free * count)[:count]


def _row(model: Model, number: int = 0) -> torch.Tensor:
    """One of some rows, each with other tokens in another order."""
    import torch

    free = _tokens(model, TOKENS * (ROWS + 1))
    return torch.tensor([free[number * TOKENS : (number + 1) * TOKENS][:: 1 if number % 2 else -1]])


def _states(model: Model, ids: torch.Tensor, mask: Any = None) -> torch.Tensor:
    import torch

    mask = torch.ones_like(ids) if mask is None else mask
    with torch.no_grad():
        return model.states(ids, mask)


def _outputs(model: Model, ids: torch.Tensor, mask: Any = None) -> torch.Tensor:
    import torch

    mask = torch.ones_like(ids) if mask is None else mask
    with torch.no_grad():
        return model.states(ids, mask) if model.kind == "encoder" else model.logits(ids, mask)


def _differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    largest = float(one.abs().max()) if one.numel() else 0.0
    return float((one - other).abs().max()) > CLOSE * max(largest, 1e-6) if one.numel() else False
