"""Multiple choice by the log-probability of each choice as the continuation of a context."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from merganser.errors import RequestError, did_you_mean, listing
from merganser.evaluate import settings
from merganser.evaluate.likelihood import Span, joined_ids, log_probabilities
from merganser.evaluate.settings import setting
from merganser.evaluate.task import Columns, Prepared, Task, digest, too_long

if TYPE_CHECKING:
    from merganser.running import Model


@dataclass(frozen=True, kw_only=True)
class MultipleChoice(Task):
    """Which of some continuations a causal language model finds likeliest.

    context: the column of texts (may be empty ones); choices: the column of lists of texts, or one list in
    the suite for all samples; answer: the column of the right choice, its number from 0 or its text; between:
    what is put between context and choice where neither brings a blank (default one blank); max_length: cut
    contexts from the left to so many tokens in all; without it a sample that is too long is an error.

    Results: log_probabilities are sums of log p(token | before) over each choice, in nats; the prediction is
    the likeliest choice, prediction_norm the one that is likeliest per character, as lm-eval's acc and
    acc_norm have it; loss is minus the right choice's log-probability.
    """

    kind: ClassVar[str] = "multiple_choice"
    runs_on: ClassVar[tuple[str, ...]] = ("causal",)

    context: str = setting(settings.text, "context")
    choices: str | tuple[str, ...] = setting(settings.column_or_texts, "choices")
    answer: str = setting(settings.text, "answer")
    between: str = setting(settings.any_text, " ")
    max_length: int | None = setting(settings.count, None)

    def read(self) -> list[tuple[str, list[str], int]]:
        """Context, choices and the right one's number, of each sample."""
        return self.samples

    @cached_property
    def samples(self) -> list[tuple[str, list[str], int]]:
        """See `read`."""
        contexts = self.rows.column(self.context)
        answers = self.rows.column(self.answer)
        if isinstance(self.choices, str):
            options = [
                self._list(number, value) for number, value in enumerate(self.rows.column(self.choices), 1)
            ]
        else:
            options = [list(self.choices)] * len(contexts)
        found = []
        for number, (context, choices, answer) in enumerate(zip(contexts, options, answers, strict=True), 1):
            if not isinstance(context, str):
                raise self.wrong(number, self.context, "is no text", context)
            found.append((context, choices, self._right(number, answer, choices)))
        return found

    def _list(self, number: int, value: Any) -> list[str]:
        if not isinstance(value, list) or len(value) < 2 or not all(isinstance(v, str) and v for v in value):
            raise self.wrong(number, str(self.choices), "is no list of two texts or more", value)
        if len(set(value)) < len(value):
            raise self.wrong(number, str(self.choices), "has a choice twice", value)
        return value

    def _right(self, number: int, value: Any, choices: list[str]) -> int:
        if value in choices:
            place = choices.index(value)
            untyped = self.path.suffix.lower() in (".csv", ".tsv", ".txt")
            if untyped and value.isdecimal() and int(value) < len(choices) and int(value) != place:
                raise RequestError(
                    f"{self.path}: row {number}: the answer {value} is the text of choice {place} and the number of "
                    f"choice {int(value)} ({choices[int(value)]!r}), and such a file does not say which is meant. "
                    'Write the data as JSONL, where "answer": "1" is a text and "answer": 1 a number'
                )
            return place
        if isinstance(value, str) and value.isdecimal():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(choices):
            return value
        raise RequestError(
            f"{self.path}: row {number}: the answer {value!r} is none of the choices and no number from 0 to "
            f"{len(choices) - 1}{did_you_mean(str(value), choices)}; choices are {listing(choices, 10)}"
        )

    def digests(self) -> list[str]:
        """Of context, what is between, choices and the right one's number."""
        return [digest(context, self.between, choices, right) for context, choices, right in self.samples]

    def shown(self, row: int) -> str:
        """The context and the choices."""
        context, choices, _ = self.samples[row]
        return f"{context} [{' | '.join(choices)}]"

    def prepare(self, model: Model) -> Prepared:
        """See `Task.prepare`."""
        self.fits(model)
        pairs = [
            (row, context, self._put(context, choice))
            for row, (context, choices, _) in enumerate(self.samples)
            for choice in choices
        ]
        limit = model.positions
        spans = []
        for (row, *_), (ids, start) in zip(pairs, joined_ids(self, model, pairs), strict=True):
            if self.max_length is not None and len(ids) - 1 > self.max_length:
                cut = len(ids) - 1 - self.max_length
                if cut >= start:
                    raise too_long(self, row + 1, len(ids) - start, self.max_length, "max_length")
                ids, start = ids[cut:], start - cut
            if limit is not None and len(ids) - 1 > limit:
                raise too_long(self, row + 1, len(ids) - 1, limit, model.label)
            spans.append(Span(row, ids, start))
        return Prepared(len(self.samples), lambda done: self._run(model, spans, done))

    def _put(self, context: str, choice: str) -> str:
        """The choice as it follows the context: what is between stands in front of it, but not at the very start."""
        if not context or context[-1].isspace() or choice[0].isspace():
            return choice
        return self.between + choice

    def _run(self, model: Model, spans: list[Span], done: Callable[[int], None]) -> Columns:
        share = len(self.samples) / len(spans)
        finished = [0.0, 0]

        def step(count: int) -> None:
            finished[0] += count * share
            whole = min(round(finished[0]), len(self.samples))
            done(whole - int(finished[1]))
            finished[1] = whole

        sums, _ = log_probabilities(self, model, spans, step)
        names = ("answer", "prediction", "right", "prediction_norm", "right_norm", "loss", "choices")
        columns: Columns = {key: [] for key in (*names, "log_probabilities")}
        at = 0
        for _, choices, right in self.samples:
            values = sums[at : at + len(choices)]
            at += len(choices)
            by_length = [value / len(choice) for value, choice in zip(values, choices, strict=True)]
            best, best_norm = values.index(max(values)), by_length.index(max(by_length))
            columns["answer"].append(choices[right])
            columns["prediction"].append(choices[best])
            columns["right"].append(best == right)
            columns["prediction_norm"].append(choices[best_norm])
            columns["right_norm"].append(best_norm == right)
            columns["loss"].append(-values[right])
            columns["choices"].append(choices)
            columns["log_probabilities"].append(values)
        return columns
