"""The number of rows brought to a multiple, as kernels like it."""

from __future__ import annotations

from typing import Literal

import numpy as np

from merganser.algebra import Weights, axes
from merganser.errors import RequestError
from merganser.methods.steps import Claim, step
from merganser.methods.vocabulary._shared import VOCAB, Vocabulary, rows_of


@step("pad_vocabulary", claim=Claim("tokens"))
def pad_vocabulary(
    weights: Weights,
    *,
    multiple: int = 64,
    rows: Literal["zeros", "mean"] = "zeros",
    padding: Literal["keep", "drop"] = "keep",
) -> Weights:
    """Rows without a token at the end of the vocabulary, so that their number is a multiple.

    multiple: 1 or more (default 64). The tokenizer stays; `vocab_size` in config.json follows. padding: the rows that
    are there already stay ("keep", default), or the tokens alone are counted ("drop"; with multiple 1 no row without a
    token is left).

    rows: "zeros" (default) as padded public checkpoints have them (about zero, untrained). Their embedding is never
    read. Their logit is 0 (plus nothing: the bias is 0 too), so they take part in the softmax and may be sampled,
    or win where every real logit is negative; loaders treat ids of the kind as unknown. "mean": rows are the mean of
    all tokens' rows; their logit is the mean logit, so they can never win.

    Raises `RequestError` for a multiple below 1; for "mean" and "drop" a tokenizer.json is needed.
    """
    if multiple < 1:
        raise RequestError(f"multiple must be 1 or more, not {multiple}")
    reading = axes.reading_of(weights)
    before = rows_of(reading)
    known = Vocabulary.of(weights) if rows == "mean" or padding == "drop" else None
    base = len(known.tokenizer) if known is not None and padding == "drop" else before
    after = -(-base // multiple) * multiple
    note = {
        "step": "pad_vocabulary",
        "multiple": multiple,
        "rows": [before, after],
        "padded": max(0, after - base),
        "dropped_padding_rows": before - base,
        "rows_from": rows,
    }
    if known is None:
        return (axes.pad(weights, VOCAB, after) if after > before else weights).with_note(note)
    fill = before if rows == "mean" else -1
    index = np.concatenate([np.arange(base), np.full(after - base, fill)])
    changed = known.put_together([known.mean()] if rows == "mean" else [], index)
    kept = before if padding == "keep" else base
    remedy = "Keep the rows without a token (padding: keep), or correct the file"
    return known.finished(changed, known.tokenizer, lambda i: i if i < kept else None, note, remedy=remedy)
