"""Vocabulary trimming: only the tokens that a corpus, a list or a script needs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from merganser.algebra import Weights, axes
from merganser.errors import RequestError, listing
from merganser.methods.steps import Claim, step
from merganser.methods.vocabulary._shared import VOCAB, Vocabulary, runs
from merganser.tokenizer import (
    Tokenizer,
    count,
    encode_texts,
    in_scripts,
    load,
    ranges_of,
    read_small,
    same_ids,
    texts_of,
)
from merganser.tokenizer.companions import ids_in, json_of, literals, special_roles, templates
from merganser.tokenizer.library import Counts


@step("trim_vocabulary", paper="P231", claim=Claim("tokens"))
def trim_vocabulary(
    weights: Weights,
    *,
    corpus: Path | Sequence[Path] | None = None,
    min_count: int = 1,
    most: int | None = None,
    tokens: Sequence[str] | Path | None = None,
    scripts: Sequence[str] | str | None = None,
    characters: bool = True,
    padding: Literal["drop", "keep"] = "drop",
) -> Weights:
    """A smaller vocabulary: tokenizer, embedding, output head and configs, cut to what is needed.

    A token stays if one of these selects it. corpus: it occurs at least `min_count` times (default 1, at least 1) in
    these text files (UTF-8; a line is a text). tokens: it is listed, as it is spelled in the vocabulary, or on a line
    of a file. scripts: all its letters are of these scripts (latin, cyrillic, han ...) or ranges (U+0400-U+04FF).
    most: at most so many tokens in all, the most frequent of the corpus first (without a corpus, or at equal counts,
    the lowest ids); alone it keeps the first ones.

    Always stay: added and special tokens, tokens that configs name by id, those in which the plain text of chat
    templates is written, bytes (byte-level or byte fallback), for BPE every token on the way of the merges that make a
    kept one (the closure), for Unigram the token of lowest score (it sets the price of unknown characters).
    characters: single-character tokens of every character in a kept token stay too (default true), so that new words
    of the same letters can be written.

    Kept tokens are numbered in their old order. Tokens that are gone can never be produced, neither by the tokenizer
    nor by the head. A text that the old tokenizer writes in kept tokens is written in the same ones, so hidden states
    are unchanged and logits are the old ones of the kept tokens; proved on up to 2,000 texts while the step runs. One
    exception: a word that WordPiece could not write ([UNK]) may become writable when a longer piece that led into a
    dead end is gone.

    padding: rows after the last token are dropped (default) or kept after the kept tokens.

    Raises `RequestError` where nothing selects, a token or script is unknown or `most` is too small; `AlgebraError`
    where tokenizer and embedding disagree. Memory: a batch of 2^19 characters of the corpus, and the vocabulary.
    """
    if corpus is None and tokens is None and scripts is None and most is None:
        raise RequestError("trim_vocabulary needs one of corpus, tokens, scripts and most")
    if min_count < 1:
        raise RequestError(f"min_count must be 1 or more, not {min_count}")
    vocabulary = Vocabulary.of(weights)
    tokenizer = vocabulary.tokenizer
    library = load(tokenizer)
    files = [Path(corpus)] if isinstance(corpus, str | Path) else list(map(Path, corpus or ()))
    size = len(tokenizer)
    counts = count(library, (text for file in files for text in texts_of(file)), size) if files else None
    wanted = np.zeros(size, bool)
    if counts is not None:
        wanted |= counts >= min_count
    if tokens is not None:
        wanted[[tokenizer.find(token) for token in _listed(tokens)]] = True
    if scripts is not None:
        wanted |= _written_in(tokenizer, [scripts] if isinstance(scripts, str) else scripts)
    if counts is None and tokens is None and scripts is None:
        wanted[:] = True
    always = _always(vocabulary, library)
    keep = _closed(tokenizer, always, wanted, counts, most, characters)
    kept = sorted(keep)
    new = tokenizer.restricted(kept)
    place = {old: k for k, old in enumerate(kept)}
    if padding == "keep":
        place |= {row: len(kept) + row - size for row in range(size, vocabulary.rows)}
    library_after = load(new)
    texts: Iterable[str] = (text for file in files for text in texts_of(file))
    if not files:
        texts = (str(library.decode([old], skip_special_tokens=False)) for old in kept)
    unknown = tokenizer.ids.get(tokenizer.unknown or "") if tokenizer.kind == "WordPiece" else None
    same, of = same_ids(library, library_after, place.get, texts, skip=unknown)
    selected = int((wanted & ~np.isin(np.arange(size), list(always))).sum())
    names = tokenizer.tokens
    closure = [old for old in kept if not wanted[old] and old not in always]
    note = {
        "step": "trim_vocabulary",
        "dropped": size - len(kept),
        "dropped_padding_rows": vocabulary.padding if padding == "drop" else 0,
        "kept_padding_rows": vocabulary.padding if padding == "keep" else 0,
        "selected": selected,
        "closure_tokens": [names[old] for old in closure],
        "always_kept": len(always),
        "special_tokens": {token: [tokenizer.ids[token], new.ids[token]] for token in tokenizer.special},
        "moved": sum(old != k for k, old in enumerate(kept)),
        "kept_old_ids": runs(kept),
        "texts_with_the_same_tokens": [same, of],
    }
    if counts is not None:
        total = int(counts.sum())
        note["corpus_tokens"] = total
        note["corpus_tokens_kept_share"] = float(counts[kept].sum() / total) if total else 1.0
    changed = axes.take(weights, VOCAB, list(place))
    remedy = "Keep the rows without a token (padding: keep), or correct the file"
    return vocabulary.finished(changed, new, place.get, note, remedy=remedy)


def _listed(tokens: Sequence[str] | Path) -> list[str]:
    if not isinstance(tokens, str | Path):
        return list(tokens)
    try:
        return [line for line in read_small(Path(tokens)).decode().split("\n") if line]
    except UnicodeDecodeError:
        raise RequestError(f"{tokens}: not UTF-8 text") from None


def _written_in(tokenizer: Tokenizer, scripts: Sequence[str]) -> np.ndarray:
    ranges = ranges_of(scripts)
    texts = map(tokenizer.spelling.letters, tokenizer.tokens)
    return np.array([text is not None and in_scripts(text, ranges) for text in texts], bool)


def _always(vocabulary: Vocabulary, library: Any) -> set[int]:
    """The ids that stay whatever is selected."""
    tokenizer = vocabulary.tokenizer
    named = [*tokenizer.special, *tokenizer.byte_tokens, *special_roles(vocabulary.files, tokenizer).values()]
    if tokenizer.kind == "Unigram" and tokenizer.scores:
        named.append(min(tokenizer.scores, key=lambda token: tokenizer.scores[token]))
    found = {tokenizer.ids[token] for token in named if token in tokenizer.ids}
    texts = templates(vocabulary.files, tokenizer.source)
    found |= {i for ids in encode_texts(library, literals(texts)) for i in ids}
    documents = [
        vocabulary.reading.config,
        json_of(vocabulary.files, "generation_config.json", tokenizer.source),
    ]
    for document in documents:
        found |= {i for ids in ids_in(document).values() for i in ids if 0 <= i < len(tokenizer)}
    return found


def _closed(
    tokenizer: Tokenizer,
    always: set[int],
    wanted: np.ndarray,
    counts: Counts | None,
    most: int | None,
    characters: bool,
) -> set[int]:
    """The selected tokens with all that they need, as many as may stay."""
    names, ids = tokenizer.tokens, tokenizer.ids

    def needs(one: int, characters: bool = characters) -> set[int]:
        return {ids[token] for token in tokenizer.needs(names[one], characters=characters) if token in ids}

    keep = set(always)
    for one in sorted(always):
        keep |= needs(one, characters=False)
    if most is not None and len(keep) > most:
        raise RequestError(
            f"most is {most}, and {len(keep)} tokens must stay: added, special and byte tokens, those that "
            f"configs name, and what they need ({listing(names[k] for k in sorted(keep))})"
        )
    chosen = np.flatnonzero(wanted)
    if most is None:
        for one in chosen.tolist():
            if one not in keep or tokenizer.kind == "BPE" or characters:
                keep |= needs(one)
        return keep
    order = chosen if counts is None else chosen[np.lexsort((chosen, -counts[chosen]))]
    for one in order.tolist():
        if one in keep:
            continue
        if len(keep) >= most:
            break
        more = needs(one) - keep
        if len(keep) + len(more) <= most:
            keep |= more
    return keep
