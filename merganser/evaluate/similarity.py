"""Similarity of pairs of texts by the cosine of their embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

from merganser.evaluate import settings
from merganser.evaluate.inputs import number_of, token_ids
from merganser.evaluate.settings import setting
from merganser.evaluate.task import Columns, Prepared, Task, digest, in_order
from merganser.running import Sentence, batch_size, batches, finite, pooled

if TYPE_CHECKING:
    import torch

    from merganser.running import Model


@dataclass(frozen=True, kw_only=True)
class Similarity(Task):
    """Cosine of the embeddings of two texts, and how it orders pairs that people scored.

    text_a, text_b: the columns; score: the column of scores (null: only cosines are taken); pooling: mean
    over tokens, or the first (cls), of the last states. Without pooling a model of sentence-transformers makes its
    embeddings as its own modules say (pooling, dense layers, prompt, max_seq_length), any other by the mean.
    max_length: cut texts after so many tokens; without it a text that is too long is an error.

    Results: similarity is the cosine (-1 to 1), target the score.
    """

    kind: ClassVar[str] = "similarity"

    text_a: str = setting(settings.text, "text_a")
    text_b: str = setting(settings.text, "text_b")
    score: str | None = setting(settings.text_or_null, "score")
    pooling: str | None = setting(settings.one_of("mean", "cls"), None)
    max_length: int | None = setting(settings.count, None)

    def read(self) -> list[tuple[str, str, float | None]]:
        """Pairs and scores."""
        a, b = self.texts(self.text_a), self.texts(self.text_b)
        if self.score is None:
            return [(x, y, None) for x, y in zip(a, b, strict=True)]
        scores = [
            number_of(self, self.score, number, value)
            for number, value in enumerate(self.rows.column(self.score), 1)
        ]
        return list(zip(a, b, scores, strict=True))

    def digests(self) -> list[str]:
        """Of both texts and the score."""
        return [digest(*sample) for sample in self.read()]

    def shown(self, row: int) -> str:
        """Both texts."""
        return f"{self.rows[row][self.text_a]} | {self.rows[row][self.text_b]}"

    def prepare(self, model: Model) -> Prepared:
        """See `Task.prepare`."""
        self.fits(model)
        samples = self.read()
        texts = list(dict.fromkeys(text for a, b, _ in samples for text in (a, b)))
        places = {text: k for k, text in enumerate(texts)}
        first: dict[str, int] = {}
        for row, (a, b, _) in enumerate(samples):
            first.setdefault(a, row)
            first.setdefault(b, row)
        ids = self.token_ids(model, texts, [first[text] for text in texts])
        pairs = [(places[a], places[b]) for a, b, _ in samples]
        rows = [first[text] for text in texts]
        scores = [score for *_, score in samples]
        return Prepared(len(samples), lambda done: self._run(model, ids, rows, pairs, scores, done))

    def made_by(self, model: Model) -> Sentence:
        """How a model makes embeddings for this task."""
        if self.pooling is None and model.sentence is not None:
            return model.sentence
        return Sentence(self.pooling or "mean", None, False, "", ())

    def token_ids(
        self, model: Model, texts: Sequence[str], rows: Sequence[int] | None = None
    ) -> list[list[int]]:
        """Token ids of texts; `rows` are those of the data that they stand in, where these are not in turn."""
        how = self.made_by(model)
        limit = self.max_length
        if limit is None and self.pooling is None and model.sentence is not None:
            # sentence-transformers cuts what is longer without a word
            known = (how.max_length, model.positions)
            limit = min((one for one in known if one is not None), default=None)
        return token_ids(self, model, how.texts(list(texts)), limit, rows)

    def features(self, model: Model, ids: Sequence[Sequence[int]]) -> torch.Tensor:
        """Embeddings [rows, width] of one batch, of any length."""
        how = self.made_by(model)
        return how.layers(pooled(model, ids, pooling=cast(Any, how.pooling), normalize=False))

    def _run(
        self,
        model: Model,
        ids: list[list[int]],
        rows: Sequence[int],
        pairs: Sequence[tuple[int, int]],
        scores: list[float | None],
        done: Callable[[int], None],
    ) -> Columns:

        parts: list[tuple[Sequence[int], Sequence[Any]]] = []
        finished = [0, 0]
        for batch in batches([len(one) for one in ids], batch_size(model, self.batch)):
            found = self.features(model, [ids[k] for k in batch]).double()
            found = found / found.norm(dim=1, keepdim=True)
            where = [rows[k] for k in batch]
            parts.append((batch, list(finite(found, what=self.what("embeddings"), model=model, rows=where))))
            finished[0] += len(batch)
            done(finished[0] * len(pairs) // len(ids) - finished[1])
            finished[1] = finished[0] * len(pairs) // len(ids)
        vectors: list[torch.Tensor] = in_order(len(ids), parts)
        cosines = [float((vectors[a] * vectors[b]).sum().clamp(-1, 1)) for a, b in pairs]
        return {"similarity": cosines, "target": scores}
