"""What is made small when coefficients are learned: entropy, cross-entropy, losses of pairs. Needs torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from merganser.errors import RequestError
from merganser.evaluate.classification import Classification
from merganser.evaluate.likelihood import Marks, bare_ids
from merganser.evaluate.perplexity import Perplexity
from merganser.evaluate.similarity import Similarity
from merganser.running import check_one_label, finite, pad

if TYPE_CHECKING:
    from merganser.evaluate import Task
    from merganser.running import Model

TEMPERATURE = 0.05
"""Of the losses of pairs: cosines are divided by it."""
WINDOW = 512
"""Tokens of a text that a language model's loss is taken of at most, unless the task has a window."""
Loss = Callable[[Sequence[int]], torch.Tensor]


def check(task: Task, entropy: bool) -> None:
    """Raise `RequestError` for a task that has no such loss and for wrong files and rows, before a model is opened.

    For entropy labels are not so much as read: the data may have none.
    """
    if isinstance(task, Classification):
        if entropy:
            task.read_unlabelled()
        else:
            task.check()
    elif entropy:
        raise RequestError(
            f"task {task.name!r} ({task.kind}): entropy is of classes; learn from classification tasks, "
            "or by a method that uses labels"
        )
    elif isinstance(task, Perplexity | Similarity):
        task.check()
    else:
        raise RequestError(
            f"task {task.name!r}: {task.kind} has no loss that coefficients are learned from; classification, "
            "perplexity and similarity have"
        )


class Objective:
    """The loss of one task on some of its rows, by the parameters that the model has at the time."""

    def __init__(self, task: Task, model: Model, entropy: bool) -> None:
        check(task, entropy)
        self.name = task.name
        self.rows = len(task.rows)
        self._model = model.label
        self._what = task.what("the loss")
        if isinstance(task, Classification):
            self._loss = _classes(task, model, entropy)
        elif isinstance(task, Perplexity):
            self._loss = _tokens(task, model)
        else:
            self._loss = _pairs(cast(Similarity, task), model)

    def __call__(self, rows: Sequence[int]) -> torch.Tensor:
        """The mean loss of rows. Raises `NonFiniteError` for NaN and Inf."""
        loss = self._loss(rows)
        finite(loss.detach().reshape(1), what=self._what, model=self._model, rows=rows[:1])
        return loss


def softmax_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Entropy in nats [rows] of softmax(logits [rows, classes])."""
    logs = logits.log_softmax(1)
    return -(logs.exp() * logs).sum(1)


def contrastive(a: torch.Tensor, b: torch.Tensor, temperature: float = TEMPERATURE) -> torch.Tensor:
    """InfoNCE with the other pairs of the batch as negatives, both ways: a, b [rows, width] of length 1."""
    cosines = a @ b.T / temperature
    wanted = torch.arange(len(a))
    return (cross_entropy(cosines, wanted) + cross_entropy(cosines.T, wanted)) / 2


def ordered(cosines: torch.Tensor, scores: torch.Tensor, temperature: float = TEMPERATURE) -> torch.Tensor:
    """CoSENT: log(1 + sum over pairs with score_i > score_j of exp((cos_j - cos_i) / temperature))."""
    gaps = (cosines[None] - cosines[:, None]) / temperature
    wrong = gaps[scores[:, None] > scores[None]]
    return torch.logsumexp(torch.cat([torch.zeros(1), wrong]), 0)


def _classes(task: Classification, model: Model, entropy: bool) -> Loss:
    if entropy:
        if task.linear is None:
            check_one_label(model)
        _, logits = task.inputs.prepare(model, task.linear)
        return lambda rows: softmax_entropy(logits(rows)).mean()
    task.prepare(model)
    _, logits = task.inputs.prepare(model, task.linear)
    names = task.named(model.labels if task.linear is None else task.linear.labels)
    answers = torch.tensor(task.answers(names))
    return lambda rows: cross_entropy(logits(rows), answers[list(rows)])


def _tokens(task: Perplexity, model: Model) -> Loss:
    task.prepare(model)
    lead = Marks.of(model).lead()
    assert lead is not None  # prepare refuses models without
    limit = task.window or min(model.positions or WINDOW, WINDOW)
    ids = [[lead[-1], *one][: limit + 1] for one in bare_ids(model, task.texts(task.text))]

    def loss(rows: Sequence[int]) -> torch.Tensor:
        given, mask = pad([ids[row][:-1] for row in rows], model.pad_id)
        wanted, _ = pad([ids[row][1:] for row in rows])
        return cross_entropy(model.logits(given, mask)[mask.bool()], wanted[mask.bool()])

    return loss


def _pairs(task: Similarity, model: Model) -> Loss:
    task.prepare(model)
    samples = task.read()
    texts = [a for a, _, _ in samples], [b for _, b, _ in samples]
    sides = [task.token_ids(model, side) for side in texts]

    def loss(rows: Sequence[int]) -> torch.Tensor:
        a, b = (
            torch.nn.functional.normalize(task.features(model, [side[row] for row in rows]), dim=1)
            for side in sides
        )
        if task.score is None:
            return contrastive(a, b)
        scores = torch.tensor([cast(float, samples[row][2]) for row in rows])
        return ordered((a * b).sum(1), scores)

    return loss


class Batches:
    """Rows of a task in turn: a new order for every pass through the data, drawn from a seed."""

    def __init__(self, rows: int, size: int, seed: Sequence[int]) -> None:
        self.rows = rows
        self.size = min(size, rows)
        self.draws = np.random.default_rng(list(seed))
        self.order: list[int] = []

    def next(self) -> list[int]:
        """The next batch; rows that fill no batch at the end of a pass are left out of it."""
        if len(self.order) < self.size:
            self.order = self.draws.permutation(self.rows).tolist()
        batch, self.order = self.order[: self.size], self.order[self.size :]
        return batch
