"""Perplexity and bits per byte of texts under a causal language model, in sliding windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from merganser.errors import RequestError
from merganser.evaluate import settings
from merganser.evaluate.likelihood import Marks, Span, bare_ids, log_probabilities
from merganser.evaluate.settings import setting
from merganser.evaluate.task import Columns, Prepared, Task, digest

if TYPE_CHECKING:
    from merganser.running import Model

_WINDOW = 2048


@dataclass(frozen=True, kw_only=True)
class Perplexity(Task):
    """How well a causal language model predicts texts.

    text: the column; window: tokens the model sees at most (default: its positions, or 2048 where they are
    more); stride: tokens that each window after the first predicts (default: the window), so that each of
    them has window - stride tokens before it at least.

    Every token of a text is predicted once. The first is predicted from the mark that the tokenizer puts
    before a text, else BOS, else EOS. Results: nats (minus the sum of log p(token | before)), tokens, bytes
    (of the text in UTF-8); loss = nats. With stride = window this is lm-eval's
    loglikelihood_rolling, which counts the tokenizer's own mark as text where it puts one.
    """

    kind: ClassVar[str] = "perplexity"
    runs_on: ClassVar[tuple[str, ...]] = ("causal",)

    text: str = setting(settings.text, "text")
    window: int | None = setting(settings.count, None)
    stride: int | None = setting(settings.count, None)

    def read(self) -> list[str]:
        """The texts."""
        if self.window is not None and self.stride is not None and self.stride > self.window:
            raise RequestError(
                f"task {self.name!r}: stride {self.stride} is more than window {self.window}: tokens would be left out"
            )
        return self.texts(self.text)

    def digests(self) -> list[str]:
        """Of the text."""
        return [digest(text) for text in self.texts(self.text)]

    def shown(self, row: int) -> str:
        """The text."""
        return str(self.rows[row][self.text])

    def prepare(self, model: Model) -> Prepared:
        """See `Task.prepare`."""
        self.fits(model)
        limit = model.positions
        window = self.window or min(limit or _WINDOW, _WINDOW)
        if limit is not None and window > limit:
            raise RequestError(
                f"task {self.name!r}: window is {window}, and {model.label} takes {limit} tokens"
            )
        stride = self.stride or window
        if stride > window:
            raise RequestError(
                f"task {self.name!r}: stride {stride} is more than the window of {window} tokens"
            )
        lead = Marks.of(model).lead()
        if lead is None:
            raise RequestError(
                f"task {self.name!r}: {model.label} has no BOS or EOS token from which a text's first token could be "
                "predicted; name one in its tokenizer or config.json"
            )
        texts = self.texts(self.text)
        spans, tokens = [], []
        for row, ids in enumerate(bare_ids(model, texts)):
            if not ids:
                raise self.wrong(row + 1, self.text, "has no tokens", texts[row])
            tokens.append(len(ids))
            spans += windows(row, lead[-1], ids, window, stride)
        return Prepared(len(texts), lambda done: self._run(model, texts, tokens, spans, done))

    def _run(
        self,
        model: Model,
        texts: list[str],
        tokens: list[int],
        spans: list[Span],
        done: Callable[[int], None],
    ) -> Columns:
        finished = [0, 0]

        def step(count: int) -> None:
            finished[0] += count
            whole = finished[0] * len(texts) // len(spans)
            done(whole - finished[1])
            finished[1] = whole

        sums, _ = log_probabilities(self, model, spans, step)
        nats = [0.0] * len(texts)
        for span, value in zip(spans, sums, strict=True):
            nats[span.row] -= value
        return {
            "loss": nats,
            "nats": nats,
            "tokens": tokens,
            "bytes": [len(text.encode("utf-8", "surrogatepass")) for text in texts],
        }


def windows(row: int, first: int, ids: list[int], window: int, stride: int) -> list[Span]:
    """Spans that together predict every token of `ids` once, from at most `window` tokens.

    The first predicts `window` tokens, the first of them from `first`; each other the next `stride` tokens,
    of which the first is seen from window - stride + 1 tokens.
    """
    whole = [first, *ids]
    spans = [Span(row, whole[: min(window, len(ids)) + 1], 1)]
    at = min(window, len(ids))
    while at < len(ids):
        end = min(at + stride, len(ids))
        begin = max(0, at - (window - stride))
        spans.append(Span(row, whole[begin : end + 1], at + 1 - begin))
        at = end
    return spans
