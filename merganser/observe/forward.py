"""Running a model on a batch, as far as its inputs are worth looking at."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from merganser.errors import MerganserError, NonFiniteError, RequestError
from merganser.observe.feed import Batch
from merganser.running import Model, finite

if TYPE_CHECKING:
    import torch


class Reached(Exception):
    """A pass has come as far as it must; `value` is what was found there."""

    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.value = value


def output_head(model: Model) -> Any:
    """The layer that makes logits over a vocabulary of hidden states, or None."""
    import torch

    if model.kind not in ("causal", "masked"):
        return None
    head = model.module.get_output_embeddings()
    return head if isinstance(head, torch.nn.Linear) else None


@contextmanager
def without_head(model: Model) -> Iterator[None]:
    """Passes end where the logits over the vocabulary would be made: nothing reads them."""
    head = output_head(model)
    if head is None:
        yield
        return

    def stop(_: object, arguments: tuple[torch.Tensor, ...]) -> None:
        raise Reached(arguments[0])

    hook = head.register_forward_pre_hook(stop)
    try:
        yield
    finally:
        hook.remove()


def run(model: Model, batch: Batch) -> torch.Tensor:
    """One pass without gradients; what the model returns first, or the value it was stopped at.

    Raises `RequestError` where the model cannot be run on this.
    """
    import torch

    arguments: dict[str, Any] = dict(batch.arguments)
    if "use_cache" in inspect.signature(model.module.forward).parameters:
        arguments["use_cache"] = False
    try:
        with torch.no_grad():
            found = model.module(**arguments)
    except Reached as reached:
        return reached.value
    except MerganserError:
        raise
    except MemoryError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:300] or type(error).__name__
        raise RequestError(
            f"{model.label}: does not run on {', '.join(batch.arguments)} alone (row {batch.rows[0] + 1}): {text}"
        ) from error
    for key in ("logits", "last_hidden_state"):
        if (value := getattr(found, key, None)) is not None:
            return value  # type: ignore[no-any-return]
    value = next((one for one in found.to_tuple() if isinstance(one, torch.Tensor)), None)
    if value is None:
        raise RequestError(f"{model.label}: returns no tensor")
    return value


def check(model: Model, values: torch.Tensor, batch: Batch, what: str) -> None:
    """Raise `NonFiniteError` where values of rows, padding aside, are NaN or Inf."""
    counts = batch.counts
    if counts is not None and values.ndim > 2 and values.shape[:2] == counts.shape:
        values = values.masked_fill(~counts.reshape(*counts.shape, *[1] * (values.ndim - 2)), 0.0)
    if len(values) == len(batch.rows):
        finite(values, what=what, model=model, rows=list(batch.rows))
    elif not bool(values.isfinite().all()):
        raise NonFiniteError(f"{model.label}: {what} hold NaN or Inf")
