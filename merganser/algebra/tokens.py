"""Rows of tokens: the tokenizers of two models must give the rows that both have to the same tokens.

Where weights are joined element by element, an embedding's rows meet by place. Which token a row is of stands in the
tokenizer's files, which are read only where both weights hold such rows, and once for each model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from merganser.architectures.meaning import TOKENIZER_KEY, Difference
from merganser.architectures.tokens import may_have_rows, token_rows
from merganser.checkpoint import Checkpoint
from merganser.errors import MerganserError, listing
from merganser.tokenizer.companions import read_small
from merganser.tokenizer.together import CONFIG, SENTENCEPIECE, WITH_IDS, token_ids

if TYPE_CHECKING:
    from merganser.algebra.weights import Weights

_SHOWN = 3
_BESIDE = ("added_tokens.json", "special_tokens_map.json")


@dataclass(frozen=True, slots=True)
class OtherTokens(Difference):
    """Tokens with other ids, `first` and `second` by token (None: the id is another token's). `count`: of how many."""

    count: int = 0

    def told(self, first: str, second: str) -> str:
        """In words, for two models of these names."""
        each = [
            f"{token!r} is {_id(id_)} in {first} and {_id(self.second[token])} in {second}"
            for token, id_ in self.first.items()
        ]
        more = f", and so on for {self.count} tokens" if self.count > len(each) else ""
        return f"the tokenizers give rows to other tokens: {listing(each)}{more}"


def _id(id_: int | None) -> str:
    return "no token" if id_ is None else f"token {id_}"


def other_tokens(first: Weights, second: Weights) -> OtherTokens | None:
    """Which tokens two tokenizers number otherwise, of the rows that both weights have; None where they agree.

    A tokenizer that only goes on where the other ends agrees with it. None too where a model has no tokenizer, or one
    whose files do not say ids, or no tensor with a row for each token.
    """
    from merganser.algebra.agreement import config_of

    if first.origin is second.origin and first.files == second.files:
        return None
    own, other = config_of(first), config_of(second)
    if own is None or other is None:
        return None
    shapes = {}
    for name, entry in first._entries.items():
        if not entry.expression.is_scalar and second.find(name) is not None:
            shapes[name] = entry.expression.shape
    if not may_have_rows(own, shapes):
        return None
    a, b = _files_of(first), _files_of(second)
    if a is None or b is None or a == b:
        return None
    found = token_rows(own, shapes)
    theirs = {name: second.find(name) for name in found}
    their_shapes = {
        name: entry.expression.shape
        for name, entry in theirs.items()
        if entry is not None and not entry.expression.is_scalar
    }
    there = token_rows(other, their_shapes)
    rows = [min(count, there[name]) for name, count in found.items() if name in there]
    return _compared(a, b, max(rows)) if rows else None


@dataclass(frozen=True)
class _Files:
    """The files that say which token has which id, equal where they say the same. What lies on disk is not held."""

    digest: str
    label: str = field(compare=False)
    places: Mapping[str, Path | bytes] = field(compare=False)

    @property
    def numbered(self) -> bool:
        """Whether they hold the ids of the loader, and not numbers of pieces, which some loaders shift."""
        return any(name in WITH_IDS for name in self.places)

    def read(self) -> dict[str, bytes]:
        return {name: _content(place) for name, place in self.places.items()}


_of_origin: WeakKeyDictionary[Checkpoint, _Files | None] = WeakKeyDictionary()


def _files_of(weights: Weights) -> _Files | None:
    """The tokenizer of weights, as it is now."""
    replaced = {name: content for name, content in weights.files.items() if _counts(name)}
    origin = weights.origin
    if origin is None or replaced:
        return _digested(origin, weights.label, replaced)
    if origin not in _of_origin:
        _of_origin[origin] = _digested(origin, weights.label, {})
    return _of_origin[origin]


def _digested(origin: Checkpoint | None, label: str, replaced: Mapping[str, bytes | None]) -> _Files | None:
    places = _places(origin, replaced)
    if not any(name in WITH_IDS or name in SENTENCEPIECE for name in places):
        return None
    work = hashlib.sha256()
    try:
        for name, place in sorted(places.items()):
            content = _content(place)
            told = _tokens_in(content) if name == CONFIG else content
            work.update(f"{name} {len(told)}\n".encode())
            work.update(told)
    except MerganserError:
        return None  # what reads it for its own sake says what is wrong
    return _Files(work.hexdigest(), label, places)


def _tokens_in(content: bytes) -> bytes:
    """What settings say of tokens: the rest (a chat template, a length) differs between models of one vocabulary."""
    try:
        told = json.loads(content)
    except ValueError:
        return content
    if isinstance(told, dict):
        told = {key: told[key] for key in told if key.endswith(("token", "tokens", "tokens_decoder"))}
    return json.dumps(told, sort_keys=True).encode()


def _places(origin: Checkpoint | None, replaced: Mapping[str, bytes | None]) -> dict[str, Path | bytes]:
    """The files with ids, by name: where they lie, or what they became."""
    found: dict[str, Path | bytes] = {n: content for n, content in replaced.items() if content is not None}
    if origin is not None and origin.directory is not None:
        here = {name for name in origin.belongings.small if _counts(name) and name not in replaced}
        found |= {str(path): origin.directory / path for path in origin.companions if str(path) in here}
    # The files of a slow tokenizer beside tokenizer.json say the same once more.
    first = next((name for name in WITH_IDS if name in found), None)
    others = {name for name in (*WITH_IDS, *SENTENCEPIECE) if first is not None and name != first}
    return {name: place for name, place in found.items() if name not in others}


def _content(place: Path | bytes) -> bytes:
    return place if isinstance(place, bytes) else read_small(place)


def _counts(name: str) -> bool:
    return name in (CONFIG, *_BESIDE, *WITH_IDS, *SENTENCEPIECE)


@lru_cache(maxsize=64)
def _compared(a: _Files, b: _Files, rows: int) -> OtherTokens | None:
    if a.numbered != b.numbered:
        return None
    mine, theirs = _ids(a, rows), _ids(b, rows)
    if mine is None or theirs is None or mine == theirs:
        return None
    named, numbered = ({id_: token for token, id_ in ids.items()} for ids in (mine, theirs))
    differ = dict.fromkeys(token for token, id_ in mine.items() if theirs.get(token, id_) != id_)
    for id_, token in named.items():
        if numbered.get(id_, token) != token:
            differ |= dict.fromkeys((token, numbered[id_]))
    if not differ:
        return None
    shown = list(differ)[:_SHOWN]
    return OtherTokens(
        TOKENIZER_KEY,
        {token: mine.get(token) for token in shown},
        {token: theirs.get(token) for token in shown},
        broken=False,
        count=len(differ),
    )


@lru_cache(maxsize=4)
def _ids(files: _Files, rows: int) -> dict[str, int] | None:
    return token_ids(files.read(), files.label, rows)


__all__ = ["OtherTokens", "other_tokens"]
