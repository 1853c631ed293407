"""One reading of which token has which id, from all files of a tokenizer, as transformers reads them.

tokenizer.json need not hold all tokens: slow tokenizers and transformers 4 wrote added ones into added_tokens.json and
`added_tokens_decoder` of tokenizer_config.json, and special ones by name only. transformers adds them, one after the
other, to what tokenizer.json has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from merganser.errors import CheckpointError
from merganser.tokenizer.companions import ROLES, TOKENIZER, json_of, told_parts
from merganser.tokenizer.document import Tokenizer

CONFIG, ADDED = "tokenizer_config.json", "added_tokens.json"
SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model", "source.spm")
"""What files of SentencePiece are called."""
WITH_IDS = (TOKENIZER, "vocab.json", "vocab.txt")
"""Files that give tokens ids, the one that counts first."""
_FLAGS = ("single_word", "lstrip", "rstrip")
_LISTS = ("additional_special_tokens", "extra_special_tokens")


def read_tokenizer(files: Mapping[str, bytes], label: str, rows: int | None = None) -> Tokenizer:
    """The tokenizer that transformers makes of these files, one of which is tokenizer.json.

    Order: `added_tokens_decoder` where tokenizer_config.json has it, else added_tokens.json; then tokens that only have
    a part (bos, eos, unk, sep, pad, cls, mask and others that end in `_token`) or are among the additional special
    ones, as far as the model has rows for them (`rows`). Raises `CheckpointError` where a file gives a token another id
    than transformers does, or is malformed.
    """
    return _completed(Tokenizer.parse(files[TOKENIZER], f"{label}/{TOKENIZER}"), files, label, rows)


def _completed(found: Tokenizer, files: Mapping[str, bytes], label: str, rows: int | None) -> Tokenizer:
    """The tokenizer with the tokens that other files than tokenizer.json name."""
    settings = json_of(files, CONFIG, label)
    added = {token["content"]: dict(token) for token in found.added}
    known, late = dict(found.ids), []
    highest, size = max((t["id"] for t in found.added), default=-1), len(found.model)
    for name, content, id_, flags in _declared(files, settings, label):
        held = known.get(content)
        if held is None:
            held = highest + 1 if highest >= size else size
            late.append(content)
        if id_ is not None and id_ != held:
            raise CheckpointError(
                f"{label}, {name}: gives {content!r} the id {id_}, and transformers reads it as {held}. Correct the "
                "file; AutoTokenizer.from_pretrained(MODEL).save_pretrained(MODEL) of transformers writes the ids that "
                "it reads"
            )
        if content not in added:
            added[content] = {"id": held, "content": content, **flags}
            highest = max(highest, held)
            known[content] = held
    for content, flags in _named(files, label):
        if content in known:
            continue
        held = highest + 1 if highest >= size else size
        if rows is not None and held >= rows:
            break
        late.append(content)
        added[content] = {"id": held, "content": content, **flags}
        known[content] = highest = held
    if len(added) == len(found.added):
        return found
    made = replace(found, added=tuple(added.values()), late=tuple(late))
    made.check()
    return made


def token_ids(files: Mapping[str, bytes], label: str, rows: int) -> dict[str, int] | None:
    """The ids below `rows` by token, to compare two models by; None where these files do not say them.

    Of tokenizer.json only what has ids is read, so that a kind that is not worked with (or a file that is not whole)
    can be compared as well; models without that file have vocab.json, vocab.txt or a SentencePiece file. Numbers of
    the latter are compared with such numbers only.
    """
    try:
        if TOKENIZER in files:
            document = json_of(files, TOKENIZER, label)
            vocab = document["model"]["vocab"]
            if isinstance(vocab, list):
                vocab = {piece[0]: k for k, piece in enumerate(vocab)}
            added = tuple(document.get("added_tokens") or ())
        elif "vocab.json" in files:
            vocab, added = json_of(files, "vocab.json", label), ()
        elif "vocab.txt" in files:
            lines = files["vocab.txt"].decode().split("\n")
            vocab = {line.rstrip("\r"): k for k, line in enumerate(lines) if line or k + 1 < len(lines)}
            added = ()
        else:
            ids = _pieces(files)
            ids |= {
                token: id_
                for _, token, id_, _ in _declared(files, json_of(files, CONFIG, label), label)
                if id_ is not None
            }
            return {token: id_ for token, id_ in ids.items() if 0 <= id_ < rows} or None
        if not all(type(id_) is int for id_ in vocab.values()):
            return None
        plain = Tokenizer("", vocab, {}, (), added, {}, f"{label}/{TOKENIZER}")
        ids = _completed(plain, files, label, rows).ids
    except (CheckpointError, LookupError, TypeError, AttributeError, UnicodeDecodeError):
        return None  # what reads it for its own sake says what is wrong
    return {token: id_ for token, id_ in ids.items() if 0 <= id_ < rows}


def _pieces(files: Mapping[str, bytes]) -> dict[str, int]:
    """The pieces of a SentencePiece file by their number there (loaders may add an offset to it, the same to all)."""
    raw = next((files[name] for name in SENTENCEPIECE if name in files), b"")
    found: dict[str, int] = {}
    at = 0
    while at < len(raw):  # a message of protobuf: field 1, repeated, is a piece, whose field 1 is its text
        key, at = _varint(raw, at)
        if key & 7 != 2:
            at = _varint(raw, at)[1] if key & 7 == 0 else at + {1: 8, 5: 4}[key & 7]
            continue
        size, at = _varint(raw, at)
        if key == 10 and raw[at] == 10:
            length, start = _varint(raw, at + 1)
            found[raw[start : start + length].decode()] = len(found)
        at += size
    return found


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """A number of protobuf, and where it ends."""
    value, shift = 0, 0
    while True:
        byte = raw[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
        if shift > 63:
            raise LookupError("no number of protobuf")


def _declared(
    files: Mapping[str, bytes], settings: Mapping[str, Any], label: str
) -> Iterator[tuple[str, str, int | None, dict[str, Any]]]:
    """Tokens that a file gives an id: the file, the text, the id, and how it is looked for in a text."""
    if "added_tokens_decoder" in settings:
        raw = settings["added_tokens_decoder"]
        if not isinstance(raw, dict):
            raise CheckpointError(f"{label}, {CONFIG}: added_tokens_decoder is not a map from ids to tokens")
        pairs = []
        for key, token in raw.items():
            content = token.get("content") if isinstance(token, dict) else None
            if not isinstance(content, str) or not str(key).isdecimal():
                raise CheckpointError(f"{label}, {CONFIG}: added_tokens_decoder has no token for {key!r}")
            pairs.append((int(key), content, _flags(token, special=bool(token.get("special")))))
        for id_, content, flags in sorted(pairs, key=lambda pair: pair[0]):
            yield CONFIG, content, id_, flags
        return
    special = {content for content, _ in _named(files, label)}
    ids = json_of(files, ADDED, label)
    if wrong := [token for token, id_ in ids.items() if not isinstance(id_, int) or isinstance(id_, bool)]:
        raise CheckpointError(f"{label}, {ADDED}: {wrong[0]!r} has no id")
    for content, id_ in sorted(ids.items(), key=lambda pair: pair[1]):
        yield ADDED, content, id_, _flags({}, special=content in special)


def _named(files: Mapping[str, bytes], label: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Tokens that have a part, those with a standard one first, and the additional special ones."""
    told = told_parts(files, label)
    keys = [f"{role}_token" for role in ROLES]
    keys += [key for key in told if key.endswith("_token") and key not in keys]
    values = [told.get(key) for key in keys]
    for key in _LISTS:
        listed = told.get(key)
        values += (
            list(listed.values()) if isinstance(listed, dict) else listed if isinstance(listed, list) else []
        )
    for value in values:
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str) and content:
            yield content, _flags(value if isinstance(value, dict) else {}, special=True)


def _flags(token: Mapping[str, Any], *, special: bool) -> dict[str, Any]:
    flags = {key: bool(token.get(key, False)) for key in _FLAGS}
    return {**flags, "normalized": bool(token.get("normalized", not special)), "special": special}
