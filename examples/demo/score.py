"""Encoding sentences, frozen heads, accuracy.

A sentence's features are the encoder's own: the mean of its last states over the tokens, scaled to length 1. Each
task has one logistic head, fitted once on the *base* model's features and then frozen: every model, parent or merged,
is scored with the same two heads, so only the encoders differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from demo.tasks import Rows

LENGTH = 64
BATCH = 32
INVERSE_PENALTY = 10.0  # "C" of a logistic regression
Tick = Callable[[int], None]


@dataclass(frozen=True)
class Tokens:
    """Tokenised rows: token ids of each text, and the labels."""

    ids: list[list[int]]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.ids)


def tokenize(folder: Path, rows: Rows, length: int = LENGTH) -> Tokens:
    """Token ids of the rows, at most `length` of each, with the tokenizer of the model in `folder`."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(list(rows.texts), truncation=True, max_length=length)["input_ids"]
    return Tokens(ids, torch.tensor(rows.labels))


def load(folder: Path) -> Any:
    """The encoder in `folder`, in float32, ready to be read from."""
    return AutoModel.from_pretrained(folder, dtype=torch.float32).eval()


def pad(ids: list[list[int]]) -> tuple[Tensor, Tensor]:
    """A batch of token ids padded to its longest, and its mask."""
    width = max(map(len, ids))
    batch = torch.zeros(len(ids), width, dtype=torch.long)
    mask = torch.zeros(len(ids), width, dtype=torch.long)
    for row, one in enumerate(ids):
        batch[row, : len(one)] = torch.tensor(one)
        mask[row, : len(one)] = 1
    return batch, mask


def encode(model: Any, ids: list[list[int]]) -> Tensor:
    """Features of one batch: the masked mean of the last states, scaled to length 1."""
    batch, mask = pad(ids)
    states = model(input_ids=batch, attention_mask=mask).last_hidden_state
    weight = mask.unsqueeze(-1).to(states.dtype)
    mean = (states * weight).sum(1) / weight.sum(1)
    return torch.nn.functional.normalize(mean, dim=1)


def by_length(ids: list[list[int]], size: int) -> Iterator[list[int]]:
    """Row numbers in batches of texts of about the same length, so that little is padded."""
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    for start in range(0, len(order), size):
        yield order[start : start + size]


@torch.inference_mode()
def features(model: Any, tokens: Tokens, tick: Tick | None = None) -> Tensor:
    """Features of all rows, in their order. `tick` is told how many rows each batch had."""
    found: Tensor | None = None
    for rows in by_length(tokens.ids, BATCH):
        some = encode(model, [tokens.ids[i] for i in rows])
        if found is None:
            found = torch.empty(len(tokens), some.shape[1])
        found[rows] = some
        if tick:
            tick(len(rows))
    assert found is not None
    return found


@dataclass(frozen=True)
class Head:
    """A frozen logistic head of two classes: the score of class 1 is `weight . features + bias`."""

    weight: Tensor
    bias: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        return values @ self.weight + self.bias


def minimise(loss: Callable[[], Tensor], parameters: list[Tensor]) -> None:
    """Move the parameters of a smooth convex loss to its minimum, by L-BFGS."""
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=500,
        tolerance_grad=1e-8,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)


def fit_head(values: Tensor, labels: Tensor) -> Head:
    """Logistic regression with an L2 penalty on the weights, |w|^2 / (2 C n), by L-BFGS in f64 (convex: no seed)."""
    x, y = values.double().clone(), labels.double().clone()
    weight = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)

    def loss() -> Tensor:
        fit = torch.nn.functional.binary_cross_entropy_with_logits(x @ weight + bias, y)
        return fit + weight.square().sum() / (2 * INVERSE_PENALTY * len(y))

    minimise(loss, [weight, bias])
    return Head(weight.detach().float(), bias.detach().float())


@dataclass(frozen=True)
class Score:
    """The share of `rows` rows that were right."""

    accuracy: float
    rows: int

    @property
    def error(self) -> float:
        """One standard error of the share, from the number of rows alone."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.rows)

    def __str__(self) -> str:
        return f"{100 * self.accuracy:.1f} ± {100 * self.error:.1f}"


def score(model: Any, head: Head, tokens: Tokens, tick: Tick | None = None) -> Score:
    """Accuracy of one model on one task with the task's frozen head."""
    right = (head(features(model, tokens, tick)) > 0) == (tokens.labels == 1)
    return Score(right.double().mean().item(), len(tokens))
