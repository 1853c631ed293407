"""The small files beside a model that name tokens by number or by text: which they are, and how they follow."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from merganser.checkpoint.header import parse_json
from merganser.checkpoint.layout import MAX_JSON_FILE_BYTES
from merganser.errors import CheckpointError, listing
from merganser.tokenizer.document import Tokenizer

TOKENIZER = "tokenizer.json"
NUMBERED = (
    "generation_config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
)
"""Files whose keys may hold ids, besides config.json."""
_OTHERS = {TOKENIZER, "added_tokens.json", "special_tokens_map.json", "vocab.json", "vocab.txt", "merges.txt"}
_FOREIGN = (".model", ".spm", ".tiktoken", ".bpe")
"""Vocabularies in other formats, which cannot follow."""
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_ID_KEY = re.compile(r"(?:^|_)token_(?:id|ids|index|indices)$")
_LIST_KEYS = {"suppress_tokens", "begin_suppress_tokens"}
_NESTED_KEYS = {"bad_words_ids", "force_words_ids"}
_MAP_KEYS = {"lang_to_id", "task_to_id"}

Ids = Callable[[int], int | None]
"""The new id of an old one, None for a token that is gone."""


def is_vocabulary_file(name: str) -> bool:
    """Whether a small file belongs to the tokenizer or to the numbers of tokens."""
    path = PurePosixPath(name)
    if path.name in _OTHERS or path.name in NUMBERED or path.suffix in _FOREIGN:
        return len(path.parts) == 1
    return is_template(name)


def is_template(name: str) -> bool:
    """Whether a file is a chat template."""
    path = PurePosixPath(name)
    return path.name in ("chat_template.jinja", "chat_template.json") or (
        path.suffix == ".jinja" and path.parts[0] == "additional_chat_templates"
    )


def read_small(path: Path) -> bytes:
    """A small file that came with a model. Raises `CheckpointError` where it is too large or cannot be read."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_JSON_FILE_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if len(raw) > MAX_JSON_FILE_BYTES:
        raise CheckpointError(f"{path}: larger than the cap of {MAX_JSON_FILE_BYTES:,} bytes")
    return raw


def json_of(files: Mapping[str, bytes], name: str, source: str) -> dict[str, Any]:
    """One of the small files as a JSON object, empty where it is not there."""
    if name not in files:
        return {}
    try:
        return parse_json(files[name])
    except ValueError as error:
        raise CheckpointError(f"{source}, {name}: not acceptable JSON: {error}") from None


def as_json(document: Any) -> bytes:
    """A JSON file."""
    return json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"


# Ids in configs -------------------------------------------------------------------------------------------------------


@dataclass
class Changes:
    """What became of the ids in one file."""

    changed: dict[str, list[Any]] = field(default_factory=dict)
    outside: dict[str, int] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)


def ids_in(document: Mapping[str, Any], path: str = "") -> dict[str, list[int]]:
    """The ids that keys such as `eos_token_id` name, by dotted key; lists of tokens to suppress are left out."""
    found: dict[str, list[int]] = {}
    for key, value in document.items():
        where = f"{path}{key}"
        if isinstance(value, dict):
            found |= ids_in(value, f"{where}.")
        elif _ID_KEY.search(key):
            numbers = [v for v in (value if isinstance(value, list) else [value]) if _is_id(v)]
            if numbers:
                found[where] = numbers
    return found


def renumber(
    document: Mapping[str, Any], ids: Ids, size: int, changes: Changes, path: str = ""
) -> dict[str, Any]:
    """A config with new ids. Ids of `size` or more are of no token: they stay, and are listed.

    A single id whose token is gone is listed in `changes.lost` and becomes null; from lists it is left out.
    """

    def one(value: int, key: str) -> int | None:
        if not 0 <= value < size:
            if value >= size:
                changes.outside[key] = value
            return value
        return ids(value)

    def many(values: Iterable[Any], key: str) -> list[Any]:
        new = [one(v, key) if _is_id(v) else v for v in values]
        return [v for v, old in zip(new, values, strict=True) if v is not None or old is None]

    result: dict[str, Any] = {}
    for key, value in document.items():
        where = f"{path}{key}"
        new: Any = value
        if key in _MAP_KEYS and isinstance(value, dict):
            new = {k: one(v, where) if _is_id(v) else v for k, v in value.items()}
        elif key == "sequence_bias" and isinstance(value, list):
            new = [[many(i[0], where), *i[1:]] if _is_listed(i) else i for i in value]
        elif isinstance(value, dict):
            new = renumber(value, ids, size, changes, f"{where}.")
        elif key == "forced_decoder_ids" and isinstance(value, list):
            new = [[p[0], *many(p[1:], where)] if isinstance(p, list) and len(p) == 2 else p for p in value]
        elif key in _NESTED_KEYS and isinstance(value, list):
            lists = [(many(v, where), v) if isinstance(v, list) else (v, v) for v in value]
            new = [n for n, old in lists if not isinstance(n, list) or len(n) == len(old)]
        elif (_ID_KEY.search(key) or key in _LIST_KEYS) and isinstance(value, list):
            new = many(value, where)
        elif _ID_KEY.search(key) and _is_id(value):
            new = one(value, where)
            if new is None:
                changes.lost[where] = value
        if new != value and not isinstance(value, dict):
            changes.changed[where] = [_short(value), _short(new)]
        result[key] = new
    return result


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_listed(item: Any) -> bool:
    return isinstance(item, list) and bool(item) and isinstance(item[0], list)


def _short(value: Any) -> Any:
    return f"{len(value)} entries" if isinstance(value, list) and len(value) > 8 else value


# All files ------------------------------------------------------------------------------------------------------------


@dataclass
class Followed:
    """The small files after a change of the vocabulary: `files` that changed, None for one that is gone."""

    files: dict[str, bytes | None]
    config: dict[str, Any]
    changes: dict[str, Changes]
    removed: list[str]


def follow(
    files: Mapping[str, bytes], config: Mapping[str, Any], old: Tokenizer, new: Tokenizer, ids: Ids, size: int
) -> Followed:
    """What the small files become when the tokenizer `old` becomes `new`.

    `ids` numbers every old row below `size` anew. Where the config leaves the id of bos, eos or pad to the model
    class and the token moved, the key is written.

    Vocabularies in other formats (SentencePiece's, tiktoken's) are taken away: they would disagree.
    """
    result: dict[str, bytes | None] = {TOKENIZER: new.to_bytes()}
    changes: dict[str, Changes] = {}
    removed = []

    def renumbered(name: str, document: Mapping[str, Any]) -> dict[str, Any]:
        found = Changes()
        made = renumber(document, ids, size, found)
        if found.changed or found.outside or found.lost:
            changes[name] = found
        return made

    for name, raw in files.items():
        document: Any
        if name in NUMBERED:
            before = json_of(files, name, old.source)
            document = renumbered(name, before)
            if name == "tokenizer_config.json" and "added_tokens_decoder" in document:
                document["added_tokens_decoder"] = _decoder(before["added_tokens_decoder"], new)
            if document != before:
                result[name] = as_json(document)
        elif name == "added_tokens.json":
            document = {
                token["content"]: token["id"] for token in new.added if token["content"] not in new.model
            }
            result[name] = as_json(document)
        elif name == "vocab.json":
            result[name] = json.dumps(dict(new.model), ensure_ascii=False).encode()
        elif name == "vocab.txt":
            result[name] = "".join(f"{token}\n" for token in new.model).encode()
        elif name == "merges.txt":
            result[name] = _merges_text(raw, new)
        elif PurePosixPath(name).suffix in _FOREIGN:
            result[name] = None
            removed.append(name)
    made = renumbered("config.json", config)
    for role, token in special_roles(files, old).items():
        key = f"{role}_token_id"
        if role in ("bos", "eos", "pad") and token in old.ids and key not in made:
            before_id, after = old.ids[token], new.ids.get(token)
            if after is not None and after != before_id:
                made[key] = after
                changes.setdefault("config.json", Changes()).changed[key] = [None, after]
    return Followed(result, made, changes, removed)


def special_roles(files: Mapping[str, bytes], tokenizer: Tokenizer) -> dict[str, str]:
    """The tokens of bos, eos and the like, as tokenizer_config.json or special_tokens_map.json name them."""
    found: dict[str, str] = {}
    document = told_parts(files, tokenizer.source)
    for role in ROLES:
        value = document.get(f"{role}_token")
        token = value.get("content") if isinstance(value, dict) else value
        if isinstance(token, str):
            found[role] = token
    return found


def told_parts(files: Mapping[str, bytes], source: str) -> dict[str, Any]:
    """tokenizer_config.json, with what special_tokens_map.json says.

    As transformers has it: the map stands above the settings, and is not read where these have `added_tokens_decoder`.
    """
    settings = json_of(files, "tokenizer_config.json", source)
    if "added_tokens_decoder" in settings:
        return settings
    return settings | json_of(files, "special_tokens_map.json", source)


def _decoder(before: Any, new: Tokenizer) -> dict[str, Any]:
    """`added_tokens_decoder` with the ids as they are now: what it said of a token stays."""
    told = (
        {t.get("content"): t for t in before.values() if isinstance(t, dict)}
        if isinstance(before, dict)
        else {}
    )
    entries = {}
    for token in sorted(new.added, key=lambda t: t["id"]):
        own = {key: value for key, value in token.items() if key != "id"}
        entries[str(token["id"])] = told.get(token["content"], own)
    for content, entry in told.items():
        if content in new.ids:
            entries.setdefault(str(new.ids[content]), entry)
    return entries


def _merges_text(raw: bytes, new: Tokenizer) -> bytes:
    first, _, _ = raw.partition(b"\n")
    lines = [first.decode(errors="replace")] if first.startswith(b"#version") else []
    return "".join(f"{line}\n" for line in (*lines, *(f"{a} {b}" for a, b in new.merges))).encode()


# Chat templates -------------------------------------------------------------------------------------------------------


def templates(files: Mapping[str, bytes], source: str) -> dict[str, str]:
    """The chat templates by where they stand."""
    found: dict[str, str] = {}

    def put(where: str, value: Any) -> None:
        if isinstance(value, str):
            found[where] = value
        elif isinstance(value, list):
            for entry in value:
                if isinstance(entry, dict) and isinstance(entry.get("template"), str):
                    found[f"{where} {entry.get('name')}"] = entry["template"]

    put("tokenizer_config.json", json_of(files, "tokenizer_config.json", source).get("chat_template"))
    for name, raw in files.items():
        if is_template(name):
            if name.endswith(".json"):
                put(name, json_of(files, name, source).get("chat_template"))
            else:
                found[name] = raw.decode(errors="replace")
    return found


_CONTROL = re.compile(
    r"<\|[^<>|\s{}]{1,40}\|>|<(?:start|end)_of_[a-z]{2,20}>|\[/?(?:INST|SYSTEM_PROMPT|TOOL_CALLS)\]"
)


def mentioned(texts: Mapping[str, str], *vocabularies: Tokenizer) -> list[str]:
    """The tokens that chat templates write: added tokens of the vocabularies, and what looks like a control token."""
    found: dict[str, None] = {}
    for text in texts.values():
        for vocabulary in vocabularies:
            found |= dict.fromkeys(token for token in vocabulary.added_contents if token in text)
        found |= dict.fromkeys(_CONTROL.findall(text))
    return list(found)


_TAG = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", re.DOTALL)
_QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"")


def literals(texts: Mapping[str, str]) -> list[str]:
    """The plain text in chat templates: what stands between tags, and quoted text inside them."""
    found: dict[str, None] = {}
    for text in texts.values():
        # transformers drops the line break after a tag, and blanks before one
        plain = _TAG.split(text)
        found |= dict.fromkeys(
            form for part in plain for form in (part, part.removeprefix("\n"), part.strip())
        )
        for tag in _TAG.findall(text):
            for single, double in _QUOTED.findall(tag) if not tag.startswith("{#") else ():
                quoted = single or double
                found[
                    quoted.replace("\\n", "\n").replace("\\t", "\t").replace("\\'", "'").replace('\\"', '"')
                ] = None
    return [text for text in found if text]


def refuse_lost(lost: Mapping[str, Changes], source: str, remedy: str) -> None:
    """Raise `CheckpointError` where a file names a token that is gone."""
    for name, changes in lost.items():
        if changes.lost:
            told = listing(f"{key} is {value}" for key, value in changes.lost.items())
            raise CheckpointError(f"{source}, {name}: {told}, which would have no token any more. {remedy}")
