"""Log-probabilities of tokens under a causal language model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merganser.errors import RequestError
from merganser.evaluate.task import Task
from merganser.running import finite, pad

if TYPE_CHECKING:
    from merganser.running import Model

_LOGITS = 1 << 26
"""Logits that one batch may hold (256 MiB in f32), beyond a single row."""


@dataclass(frozen=True)
class Span:
    """Token ids whose part from `start` on (1 or more) is scored, given what stands before it."""

    row: int
    ids: list[int]
    start: int


@dataclass(frozen=True)
class Marks:
    """The special tokens that a tokenizer puts in front of a text, and what may stand in front where it puts none."""

    before: list[int]
    first: int | None

    @classmethod
    def of(cls, model: Model) -> Marks:
        """By looking at what the tokenizer makes of a text."""
        tokenizer = model.tokenizer
        whole = list(tokenizer("a")["input_ids"])
        bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
        at = next((k for k in range(len(whole)) if bare and whole[k : k + len(bare)] == bare), 0)
        found = (
            tokenizer.bos_token_id,
            getattr(model.config, "bos_token_id", None),
            tokenizer.eos_token_id,
            getattr(model.config, "eos_token_id", None),
        )
        return cls(whole[:at], next((token for token in found if isinstance(token, int)), None))

    def lead(self) -> list[int] | None:
        """What the first token of a text is predicted from: the tokenizer's own mark, else BOS, else EOS."""
        if self.before:
            return self.before
        return None if self.first is None else [self.first]


def bare_ids(model: Model, texts: Sequence[str]) -> list[list[int]]:
    """Token ids without special tokens."""
    found: list[list[int]] = model.tokenizer(list(texts), add_special_tokens=False, verbose=False)[
        "input_ids"
    ]
    return found


def joined_ids(
    task: Task, model: Model, pairs: Sequence[tuple[int, str, str]]
) -> list[tuple[list[int], int]]:
    """Ids of context + continuation for each (row, context, continuation), and where the continuation starts.

    As lm-eval does it: blanks at the end of the context go to the continuation, both are encoded as one text,
    and the continuation begins after as many tokens as the context has alone. Special tokens at the end are
    left out.
    """
    marks = Marks.of(model)
    moved = []
    for _, context, continuation in pairs:
        kept = context.rstrip()
        moved.append((kept, context[len(kept) :] + continuation))
    whole = bare_ids(model, [context + continuation for context, continuation in moved])
    contexts = list(dict.fromkeys(context for context, _ in moved))
    lengths = dict(zip(contexts, map(len, bare_ids(model, contexts)), strict=True))
    found = []
    for (row, _, continuation), (context, _), ids in zip(pairs, moved, whole, strict=True):
        lead = marks.before if lengths[context] else marks.lead()
        if lead is None or (not lead and not lengths[context]):
            raise RequestError(
                f"{task.path}: row {row + 1} has no context, and {model.label} has no BOS or EOS token "
                "that could stand in its place"
            )
        if len(ids) <= lengths[context]:
            raise RequestError(f"{task.path}: row {row + 1}: {continuation!r} adds no token to its context")
        found.append((lead + ids, len(lead) + lengths[context]))
    return found


def log_probabilities(
    task: Task, model: Model, spans: Sequence[Span], done: Callable[[int], None]
) -> tuple[list[float], list[bool]]:
    """Of each span: the sum of log p(token | before) in nats (f64), and whether every token is the likeliest.

    Spans of about the same length run together; logits are f32, their log-softmax f64.
    """
    import torch

    sums = [0.0] * len(spans)
    likeliest = [False] * len(spans)
    vocabulary = int(getattr(model.config, "vocab_size", 1 << 15))
    for batch in _batches([len(span.ids) for span in spans], task.batch, vocabulary):
        chosen = [spans[k] for k in batch]
        logits = model.logits(*pad([span.ids[:-1] for span in chosen], model.pad_id))
        values, best = [], []
        for row, span in zip(logits, chosen, strict=True):
            part = row[span.start - 1 : len(span.ids) - 1].double().log_softmax(-1)
            wanted = torch.tensor(span.ids[span.start :])
            values.append(part.gather(1, wanted[:, None]).sum())
            best.append(bool((part.argmax(-1) == wanted).all()))
        rows = [span.row for span in chosen]
        checked = finite(torch.stack(values), what=task.what("log-probabilities"), model=model, rows=rows)
        for k, value, top in zip(batch, checked.tolist(), best, strict=True):
            sums[k], likeliest[k] = value, top
        done(len(batch))
    return sums, likeliest


def _batches(lengths: Sequence[int], size: int, vocabulary: int) -> list[list[int]]:
    """Spans of about the same length together, as many as the logits have room for."""
    order = sorted(range(len(lengths)), key=lambda k: (-lengths[k], k))
    found: list[list[int]] = []
    for k in order:
        room = max(1, min(size, _LOGITS // max(1, lengths[found[-1][0]] * vocabulary))) if found else 0
        if found and len(found[-1]) < room:
            found[-1].append(k)
        else:
            found.append([k])
    return found
