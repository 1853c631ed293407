"""What the vocabulary steps share: a model with its tokenizer, and rows that are put together anew."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from merganser.algebra import Weights, axes
from merganser.algebra.rearranged import Array
from merganser.architectures import Reading, get_key
from merganser.errors import AlgebraError, RequestError
from merganser.tokenizer import Followed, Tokenizer, follow, is_vocabulary_file, read_small, read_tokenizer
from merganser.tokenizer.companions import (
    Changes,
    Ids,
    as_json,
    ids_in,
    json_of,
    refuse_lost,
    renumber,
)
from merganser.tokenizer.converted import with_json

VOCAB = "vocab"


@dataclass(frozen=True)
class Vocabulary:
    """A model and its tokenizer, found to agree. `files` are the small files that name tokens.

    `beyond` are tokens that the files have and the tokenizer here has not, for they have no row.
    """

    weights: Weights
    reading: Reading
    rows: int
    files: Mapping[str, bytes]
    tokenizer: Tokenizer
    beyond: tuple[str, ...] = ()

    @classmethod
    def of(cls, weights: Weights, *, strip: bool = False) -> Vocabulary:
        """Read the tokenizer of a model. With `strip`, tokens beyond the last row are left out of it.

        Raises `RequestError` where it has none or no family file, `AlgebraError` where it disagrees with the embedding.
        """
        reading = axes.reading_of(weights)
        rows = rows_of(reading)
        files = with_json(small_files(weights), weights.label)
        tokenizer = read_tokenizer(files, weights.label, rows)
        embedding = reading.name(_embedding(reading), {})
        if tokenizer.holes:
            raise AlgebraError(
                f"{tokenizer.source} has no token for {len(tokenizer.holes)} ids below its largest (the first is "
                f"{tokenizer.holes[0]}), and {embedding!r} has {rows} rows: which rows are in use is not clear. Give "
                "every id a token"
            )
        beyond: tuple[str, ...] = ()
        if strip and len(tokenizer) > rows:
            beyond, tokenizer = tuple(tokenizer.tokens[rows:]), tokenizer.restricted(range(rows))
        if len(tokenizer) > rows:
            raise AlgebraError(
                f"{tokenizer.source} has {len(tokenizer)} tokens and {embedding!r} has {rows} rows: "
                f"{tokenizer.tokens[rows]!r} and what follows have none. Take the tokenizer that belongs to the model"
            )
        return cls(weights, reading, rows, files, tokenizer, beyond)

    @property
    def padding(self) -> int:
        """Rows after the last token."""
        return self.rows - len(self.tokenizer)

    @cached_property
    def embedding(self) -> str:
        """The tensor that embeds tokens."""
        return self.reading.name(_embedding(self.reading), {})

    def mean(self) -> Weights:
        """One row: the mean of all tokens' rows, of every tensor with the axis.

        Summed in two steps, about sqrt(n) rows at a time, which keeps f32 exact enough.
        """
        count = len(self.tokenizer)
        width = max(1, int(np.sqrt(count)))
        groups = -(-count // width)
        rows = np.arange(groups * width).reshape(groups, width)
        first = axes.mix(self.weights, VOCAB, np.where(rows < count, rows, -1), np.ones(rows.shape))
        return axes.mix(first, VOCAB, np.arange(groups)[None], np.full((1, groups), 1 / count))

    def put_together(self, parts: Sequence[Weights], index: Iterable[int]) -> Weights:
        """Rows of this model and of `parts` (numbered on) by index, -1 for zeros."""
        whole = axes.concat([self.weights, *parts], VOCAB) if parts else self.weights
        picked = np.asarray(list(index) if not isinstance(index, np.ndarray) else index, np.int64)
        wanted = dict.fromkeys(axes.reading_of(whole).instances(VOCAB), picked)
        return axes.rearrange(whole, VOCAB, wanted)

    def finished(
        self,
        changed: Weights,
        tokenizer: Tokenizer,
        ids: Ids,
        note: Mapping[str, Any],
        *,
        remedy: str = "",
    ) -> Weights:
        """The changed rows with files, config and a report that follow. `ids` numbers old rows anew."""
        followed = follow(self.files, self.reading.config, self.tokenizer, tokenizer, ids, self.rows)
        refuse_lost(followed.changes, self.weights.label, remedy)
        rows = rows_of(axes.reading_of(changed))
        refuse_grown(followed, self.rows, rows, self.weights.label)
        grown = len(tokenizer) > len(self.tokenizer)
        changed = recounted(changed, self.reading, followed.config, ids, grown=grown)
        return with_files(changed, followed).with_note({
            **note,
            "tokens": [len(self.tokenizer), len(tokenizer)],
            "rows": [self.rows, rows],
            **told(followed),
        })  # fmt: skip


def rows_of(reading: Reading) -> int:
    """The rows of the vocabulary axis. Raises `RequestError` for a family or a model without one."""
    found = [reading.sizes[one] for one in reading.instances(VOCAB)]
    if not found:
        raise reading.refused("this model has no tensor with a row per token")
    return found[0]


def _embedding(reading: Reading) -> Any:
    for named in reading.tensors.values():
        if named.spec.kind == "embedding" and VOCAB in named.spec.dims[0].axes:
            return named.spec
    raise reading.refused("this model has no embedding of tokens")


def small_files(weights: Weights) -> dict[str, bytes]:
    """The small files that name tokens, as they are now."""
    found: dict[str, bytes] = {}
    origin = weights.origin
    if origin is not None and origin.directory is not None:
        for relative in origin.companions:
            name = str(relative)
            if is_vocabulary_file(name) and name not in weights.files:
                found[name] = read_small(origin.directory / relative)
    found |= {n: c for n, c in weights.files.items() if c is not None and is_vocabulary_file(n)}
    return dict(sorted(found.items()))


def with_files(weights: Weights, followed: Followed) -> Weights:
    """The weights with the small files and the config as they have become."""
    reading = replace(axes.reading_of(weights), config=followed.config)
    entries = {name: weights.entry(name) for name in weights}
    return weights._with(entries, reading=reading, files={**weights.files, **followed.files})


def refuse_with_tokenizer(weights: Weights, axis: str, name: str) -> None:
    """Raise `RequestError` where a step would move tokens under a tokenizer that does not follow."""
    companions = {str(path) for path in weights.origin.companions} if weights.origin else set()
    if axis == VOCAB and companions & {"tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json"}:
        raise RequestError(
            f"{name}: the tokenizer beside {weights.label!r} would no longer fit its vocabulary; trim_vocabulary, "
            "extend_vocabulary, pad_vocabulary, union_tokenizers and transplant_tokenizer change both"
        )


def recounted(
    changed: Weights, before: Reading, config: Mapping[str, Any], ids: Ids, *, grown: bool = False
) -> Weights:
    """The weights for ids that the loader also uses as numbers, which `config` and `ids` (old to new) now give.

    Where positions are counted from behind such an id, their table moves with it: rows of zeros in front, or rows in
    front that no position has are left out. Raises `AlgebraError` where the id cannot change; `grown` says that there
    are more tokens than before.
    """
    old = before.counted(before.config)
    for (formula, id_), (_, now) in zip(old, before.counted(config), strict=True):
        told = before.family.counted[formula]
        if isinstance(id_, str) or isinstance(now, str):
            same = id_ == now and not grown and all(ids(one) == one for one in range(rows_of(before)))
            if not same:
                raise before.refused(f"ids of tokens would change, and {told}")
            continue
        if id_ < 0 <= now:
            raise before.refused(f"config.json would name token {now}, and {told}")
        if id_ < 0 or id_ >= rows_of(before) or id_ == now == ids(id_):
            continue
        if told not in before.family.axes or now != ids(id_):
            reason = told if told not in before.family.axes else f"{told} are counted from behind it"
            raise before.refused(
                f"token {id_} would have the id {ids(id_)} (config.json: {now}), and {reason}"
            )
        changed = _moved_from(changed, told, now - id_)
    return changed


def _moved_from(weights: Weights, axis: str, by: int) -> Weights:
    """The table of an axis with its elements `by` places further on."""
    reading = axes.reading_of(weights)
    wanted = {}
    for one in reading.instances(axis):
        size = reading.sizes[one]
        wanted[one] = np.concatenate([np.full(max(by, 0), -1), np.arange(max(-by, 0), size)])
    moved = axes.rearrange(weights, axis, wanted, places_follow=True)
    entries = {name: moved.entry(name) for name in moved}
    for name, entry in entries.items():
        if entry.carried and moved[name] is not weights[name]:  # a buffer of places counts from 0 as before
            places = np.broadcast_to(np.arange(entry.expression.shape[-1]), entry.expression.shape)
            entries[name] = replace(entry, expression=Array(np.ascontiguousarray(places, np.int64)))
    return moved._with(entries)


def rows_moved(weights: Weights, changed: Weights, order: Sequence[int]) -> Weights:
    """`changed`, rows `order` of a vocabulary without a tokenizer, with the ids in its configs as they are now.

    Raises `CheckpointError` where a config names a row that is gone.
    """
    reading = axes.reading_of(weights)
    place: dict[int, int] = {}
    for new, old in enumerate(order):
        place.setdefault(int(old), new)
    name = "generation_config.json"
    files = small_files(weights)
    told, told_too = Changes(), Changes()
    config = renumber(reading.config, place.get, rows_of(reading), told)
    generation = renumber(json_of(files, name, weights.label), place.get, rows_of(reading), told_too)
    found = {"config.json": told, name: told_too}
    refuse_lost(found, weights.label, "Keep its row, or correct the file")
    changed = recounted(changed, reading, config, place.get)
    after = replace(axes.reading_of(changed), config=config)
    entries = {tensor: changed.entry(tensor) for tensor in changed}
    result = changed._with(entries, reading=after)
    return result.with_files({name: as_json(generation)}) if told_too.changed else result


def refuse_grown(followed: Followed, before: int, after: int, label: str) -> None:
    """Raise `AlgebraError` where an id that no row had would come to mean a new one."""
    for name, changes in followed.changes.items():
        for key, value in changes.outside.items():
            if before <= value < after:
                raise AlgebraError(
                    f"{label}, {name}: {key} is {value}, beyond the {before} rows of the model, and would now mean one "
                    f"of the new rows. Correct {name}"
                )


def take_over(
    before: Mapping[str, Any], made: dict[str, Any], theirs: Mapping[str, Any], changes: Changes, size: int
) -> None:
    """Where the donor's config has the same key, its ids are those of the new vocabulary."""
    by_word = {key.rpartition(".")[2]: ids for key, ids in ids_in(theirs).items()}
    for key in ids_in(before):
        ids = by_word.get(key.rpartition(".")[2])
        if ids is None or not all(0 <= i < size for i in ids):
            continue
        old = get_key(before, key)
        new = ids if isinstance(old, list) or len(ids) > 1 else ids[0]
        *outer, last = key.split(".")
        inner = made
        for word in outer:
            inner = inner[word]
        inner[last] = new
        changes.lost.pop(key, None)
        changes.outside.pop(key, None)
        changes.changed.pop(key, None)
        if new != old:
            changes.changed[key] = [old, new]


def told(followed: Followed) -> dict[str, Any]:
    """What a report says of the small files."""
    found: dict[str, Any] = {}
    if changed := {
        f"{name}: {key}": v for name, c in followed.changes.items() for key, v in c.changed.items()
    }:
        found["config_changed"] = changed
    if outside := {
        f"{name}: {key}": v for name, c in followed.changes.items() for key, v in c.outside.items()
    }:
        found["config_ids_without_row"] = outside
    if followed.removed:
        found["files_removed"] = followed.removed
    return found


def runs(numbers: Iterable[int]) -> list[list[int]]:
    """Numbers in order as runs: the first and the last of each."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return found


def same_tie(models: Sequence[Weights]) -> list[Weights]:
    """The models with a head of their own where one of them has it, so that rows can be joined."""
    if len({axes.reading_of(model).is_tied for model in models}) == 1:
        return list(models)
    return [axes.untie(model) for model in models]
