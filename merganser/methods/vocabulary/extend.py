"""More tokens, with rows made from those there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from merganser.algebra import Weights, axes
from merganser.errors import RequestError, listing
from merganser.methods.steps import Claim, step
from merganser.methods.vocabulary._shared import VOCAB, Vocabulary
from merganser.tokenizer import encode_texts, load


@step("extend_vocabulary", claim=Claim("tokens"))
def extend_vocabulary(
    weights: Weights,
    *,
    tokens: Sequence[str] | str,
    rows: Literal["subtokens", "mean", "zeros", "copy"] = "subtokens",
    of: str | None = None,
    special: bool = False,
    padding: Literal["keep", "drop"] = "keep",
) -> Weights:
    """New tokens at the end of the vocabulary, with rows in the embedding, the output head and its bias.

    tokens: their text; they are found in a text before the model's own tokens are. special: they are control tokens
    (left out when decoding, found in the text as it is); else they are found in the normalised text.

    rows: what every tensor with a row per token gets. "subtokens" (default): the mean of the rows of the tokens that
    the old tokenizer writes the new one in (fast vocabulary transfer). "mean": the mean of all tokens' rows; the new
    token's logit is the mean logit. "zeros". "copy": the row of the token `of`. Sums are f32.

    padding: rows after the last token stand behind the new ones, as many as there is room for below the old number of
    rows ("keep", default), or are dropped.

    A text without a new token is written in the same tokens, and its logits for them are unchanged. Raises
    `RequestError` for a token that is there already, is empty or is given twice, and for one that the old tokenizer
    writes in nothing (subtokens); `AlgebraError` where tokenizer and embedding disagree.
    """
    vocabulary = Vocabulary.of(weights)
    tokenizer = vocabulary.tokenizer
    new = [tokens] if isinstance(tokens, str) else list(tokens)
    _check(new, vocabulary, rows, of)
    library = load(tokenizer)
    size, count = len(tokenizer), len(new)
    parts: list[Weights] = []
    told: dict[str, object] = {}
    if rows == "subtokens":
        pieces = encode_texts(library, new)
        if empty := [token for token, ids in zip(new, pieces, strict=True) if not ids]:
            raise RequestError(
                f"{tokenizer.source} writes {empty[0]!r} in no tokens, so it has no rows to start from; "
                "use rows: mean, zeros or copy"
            )
        index = np.full((count, max(map(len, pieces))), -1, np.int64)
        shares = np.zeros(index.shape)
        for k, ids in enumerate(pieces):
            index[k, : len(ids)] = ids
            shares[k, : len(ids)] = 1 / len(ids)
        parts = [axes.mix(weights, VOCAB, index, shares)]
        fresh = vocabulary.rows + np.arange(count)
        told["subtokens"] = {
            t: [tokenizer.tokens[i] for i in ids] for t, ids in zip(new, pieces, strict=True)
        }
    elif rows == "mean":
        parts = [vocabulary.mean()]
        fresh = np.full(count, vocabulary.rows)
    elif rows == "copy":
        assert of is not None
        fresh = np.full(count, tokenizer.find(of))
        told["copy_of"] = of
    else:
        fresh = np.full(count, -1)
    left = max(0, vocabulary.padding - count) if padding == "keep" else 0
    index_of_rows = np.concatenate([np.arange(size), fresh, vocabulary.rows - left + np.arange(left)])
    extended = tokenizer.extended(new, special=special)
    load(extended)
    note = {
        "step": "extend_vocabulary",
        "added": {token: extended.ids[token] for token in new},
        "rows_from": rows,
        **told,
        "special": special,
        "padding_rows": [vocabulary.padding, left],
    }
    changed = vocabulary.put_together(parts, index_of_rows)
    kept = vocabulary.rows if padding == "keep" else size
    remedy = "Keep the rows without a token (padding: keep), or correct the file"
    return vocabulary.finished(changed, extended, lambda i: i if i < kept else None, note, remedy=remedy)


def _check(new: Sequence[str], vocabulary: Vocabulary, rows: str, of: str | None) -> None:
    tokenizer = vocabulary.tokenizer
    if not new:
        raise RequestError("extend_vocabulary needs at least one token")
    if wrong := [token for token in new if not token or token != token.encode(errors="replace").decode()]:
        raise RequestError(f"{wrong[0]!r} is no text that can be a token")
    if len(set(new)) < len(new):
        raise RequestError(
            f"{listing(t for t in dict.fromkeys(new) if new.count(t) > 1)} is given more than once"
        )
    if held := [token for token in new if token in tokenizer.ids]:
        raise RequestError(f"{tokenizer.source} has {listing(held)} already (id {tokenizer.ids[held[0]]})")
    if (of is not None) != (rows == "copy"):
        raise RequestError(
            "of: names the token whose row is copied; it goes with rows: copy, and only with it"
        )
