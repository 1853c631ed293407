"""What models make of the same inputs: pooled states after every layer, and a classifier's last layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from merganser.errors import RequestError
from merganser.running import batch_size, batches, finite, pad, pool

if TYPE_CHECKING:
    import torch

    from merganser.running import Head, Model

Values = np.ndarray[Any, Any]
Pooling = Literal["mean", "cls", "last"]
POOLINGS: tuple[Pooling, ...] = ("mean", "cls", "last")


@dataclass(frozen=True)
class Space:
    """One model's states f32, [rows, d] a layer: after the embeddings, then after every layer.

    weight, inputs and logits are of a classifier's last layer, [K, d], [rows, d], [rows, K]; or None.
    """

    layers: tuple[Values, ...]
    weight: Values | None = None
    inputs: Values | None = None
    logits: Values | None = None


def of_texts(
    model: Model,
    ids: Sequence[Sequence[int]],
    *,
    pooling: Pooling = "mean",
    head: Head | None = None,
    batch: int = 32,
    done: Callable[[int], None] = lambda _: None,
) -> Space:
    """Run a model over token ids. States are pooled over tokens that are not padding: their mean, the first, the last.

    With a linear `head` (for encoders) its features, as it pools them, and its logits stand for the last layer.
    """
    import torch

    parts: list[tuple[Sequence[int], list[torch.Tensor]]] = []
    ends: list[tuple[Sequence[int], torch.Tensor, torch.Tensor]] = []
    last = None if head is not None else last_layer(model)
    with torch.no_grad():
        for rows in batches([len(one) for one in ids], batch_size(model, batch)):
            tokens, mask = pad([ids[row] for row in rows], model.pad_id)
            with _taken(last) as taken:
                found = model.module(input_ids=tokens, attention_mask=mask, output_hidden_states=True)
            states = [pool(layer, mask, pooling) for layer in _states(found, model)]
            for layer in states:
                finite(layer, what="hidden states", model=model, rows=list(rows))
            parts.append((rows, states))
            if head is not None:
                inputs = pool(_states(found, model)[-1], mask, head.pooling)
                if head.normalize:
                    inputs = torch.nn.functional.normalize(inputs, dim=1)
                ends.append((rows, inputs, head(inputs)))
            elif taken:
                inputs = taken[0] if taken[0].dim() == 2 else pool(taken[0], mask, "last")
                ends.append((rows, inputs, found.logits))
            done(len(rows))
    layers = tuple(
        _in_order(len(ids), [(rows, states[k]) for rows, states in parts]) for k in range(len(parts[0][1]))
    )
    if not ends:
        return Space(layers)
    weight = head.weight if head is not None else cast(Any, last).weight.numpy()
    first = _in_order(len(ids), [(rows, inputs) for rows, inputs, _ in ends])
    second = _in_order(len(ids), [(rows, logits) for rows, _, logits in ends])
    return Space(layers, np.asarray(weight, np.float64), first, second)


def of_images(
    model: Model, given: Callable[[Sequence[int]], torch.Tensor], rows: int, *, batch: int = 32
) -> Space:
    """Run a model over images. States are the mean over patches, of convolutions over places.

    given: what makes the model's input of some rows.
    """
    import torch

    parts: list[tuple[Sequence[int], list[torch.Tensor]]] = []
    ends: list[tuple[Sequence[int], torch.Tensor, torch.Tensor]] = []
    last = last_layer(model)
    with torch.no_grad():
        for start in range(0, rows, batch):
            some = list(range(start, min(start + batch, rows)))
            with _taken(last) as taken:
                found = model.module(pixel_values=given(some), output_hidden_states=True)
            states = [_over_places(layer) for layer in _states(found, model)]
            for layer in states:
                finite(layer, what="hidden states", model=model, rows=some)
            parts.append((some, states))
            if taken:
                ends.append((some, taken[0].flatten(1), found.logits))
    layers = tuple(
        _in_order(rows, [(some, states[k]) for some, states in parts]) for k in range(len(parts[0][1]))
    )
    if not ends:
        return Space(layers)
    weight = np.asarray(cast(Any, last).weight.numpy(), np.float64)
    inputs = _in_order(rows, [(some, one) for some, one, _ in ends])
    logits = _in_order(rows, [(some, one) for some, _, one in ends])
    return Space(layers, weight, inputs, logits)


def _over_places(states: torch.Tensor) -> torch.Tensor:
    """[rows, d] of [rows, patches, d] or [rows, d, height, width]."""
    return states.mean((2, 3)) if states.dim() == 4 else states.mean(1) if states.dim() == 3 else states


def last_layer(model: Model) -> Any | None:
    """The linear layer that gives a classifier's logits; None for models that are no classifiers."""
    import torch

    if model.kind not in ("classifier", "image_classifier"):
        return None
    found = [
        module
        for module in model.module.modules()
        if isinstance(module, torch.nn.Linear) and module.out_features == len(model.labels)
    ]
    return found[-1] if found else None


def _states(found: Any, model: Model) -> Sequence[torch.Tensor]:
    states = getattr(found, "hidden_states", None)
    if not states:
        raise RequestError(f"{model.label}: transformers gives no hidden states for models of its type")
    return cast("Sequence[torch.Tensor]", states)


@contextmanager
def _taken(module: Any | None) -> Iterator[list[torch.Tensor]]:
    """What a layer takes in while this is open."""
    found: list[torch.Tensor] = []
    if module is None:
        yield found
        return
    hook = module.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    try:
        yield found
    finally:
        hook.remove()


def _in_order(count: int, parts: Sequence[tuple[Sequence[int], torch.Tensor]]) -> Values:
    first = parts[0][1]
    out = np.empty((count, *first.shape[1:]), np.float32)
    for rows, values in parts:
        out[list(rows)] = values.float().numpy()
    return out
