"""Texts that a grafted model is scored on: loss, accuracy, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser.errors import RequestError, did_you_mean, listing
from merganser.running import (
    Head,
    Model,
    Rows,
    batch_size,
    batches,
    check_causal,
    check_one_label,
    class_numbers,
    encode,
    finite,
    pad,
    pooled,
)

if TYPE_CHECKING:
    import torch

BINS = 15
"""Of the expected calibration error."""


@dataclass(frozen=True, eq=False)
class Texts:
    """Token ids by row, and the class of each row (None for language models, whose loss is that of the text)."""

    ids: list[list[int]]
    answers: list[int] | None
    head: Head | None
    batch: int

    def __len__(self) -> int:
        return len(self.ids)

    def batches(self, rows: Sequence[int]) -> list[list[int]]:
        """Rows of about the same length together."""
        return [[rows[k] for k in part] for part in batches([len(self.ids[row]) for row in rows], self.batch)]

    def loss(self, model: Model, rows: Sequence[int]) -> tuple[torch.Tensor, int, torch.Tensor]:
        """The sum of the nats of some rows, of how many answers or tokens, and the logits they come from."""
        import torch

        ids = [self.ids[row] for row in rows]
        batch, mask = pad(ids, model.pad_id)
        if self.answers is None:
            logits = finite(model.logits(batch, mask), what="logits", model=model, rows=rows)[:, :-1]
            wanted = batch[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
            nats = torch.nn.functional.cross_entropy(
                logits.reshape(-1, logits.shape[-1]), wanted.reshape(-1), reduction="sum"
            )
            return nats, int(mask[:, 1:].sum()), logits
        if self.head is None:
            logits = model.logits(batch, mask)
        else:
            features = pooled(model, ids, pooling=self.head.pooling, normalize=self.head.normalize)
            logits = self.head(features)
        logits = finite(logits, what="logits", model=model, rows=rows)
        wanted = torch.tensor([self.answers[row] for row in rows])
        return torch.nn.functional.cross_entropy(logits, wanted, reduction="sum"), len(rows), logits

    def score(self, model: Model) -> dict[str, float]:
        """Mean loss in nats; of classifiers also accuracy and expected calibration error, of 15 equal bins."""
        import torch

        nats, count = 0.0, 0
        right, sure = np.zeros(len(self), bool), np.zeros(len(self))
        with torch.no_grad():
            for rows in self.batches(range(len(self))):
                loss, part, logits = self.loss(model, rows)
                nats, count = nats + float(loss), count + part
                if self.answers is not None:
                    best = logits.double().softmax(1).max(1)
                    sure[rows] = best.values.numpy()
                    right[rows] = best.indices.numpy() == np.array([self.answers[row] for row in rows])
        found = {"loss": nats / max(count, 1)}
        if self.answers is not None:
            found |= {"accuracy": float(right.mean()), "calibration_error": calibration_error(sure, right)}
        return found


def calibration_error(sure: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> float:
    """sum_b n_b/n |accuracy_b - mean probability_b| over 15 equal bins of the probability of the predicted class."""
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    gaps = [abs(right[bins == b].sum() - sure[bins == b].sum()) for b in np.unique(bins)]
    return float(sum(gaps) / max(len(sure), 1))


def read_texts(
    model: Model, rows: Rows, *, text: str, label: str, head: Head | None, max_length: int | None, batch: int
) -> Texts:
    """The rows as a model takes them.

    Classifiers and encoders with a head need labels it knows; language models need text alone. Raises `RequestError`.
    """
    if model.kind not in ("classifier", "encoder", "causal") or (model.kind == "encoder" and head is None):
        raise RequestError(
            f"{model.label} is run as {model.kind}: localization needs a classifier, an encoder with a head, or a "
            "causal language model"
        )
    if head is not None and model.kind != "encoder":
        raise RequestError(
            f"{model.label} is run as {model.kind}, which has a head of its own; give no other"
        )
    _ = model.tokenizer
    try:
        ids = encode(model, rows.column(text), max_length)
    except RequestError as error:
        raise RequestError(f"{rows.path}: {error}") from None
    if model.kind == "causal":
        if short := [number for number, one in enumerate(ids, 1) if len(one) < 2]:
            raise RequestError(
                f"{rows.path}: row {short[0]} has a single token, so nothing in it is predicted"
            )
        check_causal(model)
        return Texts(ids, None, None, batch)
    if head is None:
        check_one_label(model)
    names = head.labels if head is not None else model.labels
    places = class_numbers(names)
    written = [str(value) for value in rows.column(label)]
    for number, value in enumerate(written, 1):
        if value not in places:
            raise RequestError(
                f"{rows.path}: row {number}: the head does not know the label {value!r}{did_you_mean(value, names)}; "
                f"it knows {listing(names, 20)}"
            )
    return Texts(ids, [places[value] for value in written], head, batch_size(model, batch))
