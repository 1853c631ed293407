"""Classification of texts, images or rows of numbers, by the model's own head or by a linear one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from merganser.checkpoint.digest import digest_file
from merganser.errors import RequestError, did_you_mean, listing
from merganser.evaluate import settings
from merganser.evaluate.inputs import Images, Inputs, Numbers, Texts
from merganser.evaluate.settings import setting
from merganser.evaluate.task import Columns, Prepared, Task, digest, in_order
from merganser.running import Head, check_one_label, class_numbers, finite

if TYPE_CHECKING:
    import torch

    from merganser.running import Model

Logits = Callable[[Sequence[int]], "torch.Tensor"]


@dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """Which of some labels a sample has.

    One of text (the default), image and features names the column that is given to the model. head: a linear
    head over the model's pooled states, see `merganser.running.Head`; without one the model's own
    classification head is used. labels: the head's labels, in its order: a check, and names for a head that
    only numbers its classes. max_length: cut texts after so many tokens; without it a text that is too long
    is an error.

    Results: choices are the labels, log_probabilities the log-softmax of the logits (f64), the prediction is
    the first of the most probable labels, loss = -log p(answer).
    """

    kind: ClassVar[str] = "classification"

    text: str | None = setting(settings.text_or_null, None)
    image: str | None = setting(settings.text_or_null, None)
    features: str | tuple[str, ...] | None = setting(settings.column_or_texts, None)
    label: str = setting(settings.text, "label")
    head: str | None = setting(settings.text_or_null, None)
    labels: tuple[str, ...] | None = setting(settings.distinct, None)
    max_length: int | None = setting(settings.count, None)

    def read(self) -> Inputs:
        """The inputs, and the head and labels checked as far as they are known without the model."""
        self.read_unlabelled()
        _ = self.written
        if self.linear is not None:
            self.answers(self.named(self.linear.labels))
        elif self.labels is not None:
            self.answers(self.labels)
        return self.inputs

    def read_unlabelled(self) -> None:
        """Check the inputs and the head; the data need have no labels."""
        given = [key for key in ("text", "image", "features") if getattr(self, key) is not None]
        if len(given) > 1:
            raise RequestError(
                f"task {self.name!r}: has {' and '.join(given)}; one of them is what the model is given"
            )
        if self.max_length is not None and not self.reads_text:
            raise RequestError(f"task {self.name!r}: max_length is for texts, not for {given[0]}")
        if self.head is not None and not self.reads_text:
            raise RequestError(f"task {self.name!r}: a head is for texts, not for {given[0]}")
        _ = self.inputs
        if self.linear is not None:
            self.named(self.linear.labels)

    @property
    def reads_text(self) -> bool:
        """Whether the model is given texts."""
        return self.image is None and self.features is None

    @cached_property
    def inputs(self) -> Inputs:
        """What the model is given."""
        if self.image is not None:
            return Images(self, self.image)
        if self.features is not None:
            return Numbers(self, self.features)
        return Texts(self, self.text or "text", self.max_length)

    @cached_property
    def linear(self) -> Head | None:
        """The linear head."""
        return None if self.head is None else Head.open(self.inside(self.head, "head"))

    @cached_property
    def written(self) -> list[str]:
        """The labels as the data have them."""
        found = self.rows.column(self.label)
        for number, value in enumerate(found, 1):
            if not isinstance(value, str | int):
                raise self.wrong(number, self.label, "is no label (a text or a whole number)", value)
        return [str(value) for value in found]

    def named(self, known: Sequence[str]) -> tuple[str, ...]:
        """The names of a head's classes: its own, or the suite's where the head only numbers them."""
        if self.labels is None or tuple(known) == self.labels:
            return tuple(known)
        nameless = all(name in (f"LABEL_{k}", str(k)) for k, name in enumerate(known))
        if len(known) == len(self.labels) and (nameless or len(set(known)) < len(known)):
            return self.labels
        raise RequestError(
            f"task {self.name!r}: labels are {listing(self.labels)}, and the head's, in its order, {listing(known)}"
        )

    def answers(self, names: Sequence[str]) -> list[int]:
        """The class of each sample. A label is a name, or the number of a class (from 0) where no name is a number."""
        places = class_numbers(names)
        for number, value in enumerate(self.written, 1):
            if value not in places:
                raise RequestError(
                    f"{self.path}: row {number}: the head of task {self.name!r} does not know the label {value!r}"
                    f"{did_you_mean(value, names)}; it knows {listing(names, 20)}"
                )
        return [places[value] for value in self.written]

    def digests(self) -> list[str]:
        """Of the input and the label as written."""
        return [digest(given, label) for given, label in zip(self.inputs.marks, self.written, strict=True)]

    def shown(self, row: int) -> str:
        """The text, the name of the image or its shape, or the numbers."""
        return self.inputs.shown(row)

    def described(self) -> dict[str, Any]:
        """See `Task.described`."""
        head = None if self.head is None else digest_file(self.inside(self.head, "head"))
        return {**super().described(), "head": head}

    def prepare(self, model: Model) -> Prepared:
        """See `Task.prepare`."""
        linear = self.linear
        if linear is None:
            self._own_head(model)
            names = self.named(model.labels)
        else:
            self.fits(model)
            names = self.named(linear.labels)
            hidden = getattr(model.config, "hidden_size", linear.hidden)
            if hidden != linear.hidden:
                raise RequestError(
                    f"task {self.name!r}: {self.head} takes {linear.hidden} features, and {model.label} has {hidden}"
                )
        if twice := [name for k, name in enumerate(names) if name in names[:k]]:
            raise RequestError(
                f"task {self.name!r}: two classes of {self.head or model.label} are called {twice[0]!r}, so a label "
                "does not say which is right. Give the classes names of their own (labels: of the task, in the "
                "head's order)"
            )
        answers = self.answers(names)
        inputs, logits = self.inputs.prepare(model, linear)
        return Prepared(len(answers), lambda done: self._run(model, names, answers, inputs, logits, done))

    def _own_head(self, model: Model) -> None:
        wanted = {"text": "classifier", "image": "image_classifier", "features": "series_classifier"}
        kind = wanted["image" if self.image else "features" if self.features else "text"]
        if model.kind != kind:
            raise RequestError(
                f"task {self.name!r} has no head, so it needs a model with a classification head ({kind}), and "
                f"{model.label} is run as {model.kind}; an encoder is scored with a linear head (head:)"
            )
        try:
            check_one_label(model)
        except RequestError as error:
            raise RequestError(f"task {self.name!r}: {error}") from None

    def _run(
        self,
        model: Model,
        names: Sequence[str],
        answers: Sequence[int],
        inputs: Iterator[list[int]],
        logits: Logits,
        done: Callable[[int], None],
    ) -> Columns:
        parts = []
        for rows in inputs:
            found = finite(logits(rows), what=self.what("logits"), model=model, rows=rows)
            if found.ndim != 2 or found.shape[1] != len(names):
                raise RequestError(
                    f"task {self.name!r}: {model.label} gave logits of shape {list(found.shape)} for "
                    f"{len(rows)} samples and {len(names)} labels"
                )
            parts.append((rows, found.double().log_softmax(1).tolist()))
            done(len(rows))
        columns: Columns = {key: [] for key in ("answer", "prediction", "right", "loss", "log_probabilities")}
        values: list[list[float]] = in_order(len(answers), parts)
        for answer, one in zip(answers, values, strict=True):
            best = max(range(len(one)), key=one.__getitem__)
            columns["answer"].append(names[answer])
            columns["prediction"].append(names[best])
            columns["right"].append(best == answer)
            columns["loss"].append(-one[answer])
            columns["log_probabilities"].append(one)
        columns["choices"] = [list(names)] * len(answers)
        return columns
