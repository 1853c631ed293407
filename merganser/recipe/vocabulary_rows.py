"""Rows of several models, one per token, in the order of one output tokenizer. Lazy: embeddings stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from merganser.algebra import Entry, Expression, Weights, apply, axes
from merganser.algebra.rearranged import Indices, joined, taken
from merganser.architectures import Axis, Reading
from merganser.errors import AlgebraError
from merganser.methods.vocabulary._shared import VOCAB, Vocabulary
from merganser.recipe.slices import stands_after
from merganser.tokenizer import Tokenizer

ZERO, MEAN = -1, -2


@dataclass
class Rows:
    """Where rows come from. `order` are the merged models as indices into all models.

    have [merged, tokens]: each model's own row of a token, -1 for none. donor, row [tokens]: the model (an index into
    all) and its row for models that need one, -1 for none. mean [tokens]: those that need one get the mean of those
    that have one. force [tokens]: every model needs one. `home` and `at` say for each merged model whose row (or ZERO,
    MEAN) becomes each row of the output, and which row of it.
    """

    order: Sequence[int]
    have: Indices
    donor: Indices
    row: Indices
    mean: np.ndarray
    force: np.ndarray
    lends: np.ndarray | None = None
    """[merged]: whether a model's rows count in a mean; None where all do."""
    home: dict[int, Indices] = field(default_factory=dict)
    at: dict[int, Indices] = field(default_factory=dict)
    after: Rows | None = None
    """Those of tensors that stand after the last layer, where they come from other models than the embedding's."""

    def place(self, k: int, padding: Sequence[int]) -> None:
        """Settle the rows of merged model `k`; `padding` are the homes of the rows after the tokens."""
        if self.after is not None:
            self.after.place(k, padding)
        size = len(self.donor)
        own = (self.have[k] >= 0) & ~self.force
        other = np.where(self.donor >= 0, self.donor, np.where(self.mean, MEAN, ZERO))
        home = np.where(own, self.order[k], other)
        at = np.where(own, self.have[k], np.where(self.donor >= 0, self.row, -1))
        self.home[k] = np.concatenate([home, np.asarray(padding, np.int64)])
        self.at[k] = np.concatenate([at, np.arange(size, size + len(padding))])

    def same(self, k: int, rows: int) -> bool:
        """Whether merged model `k`, of so many rows, stays as it is."""
        if self.after is not None and not self.after.same(k, rows):
            return False
        return bool((self.home[k] == self.order[k]).all()) and np.array_equal(self.at[k], np.arange(rows))

    def kept_padding(self, k: int, size: int) -> frozenset[int]:
        """The rows of merged model `k` after the `size` tokens that stay in their place."""
        stay = np.flatnonzero(self.home[k][size:] == self.order[k]) + size
        return frozenset(stay.tolist())

    def arranged(self, k: int, models: Sequence[Weights]) -> Weights:
        """Merged model `k` with its rows arranged. Raises `AlgebraError` where another model's do not fit."""
        weights = models[self.order[k]]
        reading = axes.reading_of(weights)
        (axis,) = reading.instances(VOCAB)
        if self.same(k, reading.sizes[axis]):
            return weights
        entries, used = {}, {id(c): c for c in weights.checkpoints}
        for name in weights:
            entry, dim = weights.entry(name), _dimension(reading, name, axis)
            entries[name] = entry
            if dim is not None:
                last = self.after is not None and stands_after(reading, reading.tensors[name])
                made = (self.after if last and self.after is not None else self)._made(k, models, name, dim)
                entries[name] = Entry(made, entry.degree)
        for i in self._donors(k):
            used |= {id(c): c for c in models[i].checkpoints}
        sizes = {**reading.sizes, axis: len(self.home[k])}
        return weights._with(
            entries, reading=reading.resized(sizes, reading.tensors), checkpoints=tuple(used.values())
        )

    def _donors(self, k: int) -> list[int]:
        if self.after is not None:
            return sorted({*replace(self, after=None)._donors(k), *self.after._donors(k)})
        found = set(self.home[k].tolist()) - {ZERO, MEAN, self.order[k]}
        for pattern, _ in self._means(k):
            found |= {self.order[m] for m in pattern}
        return sorted(found - {self.order[k]})

    def _means(self, k: int) -> list[tuple[tuple[int, ...], Indices]]:
        """The tokens of which model `k` gets a mean, by the merged models that it is of."""
        tokens = np.flatnonzero(self.home[k] == MEAN)
        if not len(tokens):
            return []
        held = self.have[:, tokens] >= 0
        if self.lends is not None:
            held &= self.lends[:, None]
        patterns, which = np.unique(held.T, axis=0, return_inverse=True)
        return [
            (tuple(np.flatnonzero(pattern).tolist()), tokens[which.reshape(-1) == number])
            for number, pattern in enumerate(patterns)
        ]

    def _made(self, k: int, models: Sequence[Weights], name: str, dim: int) -> Expression:
        own = models[self.order[k]][name]
        parts, index = [own], np.full(len(self.home[k]), -1)
        mine = self.home[k] == self.order[k]
        index[mine] = self.at[k][mine]
        start = own.shape[dim]
        for i in sorted(set(self.home[k].tolist()) - {ZERO, MEAN, self.order[k]}):
            part = _of(models[i], models[self.order[k]], name, dim)
            here = self.home[k] == i
            index[here] = start + self.at[k][here]
            parts.append(part)
            start += part.shape[dim]
        for pattern, tokens in self._means(k):
            total: Expression | None = None
            for m in pattern:
                part = _of(models[self.order[m]], models[self.order[k]], name, dim)
                rows = taken(part, _along(part, dim, self.have[m][tokens]))
                total = rows if total is None else apply("add", total, rows)
            assert total is not None
            parts.append(apply("div", total, float(len(pattern))))
            index[tokens] = start + np.arange(len(tokens))
            start += len(tokens)
        return taken(joined(parts, dim), _along(own, dim, index))


def _along(node: Expression, dim: int, index: Indices) -> list[Indices | None]:
    return [index if k == dim else None for k in range(len(node.shape))]


def _dimension(reading: Reading, name: str, axis: Axis) -> int | None:
    """The dimension of a tensor that has a row per token."""
    found = [k for k, parts in enumerate(reading.parts(name)) if any(axis in part for part in parts)]
    if not found:
        return None
    if len(found) > 1 or reading.parts(name)[found[0]] != ((axis,),):
        raise reading.refused(
            f"tensor {name!r} does not have a row per token as one whole dimension, so the rows of other models cannot "
            "be put into it"
        )
    return found[0]


def _of(donor: Weights, model: Weights, name: str, dim: int) -> Expression:
    """A donor's tensor with rows that fit."""
    entry = donor.find(name)
    if entry is None:
        raise AlgebraError(
            f"{model.label!r} needs rows of {donor.label!r} for tensor {name!r}, which it does not have"
        )
    own, theirs = model[name].shape, entry.expression.shape
    if [s for k, s in enumerate(own) if k != dim] != [s for k, s in enumerate(theirs) if k != dim]:
        raise AlgebraError(
            f"{model.label!r} needs rows of {donor.label!r} for tensor {name!r}, which has shape {list(own)} in the "
            f"one and {list(theirs)} in the other; models of other widths have no rows in common"
        )
    return entry.expression


def padded(weights: Weights, known: Vocabulary, tokenizer: Tokenizer, rows: int, total: int) -> Weights:
    """Rows added at the end of `rows` up to `total`: the mean of the tokens' rows."""
    if total == rows:
        return weights
    reading = axes.reading_of(weights)
    now = Vocabulary(weights, reading, rows, known.files, tokenizer)
    return now.put_together([now.mean()], np.concatenate([np.arange(rows), np.full(total - rows, rows)]))
