"""Linear heads over an encoder's pooled features, kept in a small safetensors file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from merganser.checkpoint import open_checkpoint
from merganser.errors import RequestError, listing
from merganser.running.tokens import pad

if TYPE_CHECKING:
    import torch

    from merganser.running.model import Model

Pooling = Literal["mean", "cls"]
POOLINGS: tuple[Pooling, ...] = ("mean", "cls")


@dataclass(frozen=True, eq=False)
class Head:
    """logits = features @ weight.T + bias, where features are the encoder's last states, pooled.

    weight: f32 [classes, hidden]; bias: f32 [classes]; labels: the classes' names; pooling: "mean" over the tokens that
    are not padding, or the first token ("cls"); normalize: features are scaled to length 1 first.
    """

    weight: np.ndarray[Any, Any]
    bias: np.ndarray[Any, Any]
    labels: tuple[str, ...]
    pooling: Pooling = "mean"
    normalize: bool = True

    def __post_init__(self) -> None:
        classes = len(self.labels)
        if self.weight.ndim != 2 or len(self.weight) != classes or self.bias.shape != (classes,):
            raise RequestError(
                f"a head of {classes} labels needs weight [{classes}, hidden] and bias [{classes}], not "
                f"{list(self.weight.shape)} and {list(self.bias.shape)}"
            )
        if len(set(self.labels)) < classes:
            raise RequestError(f"two labels of the head are the same: {', '.join(self.labels)}")
        if self.pooling not in POOLINGS:
            raise RequestError(f"the head's pooling is {self.pooling!r}; known are {', '.join(POOLINGS)}")

    @property
    def hidden(self) -> int:
        """Width of the features."""
        return int(self.weight.shape[1])

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Logits [rows, classes] of features [rows, hidden]."""
        import torch

        return torch.nn.functional.linear(
            features, torch.from_numpy(self.weight), torch.from_numpy(self.bias)
        )

    @classmethod
    def open(cls, path: str | Path) -> Head:
        """Read a head: tensors `weight` and `bias`, metadata `labels` (a JSON list), `pooling`, `normalize`."""
        found = open_checkpoint(path, name=str(path))
        if set(found.tensors) != {"weight", "bias"}:
            raise RequestError(
                f"{path}: a head holds the tensors weight and bias, not {', '.join(found.tensors)}"
            )
        try:
            labels = json.loads(found.metadata["labels"])
            assert isinstance(labels, list) and all(isinstance(label, str) for label in labels)
        except (KeyError, ValueError, AssertionError):
            raise RequestError(
                f"{path}: the metadata of a head hold `labels`, a JSON list of strings"
            ) from None
        arrays = {
            name: np.array(tensor.numpy(), dtype=np.float32, order="C")
            for name, tensor in found.tensors.items()
        }
        return cls(
            arrays["weight"],
            arrays["bias"],
            tuple(labels),
            cast(Pooling, found.metadata.get("pooling", "mean")),
            found.metadata.get("normalize", "true") == "true",
        )

    def save(self, path: str | Path) -> None:
        """Write the head as one safetensors file."""
        from merganser.checkpoint.dtypes import F32
        from merganser.checkpoint.header import write_header

        tensors = {"weight": self.weight.astype("<f4"), "bias": self.bias.astype("<f4")}
        metadata = {
            "labels": json.dumps(list(self.labels), ensure_ascii=False),
            "pooling": self.pooling,
            "normalize": "true" if self.normalize else "false",
        }
        header = write_header([(name, F32, tensor.shape) for name, tensor in tensors.items()], metadata)
        Path(path).write_bytes(header + b"".join(tensor.tobytes() for tensor in tensors.values()))


def class_logits(returned: Any) -> torch.Tensor:
    """The logits [rows, classes] in what a classifier of transformers returned, as its family calls them."""
    for key in ("logits", "prediction_logits", "prediction_outputs"):
        if (found := getattr(returned, key, None)) is not None:
            return cast("torch.Tensor", found)
    raise RequestError(f"a classifier that returns {type(returned).__name__} gives no logits of classes")


def class_numbers(labels: Sequence[str]) -> dict[str, int]:
    """What data may call each class: its name, or its number (from 0) where no name is a number."""
    found = {name: k for k, name in enumerate(labels)}
    if not any(name.isdecimal() for name in labels):
        found |= {str(k): k for k in range(len(labels))}
    return found


def pool(states: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """States [rows, tokens, d] to [rows, d]: the mean over a mask [rows, tokens], the first ("cls"), the last in it."""
    import torch

    if pooling == "cls":
        return states[:, 0]
    if pooling == "last":
        ends = mask.shape[1] - 1 - mask.flip(1).argmax(1)
        return states[torch.arange(len(states)), ends]
    weight = mask.unsqueeze(-1).to(states.dtype)
    return (states * weight).sum(1) / weight.sum(1)


def pooled(
    model: Model, ids: Sequence[Sequence[int]], *, pooling: Pooling = "mean", normalize: bool = True
) -> torch.Tensor:
    """Features f32 [rows, hidden] of one batch of token ids by an encoder; see `Head` for pooling and normalize."""
    import torch

    batch, mask = pad(ids, model.pad_id)
    features = pool(model.states(batch, mask), mask, pooling)
    return torch.nn.functional.normalize(features, dim=1) if normalize else features


def check_one_label(model: Model) -> None:
    """Raise `RequestError` where a model's own head is no classifier of one label out of several.

    A softmax over the one number of a regression, or over labels that may hold together, is no probability.
    """
    if model.kind not in ("classifier", "image_classifier", "series_classifier"):
        return
    problem = getattr(model.config, "problem_type", None)
    if len(model.labels) < 2 or problem not in (None, "single_label_classification"):
        raise RequestError(
            f"the head of {model.label} is no classifier of one label out of several (labels: "
            f"{listing(model.labels)}; problem_type: {problem}), so a softmax of what it gives means nothing. Where it "
            "was trained as one, correct problem_type in config.json"
        )
