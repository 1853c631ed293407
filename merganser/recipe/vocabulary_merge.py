"""Vocabularies that come to one: whose tokenizer, whose rows, and what the report says of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser.algebra import Weights, axes
from merganser.errors import RequestError, listing
from merganser.methods.vocabulary._shared import Vocabulary as Known
from merganser.methods.vocabulary._shared import rows_of, same_tie, small_files
from merganser.recipe.vocabulary_files import follow_config, holds_tokens, is_tokenizer_file, tokenizer_files
from merganser.recipe.vocabulary_rows import Rows, padded
from merganser.tokenizer import Tokenizer, load, mentioned
from merganser.tokenizer.chat import default_template, with_template

if TYPE_CHECKING:
    from merganser.recipe.vocabularies import TokenRow, Vocabulary

SHOWN_TOKENS = 20


class Merge:
    """Vocabularies that come to one. `order` are the merged models, the one that lends its files first.

    ends: the models whose rows may go into what stands before the layers, and into what stands after them.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        models: list[Weights],
        order: list[int],
        base: int | None,
        ends: tuple[Collection[int], Collection[int]] | None = None,
    ) -> None:
        self.ends = ends
        self.vocabulary = vocabulary
        self.models = models
        self.order = order
        self.base = base
        self.known: dict[int, Known] = {}
        self.assumed: list[int] = []
        for i in order:
            self.know(i)
        source = vocabulary.source
        self.owner = source if isinstance(source, int) else order[0]
        self.tokenizer, self.unreachable = self._tokenizer(self.know(self.owner).tokenizer)
        self.tokens = self.tokenizer.tokens

    def know(self, i: int) -> Known:
        """A model with its tokenizer, read once."""
        if i in self.known:
            return self.known[i]
        weights, first = self.models[i], self.order[0]
        if i in self.order and i != first and not any(map(holds_tokens, small_files(weights))):
            self.assumed.append(i)
            found = _assumed(weights, self.known[first])
        else:
            found = Known.of(weights, strip=True)
        self.known[i] = found
        return found

    def _tokenizer(self, made: Tokenizer) -> tuple[Tokenizer, list[str]]:
        """The output's tokenizer, and new tokens that no merge reaches."""
        own, unreachable = made, []
        if self.vocabulary.source == "union":
            for i in self.order[1:]:
                other = self.known[i].tokenizer
                if not other.ids.keys() <= made.ids.keys():
                    made, lost = made.joined(other)
                    unreachable += lost
        if fresh := [token for token in self.vocabulary.tokens if token not in made.ids]:
            made = made.extended(fresh, special=False)
        if made is not own:
            load(made)
        return made, unreachable

    # Rows -------------------------------------------------------------------------------------------------------------

    def _rows(self) -> Rows:
        """Where every row of every merged model comes from."""
        if self.ends is None:
            return self._rows_of(self.order)
        before, after = self.ends
        return replace(self._rows_of(before), after=self._rows_of(after))

    def _rows_of(self, lenders: Collection[int]) -> Rows:
        """As `_rows`, where a model lacks a token and only these may give the row."""
        size, count = len(self.tokens), len(self.order)
        have = np.empty((count, size), np.int64)
        for k, i in enumerate(self.order):
            ids = self.known[i].tokenizer.ids
            have[k] = [ids.get(token, -1) for token in self.tokens]
        held = (have >= 0) & np.isin(self.order, list(lenders))[:, None]
        number = held.sum(axis=0)
        donor = np.where(number == 1, held.argmax(axis=0), -1)
        if self.base is not None:
            donor = np.where((number > 1) & held[0], 0, donor)
        row = np.where(donor >= 0, have[donor, np.arange(size)], -1)
        rows = Rows(
            order=self.order,
            have=have,
            donor=np.where(donor >= 0, np.array(self.order)[donor], -1),
            row=row,
            mean=(number > 1) & (donor < 0),
            force=np.zeros(size, bool),
            lends=None if len(lenders) == count else np.isin(self.order, list(lenders)),
        )
        for token, source in self.vocabulary.tokens.items():
            self._listed(rows, self.tokenizer.ids[token], token, source)
        return rows

    def _listed(self, rows: Rows, at: int, token: str, source: TokenRow) -> None:
        if source.kind == "default":
            return
        rows.force[at], rows.mean[at], rows.donor[at] = source.force, False, -1
        if source.kind == "zero":
            return
        donor = self.know(source.model)
        rows.donor[at] = source.model
        if source.token_id is None:
            wanted = token if source.kind == "model" else source.token
            assert wanted is not None
            try:
                rows.row[at] = donor.tokenizer.find(wanted)
            except RequestError as error:
                raise RequestError(f"{source.place}: {error}") from None
            return
        if source.token_id >= donor.rows:
            raise RequestError(
                f"{source.place}: there is no row {source.token_id} in {donor.weights.label!r}, which has {donor.rows}"
            )
        rows.row[at] = source.token_id

    def _padding(self) -> tuple[list[list[int]], int]:
        """For every row after the tokens that stays: whose it is in each merged model (-1: zeros); and their number."""
        size, owner = len(self.tokens), self.known[self.owner]
        count = max(0, owner.rows - size) if self.vocabulary.padding == "keep" else 0
        ranked = [i for i in (self.owner, *self.order) if i in self.order]

        def has(i: int, row: int) -> bool:
            return len(self.known[i].tokenizer) <= row < self.known[i].rows

        whose = [
            [next((i for i in (own, *ranked) if has(i, row)), -1) for row in range(size, size + count)]
            for own in self.order
        ]
        return whose, count

    # The result -------------------------------------------------------------------------------------------------------

    def result(self) -> tuple[list[Weights], dict[str, bytes | None]]:
        """The models and the small files."""
        size, multiple = len(self.tokens), self.vocabulary.multiple or 1
        rows = self._rows()
        whose, kept = self._padding()
        total = -(-(size + kept) // multiple) * multiple
        for k in range(len(self.order)):
            rows.place(k, whose[k])
        merged = [self.models[i] for i in self.order]
        untied = False
        if any(not rows.same(k, self.known[i].rows) for k, i in enumerate(self.order)):
            merged = same_tie(merged)
            untied = any(new is not self.models[i] for new, i in zip(merged, self.order, strict=True))
        held = list(self.models)
        for i, weights in zip(self.order, merged, strict=True):
            held[i] = weights
        files = tokenizer_files(
            [self.known[i] for i in dict.fromkeys((*self.order, self.owner))],
            self.known[self.owner],
            self.tokenizer,
        )
        note = self._note(rows, whose, kept, total)
        if untied:
            note["untied"] = True
        now = {name: raw for name, raw in files.items() if raw is not None}
        if self.vocabulary.chat_template is not None:
            told, changed = templated(self.vocabulary, now, self.models, self.order, [self.tokenizer])
            files |= changed
            note |= told
        made: list[Weights] = []
        for k, i in enumerate(self.order):
            weights = rows.arranged(k, held)
            followed = follow_config(
                self.known[i],
                self.known[self.owner],
                self.tokenizer,
                rows.kept_padding(k, size),
                total,
                axes.reading_of(weights),
                strict=k == 0,
            )
            if k == 0:
                files |= followed.files
                note |= followed.told
            made.append(padded(followed.applied(weights), self.known[i], self.tokenizer, size + kept, total))
        result = list(self.models)
        for i, weights in zip(self.order, made, strict=True):
            result[i] = weights.with_note(note)
        return result, files

    def _note(self, rows: Rows, whose: list[list[int]], kept: int, total: int) -> dict[str, Any]:
        size, labels = len(self.tokens), [weights.label for weights in self.models]
        source = self.vocabulary.source
        everywhere = (rows.have >= 0).all(axis=0) & ~rows.force
        needed = ~everywhere
        zero = needed & (rows.donor < 0) & ~rows.mean
        donors = Counter(rows.donor[needed & (rows.donor >= 0)].tolist())
        padding = {
            labels[i]: [self.known[i].padding, sum(home == i for home in whose[k])]
            for k, i in enumerate(self.order)
            if self.known[i].padding
        }
        dropped = {
            labels[i]: gone
            for i in self.order
            if (gone := sum(token not in self.tokenizer.ids for token in self.known[i].tokenizer.ids))
        }
        note: dict[str, Any] = {
            "step": "tokenizer",
            "source": labels[source] if isinstance(source, int) else source,
            "tokenizer_of": labels[self.owner],
            "tokens": size,
            "rows": total,
            "shared": int(everywhere.sum()),
            "added": size - len(self.known[self.owner].tokenizer),
            "taken_from": {labels[i]: count for i, count in sorted(donors.items())},
            "averaged": int((needed & rows.mean).sum()),
            "zero": int(zero.sum()),
            "zero_tokens": [self.tokens[i] for i in np.flatnonzero(zero)[:SHOWN_TOKENS].tolist()],
            "forced": int(rows.force.sum()),
            "dropped_tokens": dropped,
            "padding_had_and_kept": padding,
            "padding_rows": kept,
            "padding_rows_of_the_mean": total - size - kept,
            "unreachable": self.unreachable,
        }
        if self.assumed:
            note["taken_to_have_the_tokenizer_of_the_base"] = [labels[i] for i in self.assumed]
        if beyond := {labels[i]: list(one.beyond) for i, one in self.known.items() if one.beyond}:
            note["tokens_without_row"] = beyond
        return note


def _assumed(weights: Weights, other: Known) -> Known:
    """A model without a tokenizer, taken to have another's, which belongs to as many rows."""
    reading = axes.reading_of(weights)
    rows = rows_of(reading)
    if rows != other.rows:
        raise RequestError(
            f"{weights.label!r} has no tokenizer, and {rows} rows where {other.weights.label!r} has {other.rows}, so "
            "which tokens they are of is not known. Put its tokenizer beside it"
        )
    return Known(weights, reading, rows, small_files(weights), other.tokenizer)


def templated(
    vocabulary: Vocabulary,
    files: Mapping[str, bytes],
    models: Sequence[Weights],
    order: Sequence[int],
    tokenizers: Sequence[Tokenizer],
) -> tuple[dict[str, Any], dict[str, bytes | None]]:
    """The chosen chat template put into a tokenizer's files; a report, and the files that change."""
    place = f"{vocabulary.place}: chat_template"
    if not any(map(is_tokenizer_file, files)):
        raise RequestError(f"{place}: {models[order[0]].label!r} has no tokenizer that could hold it")
    text = vocabulary.chat_template
    assert text is not None
    note: dict[str, Any] = {"chat_template": "of the recipe"}
    if text == "auto":
        found = {i: default_template(small_files(models[i]), models[i].label) for i in order}
        texts = {i: one for i, one in found.items() if one is not None and one.strip()}
        if not texts:
            return {"chat_template": "auto: no model has one"}, {}
        best, count = Counter(one.strip() for one in texts.values()).most_common(1)[0]
        holders = [i for i, one in texts.items() if one.strip() == best]
        note = {"chat_template": f"auto: that of {listing(models[i].label for i in holders)}"}
        if len(texts) > count:
            note["other_chat_templates"] = [models[i].label for i in texts if i not in holders]
        text = texts[holders[0]]
        if (held := default_template(files, models[order[0]].label)) is not None and held.strip() == best:
            return note, {}
    if tokenizers:
        missing = [t for t in mentioned({"": text}, *tokenizers) if t not in tokenizers[0].ids]
        if missing:
            note["chat_template_writes_what_is_no_token"] = missing
    return note, with_template(files, text, models[order[0]].label)
