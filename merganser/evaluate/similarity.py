"""Similarity of pairs of texts by the cosine of their embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

from merganser.evaluate import settings
from merganser.evaluate.inputs import number_of, token_ids
from merganser.evaluate.settings import setting
from merganser.evaluate.task import Columns, Prepared, Task, digest, in_order
from merganser.running import batch_size, batches, finite, pooled

if TYPE_CHECKING:
    import torch

    from merganser.running import Model


@dataclass(frozen=True, kw_only=True)
class Similarity(Task):
    """Cosine of the embeddings of two texts, and how it orders pairs that people scored.

    text_a, text_b: the columns; score: the column of scores (null: only cosines are taken); pooling: mean
    over tokens, or the first (cls); max_length: cut texts after so many tokens; without it a text that is too
    long is an error.

    Results: similarity is the cosine (-1 to 1), target the score.
    """

    kind: ClassVar[str] = "similarity"

    text_a: str = setting(settings.text, "text_a")
    text_b: str = setting(settings.text, "text_b")
    score: str | None = setting(settings.text_or_null, "score")
    pooling: str = setting(settings.one_of("mean", "cls"), "mean")
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
        ids = token_ids(self, model, texts, self.max_length, [first[text] for text in texts])
        pairs = [(places[a], places[b]) for a, b, _ in samples]
        rows = [first[text] for text in texts]
        scores = [score for *_, score in samples]
        return Prepared(len(samples), lambda done: self._run(model, ids, rows, pairs, scores, done))

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
            found = pooled(
                model, [ids[k] for k in batch], pooling=cast(Any, self.pooling), normalize=False
            ).double()
            found = found / found.norm(dim=1, keepdim=True)
            where = [rows[k] for k in batch]
            parts.append((batch, list(finite(found, what=self.what("embeddings"), model=model, rows=where))))
            finished[0] += len(batch)
            done(finished[0] * len(pairs) // len(ids) - finished[1])
            finished[1] = finished[0] * len(pairs) // len(ids)
        vectors: list[torch.Tensor] = in_order(len(ids), parts)
        cosines = [float((vectors[a] * vectors[b]).sum().clamp(-1, 1)) for a, b in pairs]
        return {"similarity": cosines, "target": scores}
