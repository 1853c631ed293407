"""The small files of a merge whose models had several vocabularies: the tokenizer's, and ids in configs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from merganser.algebra import Weights, axes
from merganser.architectures import Reading
from merganser.errors import RequestError
from merganser.methods.vocabulary._shared import Vocabulary, recounted, refuse_grown, take_over, told
from merganser.tokenizer import Followed, Tokenizer, follow, is_vocabulary_file
from merganser.tokenizer.chat import TOKENIZER_CONFIG
from merganser.tokenizer.companions import (
    NUMBERED,
    ROLES,
    TOKENIZER,
    Changes,
    Ids,
    as_json,
    json_of,
    renumber,
    special_roles,
)

_LISTS = ("additional_special_tokens", "extra_special_tokens")
_FOREIGN = (".model", ".spm", ".tiktoken", ".bpe")


def is_tokenizer_file(name: str) -> bool:
    """Whether a small file belongs to the tokenizer, and not to the model's config."""
    return is_vocabulary_file(name) and (name not in NUMBERED or name == TOKENIZER_CONFIG)


def holds_tokens(name: str) -> bool:
    """Whether a small file says what tokens there are."""
    return name in (TOKENIZER, "vocab.json", "vocab.txt") or PurePosixPath(name).suffix in _FOREIGN


def tokenizer_files(
    models: Sequence[Vocabulary], owner: Vocabulary, made: Tokenizer
) -> dict[str, bytes | None]:
    """The owner's tokenizer files as they become with the tokenizer `made`, and None for what only others have."""
    files: dict[str, bytes | None] = {
        name: None for model in models for name in model.files if is_tokenizer_file(name)
    }
    files |= {name: raw for name, raw in owner.files.items() if is_tokenizer_file(name)}
    if made is not owner.tokenizer or owner.beyond or made.late:
        changed = follow(owner.files, {}, owner.tokenizer, made, lambda i: i, owner.rows).files
        files |= {name: raw for name, raw in changed.items() if is_tokenizer_file(name)}
    if owner.beyond:
        held = {name: raw for name, raw in files.items() if raw is not None}
        for name in (TOKENIZER_CONFIG, "special_tokens_map.json"):
            if name in held:
                files[name] = as_json(
                    _without(json_of(held, name, owner.tokenizer.source), set(owner.beyond))
                )
    return files


def _without(document: Mapping[str, Any], gone: set[str]) -> dict[str, Any]:
    """A tokenizer's settings that name no token of `gone`."""

    def names(value: Any) -> bool:
        return (value.get("content") if isinstance(value, dict) else value) in gone

    kept: dict[str, Any] = {}
    for key, value in document.items():
        if key in _LISTS and isinstance(value, list):
            kept[key] = [one for one in value if not names(one)]
        elif key in _LISTS and isinstance(value, dict):
            kept[key] = {inner: one for inner, one in value.items() if not names(one)}
        elif not (isinstance(value, str | dict) and names(value)):
            kept[key] = value
    return kept


@dataclass(frozen=True)
class Config:
    """A model's config.json and its other files with ids, as they have become. `told` is for the report."""

    config: Mapping[str, Any] | None
    files: Mapping[str, bytes | None]
    told: Mapping[str, Any]
    before: Reading
    ids: Ids
    grown: bool

    def applied(self, weights: Weights) -> Weights:
        """The weights with this config, and what counts from an id moved with it."""
        now = self.before.config if self.config is None else self.config
        weights = recounted(weights, self.before, now, self.ids, grown=self.grown)
        if self.config is None:
            return weights
        entries = {name: weights.entry(name) for name in weights}
        return weights._with(entries, reading=replace(axes.reading_of(weights), config=self.config))


def follow_config(
    model: Vocabulary,
    owner: Vocabulary,
    made: Tokenizer,
    padding: Collection[int],
    rows: int,
    reading: Reading,
    *,
    strict: bool,
) -> Config:
    """A model's ids in the new vocabulary: those of the same tokens.

    Where the tokenizer is another model's (`owner`), its ids stand for the keys that both configs have. Where a part
    (bos, eos, unk, sep, pad, cls, mask) has no token any more, its id is null. `padding` are rows without a token that
    stay in their place. With `strict`, `RequestError` for another id that has no token any more.
    """
    own = special_roles(model.files, model.tokenizer)
    theirs = special_roles(owner.files, owner.tokenizer)
    names, size = model.tokenizer.tokens, len(made)
    parts = {
        model.tokenizer.ids[token]: made.ids[theirs[role]]
        for role, token in own.items()
        if token in model.tokenizer.ids and theirs.get(role) in made.ids
    }

    def ids(old: int) -> int | None:
        if old < len(names):
            return made.ids.get(names[old], parts.get(old))
        return old if old in padding else None

    documents = {"config.json": dict(reading.config)}
    for name in NUMBERED:
        if name in model.files and name != TOKENIZER_CONFIG:
            documents[name] = json_of(model.files, name, model.weights.label)
    results: dict[str, dict[str, Any]] = {}
    changes: dict[str, Changes] = {}
    for name, before in documents.items():
        changes[name] = Changes()
        results[name] = renumber(before, ids, model.rows, changes[name])
        if owner is not model:
            other = dict(owner.reading.config) | json_of(owner.files, name, owner.weights.label)
            take_over(before, results[name], other, changes[name], size)
        _settle(model, made, name, changes[name], strict=strict)
    config = results["config.json"]
    for role in ("bos", "eos", "pad"):
        key, token = f"{role}_token_id", theirs.get(role)
        if key in config or role not in own or token not in made.ids:
            continue
        if made.ids[token] != model.tokenizer.ids.get(own[role]):
            config[key] = made.ids[token]
            changes["config.json"].changed[key] = [None, config[key]]
    files: dict[str, bytes | None] = {
        name: as_json(document)
        for name, document in results.items()
        if name != "config.json" and document != documents[name]
    }
    followed = Followed(files, config, changes, [])
    if strict:
        refuse_grown(followed, model.rows, rows, model.weights.label)
    grown = len(made) > len(model.tokenizer)
    return Config(
        config if config != documents["config.json"] else None,
        files,
        told(followed),
        model.reading,
        ids,
        grown,
    )


def _settle(model: Vocabulary, made: Tokenizer, name: str, changes: Changes, *, strict: bool) -> None:
    for key, value in changes.lost.items():
        if not strict or key.rpartition(".")[2] in {f"{role}_token_id" for role in ROLES}:
            continue
        names = model.tokenizer.tokens
        if value < len(names):
            raise RequestError(
                f"{model.weights.label}, {name}: {key} is {value} ({names[value]!r}), which {made.source} does not "
                "have. Take source: union, or list the token under tokens"
            )
        raise RequestError(
            f"{model.weights.label}, {name}: {key} is {value}, a row without a token that would be gone. Keep such "
            "rows (padding: keep), or correct the file"
        )
    changes.lost.clear()
