"""A tokenizer.json as data: its vocabulary can be cut, extended and joined; all else in it is kept as it is."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from merganser.checkpoint.header import parse_json
from merganser.errors import CheckpointError, RequestError, did_you_mean, listing
from merganser.tokenizer.merges import Merges
from merganser.tokenizer.spelling import Spelling

KINDS = ("BPE", "Unigram", "WordPiece", "WordLevel")
MOST_TOKENS = 2**26
Pair = tuple[str, str]


@dataclass(frozen=True)
class Tokenizer:
    """The vocabulary of a fast tokenizer.

    `model` are the tokens that the model itself makes, with their ids; `scores` those of Unigram; `merges` those of
    BPE, the strongest first. `added` are the tokens that are looked for in the text before the model sees it, as the
    file describes them. `document` is the rest of the file. `source` is what errors call it. `late` are added tokens
    that other files than tokenizer.json name.
    """

    kind: str
    model: Mapping[str, int]
    scores: Mapping[str, float]
    merges: tuple[Pair, ...]
    added: tuple[Mapping[str, Any], ...]
    document: Mapping[str, Any]
    source: str
    late: tuple[str, ...] = ()

    # Reading --------------------------------------------------------------------------------------------------------

    @classmethod
    def parse(cls, raw: bytes, source: str) -> Tokenizer:
        """Read a tokenizer.json, checked before anything is made of it.

        Raises `CheckpointError` where it is no such file, where ids are missing, doubled or not those that the library
        would give.
        """

        def bad(what: str) -> CheckpointError:
            return CheckpointError(f"{source}: not a tokenizer that is read: {what}")

        try:
            document = parse_json(raw)
            json.dumps(document, ensure_ascii=False).encode()
        except ValueError as error:
            raise bad(f"not acceptable JSON: {error}") from None
        model = document.get("model")
        if not isinstance(model, dict) or "vocab" not in model:
            raise bad("it has no model with a vocab")
        kind = model.get("type") or _kind(model)
        if kind not in KINDS:
            raise bad(f"its model is of the kind {str(kind)[:40]!r} (read: {', '.join(KINDS)})")
        vocab, scores = _vocab(kind, model["vocab"], bad)
        merges = _merges(model.get("merges", []), bad) if kind == "BPE" else ()
        for left, right in merges:
            if left not in vocab or right not in vocab:
                raise bad(f"the merge of {left!r} and {right!r} needs tokens that are not in its vocabulary")
        added = document.get("added_tokens") or []
        if not isinstance(added, list) or not all(_is_added(token) for token in added):
            raise bad("added_tokens is not a list of tokens with id and content")
        found = cls(kind, vocab, scores, merges, tuple(added), document, source)
        found._check(bad)
        return found

    def check(self) -> None:
        """Raise `CheckpointError` where two tokens have one id, or one has two."""
        self._check(lambda what: CheckpointError(f"{self.source}: not a tokenizer that is read: {what}"))

    def _check(self, bad: Any) -> None:
        by_id: dict[int, str] = {id_: token for token, id_ in self.model.items()}
        if len(by_id) < len(self.model):
            raise bad("two tokens of its vocabulary have one id")
        for token in self.added:
            content, id_ = token["content"], token["id"]
            held = self.model.get(content)
            if held is not None and held != id_:
                raise bad(f"{content!r} has the id {held} in the vocabulary and {id_} among the added tokens")
            if by_id.setdefault(id_, content) != content:
                raise bad(f"the id {id_} is of {by_id[id_]!r} and of {content!r}")

    # Looking --------------------------------------------------------------------------------------------------------

    @cached_property
    def ids(self) -> dict[str, int]:
        """Every token's id, those of the model and the added ones, in the order of ids."""
        both = dict(self.model) | {token["content"]: token["id"] for token in self.added}
        return dict(sorted(both.items(), key=lambda item: item[1]))

    @cached_property
    def tokens(self) -> list[str]:
        """The tokens by id. Raises `CheckpointError` where ids have holes."""
        if self.holes:
            raise CheckpointError(
                f"{self.source}: {len(self.ids)} tokens have ids up to {max(self.ids.values())}; no token has the id "
                f"{listing(map(str, self.holes))}"
            )
        return list(self.ids)

    @cached_property
    def holes(self) -> list[int]:
        """The first ids below the largest that no token has."""
        found: list[int] = []
        for place, id_ in enumerate(self.ids.values()):
            while place + len(found) < id_ and len(found) < 100:
                found.append(place + len(found))
        return found

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def spelling(self) -> Spelling:
        """How its tokens are written."""
        return Spelling.of(self.kind, self.document)

    @cached_property
    def unknown(self) -> str | None:
        """The token for what cannot be written."""
        model = self.document["model"]
        if self.kind == "Unigram":
            at = model.get("unk_id")
            return next((t for t, i in self.model.items() if i == at), None) if isinstance(at, int) else None
        token = model.get("unk_token")
        return token if isinstance(token, str) and token in self.ids else None

    @cached_property
    def added_contents(self) -> list[str]:
        """The added tokens' text."""
        return [token["content"] for token in self.added]

    @cached_property
    def _added(self) -> frozenset[str]:
        return frozenset(self.added_contents)

    @cached_property
    def special(self) -> list[str]:
        """Tokens that stay whatever is cut: added ones, the unknown one, those of the post-processor and of padding."""
        named = dict.fromkeys(self.added_contents)
        named |= dict.fromkeys(_named(self.document.get("post_processor")))
        padding = self.document.get("padding")
        for token in (self.unknown, padding.get("pad_token") if isinstance(padding, dict) else None):
            if isinstance(token, str):
                named[token] = None
        return [token for token in named if token in self.ids]

    @cached_property
    def byte_tokens(self) -> list[str]:
        """The tokens that stand for single bytes."""
        return [token for token in self.model if self.spelling.byte_of(token) is not None]

    @cached_property
    def merging(self) -> Merges:
        """The merges, ready to be followed."""
        return Merges(self.merges, self.spelling.prefix, self.spelling.suffix)

    def needs(self, token: str, *, characters: bool) -> set[str]:
        """The tokens without which a token could not be produced as before, itself included.

        For BPE every token on the way of the merges that make it. With `characters` also the single-character tokens
        of its characters, alone and inside a word, so that other words of the same letters can still be written.
        """
        found = {token}
        if self.kind == "BPE":
            pieces, known = self.merging.derive(token)
            if pieces == [token]:
                found |= known
        if characters and token not in self._added:
            prefix, suffix = self.spelling.prefix, self.spelling.suffix
            bare = token.removeprefix(prefix).removesuffix(suffix)
            for c in bare:
                found |= {c, prefix + c, c + suffix, prefix + c + suffix} & self.model.keys()
        return found

    def produces(self, token: str) -> bool:
        """Whether some text can become this token."""
        if self.kind != "BPE" or token in self._added or self.document["model"].get("ignore_merges"):
            return True
        return self.merging.derive(token)[0] == [token]

    def find(self, token: str) -> int:
        """The id of a token. Raises `RequestError` with the nearest one."""
        if token in self.ids:
            return self.ids[token]
        near = [t for t in self.ids if abs(len(t) - len(token)) <= 2 and t[:1] == token[:1]][:2000]
        raise RequestError(f"{self.source} has no token {token!r}{did_you_mean(token, near)}")

    # Changing -------------------------------------------------------------------------------------------------------

    def restricted(self, keep: Collection[int]) -> Tokenizer:
        """Only the tokens with these ids, numbered from 0 in their old order."""
        new = {old: k for k, old in enumerate(sorted(keep))}
        vocab = {token: new[i] for token, i in self.model.items() if i in new}
        made = self.merging.made
        merges = tuple(p for p in self.merges if p[0] in vocab and p[1] in vocab and made(*p) in vocab)
        added = tuple({**token, "id": new[token["id"]]} for token in self.added if token["id"] in new)
        return self._with(vocab, {t: s for t, s in self.scores.items() if t in vocab}, merges, added)

    def extended(self, contents: Sequence[str], *, special: bool) -> Tokenizer:
        """With added tokens after the last one."""
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": not special}
        new = tuple(
            {"id": len(self) + k, "content": content, **flags, "special": special}
            for k, content in enumerate(contents)
        )
        return self._with(self.model, self.scores, self.merges, self.added + new)

    def joined(self, other: Tokenizer) -> tuple[Tokenizer, list[str]]:
        """With the tokens of another that it lacks, after its own; and those of them that no merge reaches.

        Every token of this one keeps its id. Merges are this one's, then for each new token, in the order in which the
        other makes them, one of the two pieces that the merges so far leave of it: the other's own merge where both
        split alike. A token left in three pieces or more cannot be made by a merge.

        Raises `RequestError` for another kind of model or of spelling.
        """
        if self.kind != other.kind or self.spelling != other.spelling:
            raise RequestError(
                f"{self.source} is {self.kind} ({self.spelling.words}) and {other.source} is {other.kind} "
                f"({other.spelling.words}); such vocabularies cannot be joined. transplant_tokenizer brings one model "
                "to the other's tokenizer"
            )
        vocab, scores = dict(self.model), dict(self.scores)
        added = list(self.added)
        # Added tokens of this one get a place in the model's vocabulary, so that those that follow move none of them.
        fresh = [token for token in other.tokens if token not in self.ids]
        if any(token in other.model for token in fresh):
            for token, id_ in self.ids.items():
                vocab.setdefault(token, id_)
        described = {token["content"]: token for token in other.added}
        late = [token for token in fresh if token not in other.model]
        early = [token for token in fresh if token in other.model]
        for k, token in enumerate((*early, *late), len(self)):
            if token in other.model:
                vocab[token] = k
            if token in described:
                added.append({**described[token], "id": k})
        if self.kind == "Unigram":
            scores = {t: self.scores[t] if t in self.scores else other.scores.get(t, 0.0) for t in vocab}
        merging = Merges(self.merges, self.spelling.prefix, self.spelling.suffix)
        lost = (
            _add_merges(merging, other, {t for t in early if t not in described}, vocab)
            if self.kind == "BPE"
            else []
        )
        vocab = dict(sorted(vocab.items(), key=lambda item: item[1]))
        return self._with(vocab, scores, tuple(merging.rank), tuple(added)), lost

    def _with(
        self,
        vocab: Mapping[str, int],
        scores: Mapping[str, float],
        merges: tuple[Pair, ...],
        added: tuple[Mapping[str, Any], ...],
    ) -> Tokenizer:
        changed = replace(self, model=vocab, scores=scores, merges=merges, added=added)
        old_unknown = self.unknown
        document = dict(self.document)
        document["post_processor"] = _renumbered(document.get("post_processor"), changed.ids, self.source)
        padding = document.get("padding")
        if isinstance(padding, dict) and padding.get("pad_token") in changed.ids:
            document["padding"] = {**padding, "pad_id": changed.ids[padding["pad_token"]]}
        if self.kind == "Unigram" and old_unknown is not None:
            document["model"] = {**document["model"], "unk_id": changed.ids[old_unknown]}
        return replace(changed, document=document)

    # Writing --------------------------------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """The tokenizer.json."""
        model: dict[str, Any] = dict(self.document["model"])
        ordered = sorted(self.model.items(), key=lambda item: item[1])
        if self.kind == "Unigram":
            model["vocab"] = [[token, self.scores[token]] for token, _ in ordered]
        else:
            model["vocab"] = dict(ordered)
        if self.kind == "BPE":
            old = self.document["model"].get("merges", [])
            # Pairs as one text cannot hold a token with a space.
            textual = (
                bool(old)
                and isinstance(old[0], str)
                and not any(" " in a or " " in b for a, b in self.merges)
            )
            model["merges"] = [f"{a} {b}" if textual else [a, b] for a, b in self.merges]
        added = sorted(self.added, key=lambda token: token["id"])
        document = {**self.document, "added_tokens": [dict(token) for token in added], "model": model}
        return json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"


# Helpers --------------------------------------------------------------------------------------------------------------


def _kind(model: Mapping[str, Any]) -> str:
    """The kind of a model whose file, an old one, does not say it."""
    if "merges" in model:
        return "BPE"
    if isinstance(model["vocab"], list):
        return "Unigram"
    return "WordPiece" if "continuing_subword_prefix" in model else "WordLevel"


def _vocab(kind: str, raw: Any, bad: Any) -> tuple[dict[str, int], dict[str, float]]:
    if kind == "Unigram":
        if not isinstance(raw, list) or not all(_is_scored(item) for item in raw):
            raise bad("the vocab of its Unigram model is not a list of pieces and scores")
        vocab = {item[0]: k for k, item in enumerate(raw)}
        if len(vocab) < len(raw):
            twice = next(item[0] for k, item in enumerate(raw) if vocab[item[0]] != k)
            raise bad(f"the piece {twice!r} is twice in its vocabulary")
        return vocab, {item[0]: item[1] for item in raw}
    if not isinstance(raw, dict) or not all(_is_id(value) for value in raw.values()):
        raise bad("its vocab is not a map from tokens to ids")
    return dict(sorted(raw.items(), key=lambda item: item[1])), {}


def _merges(raw: Any, bad: Any) -> tuple[Pair, ...]:
    if not isinstance(raw, list):
        raise bad("its merges are not a list")
    found: dict[Pair, None] = {}
    for line in raw:
        pair = (
            tuple(line.split(" ")) if isinstance(line, str) else tuple(line) if isinstance(line, list) else ()
        )
        if len(pair) != 2 or not all(isinstance(part, str) and part for part in pair):
            raise bad(f"{str(line)[:60]!r} is not a merge of two tokens")
        found.pop(pair, None)  # the library lets the last of two equal merges count
        found[pair] = None
    return tuple(found)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_TOKENS


def _is_scored(item: Any) -> bool:
    return (
        isinstance(item, list)
        and len(item) == 2
        and isinstance(item[0], str)
        and isinstance(item[1], int | float)
        and not isinstance(item[1], bool)
    )


def _is_added(token: Any) -> bool:
    return isinstance(token, dict) and isinstance(token.get("content"), str) and _is_id(token.get("id"))


def _named(node: Any) -> list[str]:
    """The tokens that a post-processor puts in."""
    if not isinstance(node, dict):
        return []
    found = [token for inner in node.get("processors") or [] for token in _named(inner)]
    for entry in (
        (node.get("special_tokens") or {}).values() if isinstance(node.get("special_tokens"), dict) else ()
    ):
        found += entry.get("tokens", [])
    for key in ("sep", "cls"):
        if isinstance(node.get(key), list) and node[key]:
            found.append(node[key][0])
    return [token for token in found if isinstance(token, str)]


def _renumbered(node: Any, ids: Mapping[str, int], source: str) -> Any:
    """A post-processor with the ids of its tokens as they are now."""
    if not isinstance(node, dict):
        return node
    lost = [token for token in _named(node) if token not in ids]
    if lost:
        raise CheckpointError(f"{source}: its post-processor puts in {lost[0]!r}, which is no token of it")
    node = dict(node)
    if isinstance(node.get("processors"), list):
        node["processors"] = [_renumbered(inner, ids, source) for inner in node["processors"]]
    if isinstance(node.get("special_tokens"), dict):
        node["special_tokens"] = {
            key: {**entry, "ids": [ids[token] for token in entry.get("tokens", [])]}
            for key, entry in node["special_tokens"].items()
        }
    for key in ("sep", "cls"):
        if isinstance(node.get(key), list) and node[key]:
            node[key] = [node[key][0], ids[node[key][0]]]
    return node


def _add_merges(merging: Merges, other: Tokenizer, wanted: set[str], vocab: Mapping[str, int]) -> list[str]:
    made = [other.merging.made(*pair) for pair in other.merges]
    order = dict.fromkeys([token for token in made if token in wanted])
    order |= dict.fromkeys(sorted(wanted, key=lambda token: vocab[token]))
    lost = []
    for token in order:
        pieces = merging.derive(token)[0]
        if len(pieces) == 2 and all(piece in vocab for piece in pieces):
            merging.add(pieces[0], pieces[1])
        elif len(pieces) > 1:
            lost.append(token)
    return lost
