"""Greedy generation with exact match."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from merganser.evaluate import settings
from merganser.evaluate.likelihood import Marks, bare_ids
from merganser.evaluate.settings import setting
from merganser.evaluate.task import Columns, Prepared, Task, digest, in_order, too_long
from merganser.running import finite

if TYPE_CHECKING:
    from merganser.running import Model

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")


@dataclass(frozen=True, kw_only=True)
class Generation(Task):
    """What a causal language model writes after a prompt, token by token the likeliest, against accepted answers.

    prompt: the column; answer: the column of a text or a list of accepted texts; max_new_tokens; stop: texts
    before which the output ends (it ends at the model's end tokens anyhow); take: which part of the output is
    the prediction: all, its first_line, or its last_number; ignore: differences that do not count: case,
    punctuation (ASCII), articles (a, an, the), spaces (runs of blanks become one). Blanks at both ends never
    count; of a last_number commas are left out. max_length: cut prompts from the left to so many tokens;
    without it prompt and output must fit the model's positions.

    Results: text is the whole output, the prediction is what was taken from it as it stands, right whether it
    equals an accepted answer after `ignore`.
    """

    kind: ClassVar[str] = "generation"
    runs_on: ClassVar[tuple[str, ...]] = ("causal",)

    prompt: str = setting(settings.text, "prompt")
    answer: str = setting(settings.text, "answer")
    max_new_tokens: int = setting(settings.count, 32)
    stop: tuple[str, ...] = setting(settings.texts, ())
    take: str = setting(settings.one_of("all", "first_line", "last_number"), "all")
    ignore: tuple[str, ...] = setting(settings.some_of("case", "punctuation", "articles", "spaces"), ())
    max_length: int | None = setting(settings.count, None)

    def read(self) -> list[tuple[str, list[str]]]:
        """Prompt and accepted answers of each sample."""
        return self.samples

    @cached_property
    def samples(self) -> list[tuple[str, list[str]]]:
        """See `read`."""
        found = []
        answers = self.rows.column(self.answer)
        for number, (prompt, answer) in enumerate(zip(self.texts(self.prompt), answers, strict=True), 1):
            accepted = answer if isinstance(answer, list) else [answer]
            if isinstance(answer, int | float) and not isinstance(answer, bool):
                accepted = [str(answer)]
            if not accepted or not all(isinstance(one, str) and one.strip() for one in accepted):
                raise self.wrong(number, self.answer, "is no text and no list of texts", answer)
            found.append((prompt, accepted))
        return found

    def digests(self) -> list[str]:
        """Of prompt, accepted answers and what ends the output."""
        return [digest(prompt, answers, self.stop, self.max_new_tokens) for prompt, answers in self.samples]

    def shown(self, row: int) -> str:
        """The prompt, before it is cut."""
        return self.samples[row][0]

    def prepare(self, model: Model) -> Prepared:
        """See `Task.prepare`."""
        self.fits(model)
        lead = Marks.of(model).before
        prompts = []
        limit = model.positions
        for row, ids in enumerate(bare_ids(model, [prompt for prompt, _ in self.samples])):
            whole = lead + ids
            if self.max_length is not None:
                whole = whole[-self.max_length :]
            if limit is not None and len(whole) + self.max_new_tokens > limit:
                raise too_long(
                    self, row + 1, len(whole), limit - self.max_new_tokens, f"with its output {model.label}"
                )
            if not whole:
                raise self.wrong(row + 1, self.prompt, "has no tokens", self.samples[row][0])
            prompts.append(whole)
        return Prepared(len(prompts), lambda done: self._run(model, prompts, done))

    def _run(self, model: Model, prompts: list[list[int]], done: Callable[[int], None]) -> Columns:
        parts: list[tuple[Sequence[int], Sequence[Any]]] = []
        for rows in same_length(prompts, self.batch):
            parts.append((rows, self._outputs(model, [prompts[row] for row in rows], rows)))
            done(len(rows))
        outputs: list[str] = in_order(len(prompts), parts)
        columns: Columns = {key: [] for key in ("answer", "prediction", "right", "text")}
        for output, (_, accepted) in zip(outputs, self.samples, strict=True):
            taken = self.taken(output)
            columns["answer"].append(accepted[0] if len(accepted) == 1 else " | ".join(accepted))
            columns["prediction"].append(taken)
            columns["right"].append(any(self.plain(taken) == self.plain(one) for one in accepted))
            columns["text"].append(output)
        return columns

    def _outputs(self, model: Model, prompts: list[list[int]], rows: Sequence[int]) -> list[str]:
        """Greedy outputs of prompts of one length, so that no padding stands between prompt and output."""
        import torch

        ends = model.end_ids
        ids = torch.tensor(prompts)
        written: list[list[int]] = [[] for _ in prompts]
        texts: list[str | None] = [None] * len(prompts)
        past: Any = None
        for _ in range(self.max_new_tokens):
            kept = {} if past is None else {"past_key_values": past}
            found = model.module(input_ids=ids, use_cache=True, **kept)
            logits = finite(found.logits[:, -1], what=self.what("logits"), model=model, rows=rows)
            past = getattr(found, "past_key_values", None)
            chosen = logits.argmax(-1)
            for k, token in enumerate(chosen.tolist()):
                if texts[k] is not None:
                    continue
                if token in ends:
                    texts[k] = self._cut(model, written[k])
                    continue
                written[k].append(token)
                if self.stop and any(stop in self._whole(model, written[k]) for stop in self.stop):
                    texts[k] = self._cut(model, written[k])
            if all(text is not None for text in texts):
                break
            ids = chosen[:, None] if past is not None else torch.cat([ids, chosen[:, None]], 1)
        return [self._cut(model, written[k]) if text is None else text for k, text in enumerate(texts)]

    def _decoded(self, model: Model, ids: list[int]) -> str:
        return str(model.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _whole(self, model: Model, ids: list[int]) -> str:
        """The text with its special tokens, which a stop may be one of."""
        return str(model.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _cut(self, model: Model, ids: list[int]) -> str:
        """The text before the first stop, without special tokens."""
        text = self._decoded(model, ids)
        whole = self._whole(model, ids) if self.stop else text
        places = [whole.find(stop) for stop in self.stop if stop in whole]
        if not places:
            return text
        if all(stop in text for stop in self.stop if stop in whole):
            return text[: min(text.find(stop) for stop in self.stop if stop in text)]
        # A stop is, or has in it, a special token: the longest run of tokens whose text ends before it.
        kept = len(ids)
        while kept and len(self._whole(model, ids[:kept])) > min(places):
            kept -= 1
        return self._decoded(model, ids[:kept])

    def taken(self, output: str) -> str:
        """The part of an output that is the prediction."""
        output = output.strip()
        if self.take == "first_line":
            return output.splitlines()[0].strip() if output else ""
        if self.take == "last_number":
            numbers = _NUMBER.findall(output)
            return numbers[-1].replace(",", "") if numbers else ""
        return output

    def plain(self, text: str) -> str:
        """A text without the differences that do not count."""
        if self.take == "last_number":
            text = text.replace(",", "")
        if "case" in self.ignore:
            text = text.casefold()
        if "punctuation" in self.ignore:
            text = text.translate(str.maketrans("", "", string.punctuation))
        if "articles" in self.ignore:
            text = re.sub(r"\b(a|an|the)\b", " ", text, flags=re.IGNORECASE)
        if "spaces" in self.ignore or "articles" in self.ignore:
            text = " ".join(text.split())
        return text.strip()


def same_length(prompts: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Rows whose prompts have as many tokens, in batches."""
    groups: dict[int, list[int]] = {}
    for row, prompt in enumerate(prompts):
        groups.setdefault(len(prompt), []).append(row)
    for length in sorted(groups):
        rows = groups[length]
        yield from (rows[at : at + size] for at in range(0, len(rows), size))
