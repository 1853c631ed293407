"""The diagonal of the Fisher information: mean over rows of squared gradients of one row's loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser.errors import NonFiniteError, RequestError, did_you_mean, listing
from merganser.observe.feed import Feed, Texts
from merganser.observe.options import Options
from merganser.observe.pace import Pace
from merganser.observe.partial import Array, Partial
from merganser.running import Head, Model, Rows, class_logits, class_numbers, finite, pooled

if TYPE_CHECKING:
    import torch

MASKED = 0.15
"""The share of a row's tokens that a masked language model has to fill in."""


def mode_of(model: Model, options: Options, head: Head | None) -> str:
    """true, sampled or empirical: as chosen, else true where there are classes and sampled for language models.

    Raises `RequestError` where the model has no labels, and for `true` of a language model.
    """
    if model.kind in ("causal", "masked"):
        if options.fisher == "true":
            raise RequestError(
                f"{model.label}: the true Fisher information of a language model is an expectation over all texts; "
                "choose sampled (tokens drawn from its own predictions) or empirical (the data's tokens)"
            )
        return options.fisher or "sampled"
    if model.kind == "encoder" and head is None:
        raise RequestError(
            f"{model.label}: is an encoder and predicts no labels, so it has no Fisher information; pass --head FILE "
            "(a linear head over its features), or leave fisher out of --collect"
        )
    return options.fisher or "true"


def answers(rows: Rows, column: str, labels: Sequence[str], model: str) -> list[int]:
    """The class of each row: a label by name, or its number. `RequestError` for one that is not known, with its row."""
    numbers = class_numbers(labels)
    found = []
    for number, value in enumerate(rows.column(column), 1):
        if isinstance(value, bool) or str(value) not in numbers:
            raise RequestError(
                f"{rows.path}: row {number} has the label {str(value)!r}, which {model} does not know"
                f"{did_you_mean(str(value), labels)} (its labels: {listing(labels, 12)})"
            )
        found.append(numbers[str(value)])
    return found


class Objective:
    """What is differentiated, row by row."""

    def __init__(
        self, model: Model, feed: Feed, mode: str, *, head: Head | None, targets: list[int] | None, seed: int
    ) -> None:
        self.model, self.feed, self.mode, self.head = model, feed, mode, head
        self.targets, self.seed = targets, seed
        self.special: set[int] = set()
        if model.kind in ("causal", "masked"):
            self._check_texts()

    def _check_texts(self) -> None:
        assert isinstance(self.feed, Texts)
        special: set[int] = set()
        if self.model.kind == "masked":
            if self.model.tokenizer.mask_token_id is None:
                raise RequestError(
                    f"{self.model.label}: its tokenizer has no mask token, so nothing can be masked"
                )
            special = set(self.model.tokenizer.all_special_ids)
        for number, ids in enumerate(self.feed.ids, 1):
            places = range(1, len(ids)) if self.model.kind == "causal" else _plain(ids, special)
            if not places:
                raise RequestError(f"row {number} has no token to predict ({len(ids)} tokens in all)")
        self.special = special

    def losses(self, row: int) -> Iterator[torch.Tensor]:
        """The losses of one row, all over one graph."""
        if self.model.kind == "causal":
            yield self._causal(row)
        elif self.model.kind == "masked":
            yield self._masked(row)
        else:
            yield from self._classes(row)

    def _classes(self, row: int) -> Iterator[torch.Tensor]:
        import torch

        scores = self._finite(self._logits(row), row).log_softmax(-1)
        if self.mode == "true":
            for score in scores:
                yield -score * score.detach().mul(0.5).exp()  # its square carries the label's probability
            return
        if self.mode == "empirical":
            assert self.targets is not None
            target = self.targets[row]
        else:
            target = int(self._draw(scores.detach().unsqueeze(0), row)[0])
        yield torch.nn.functional.nll_loss(scores.unsqueeze(0), torch.tensor([target]))

    def _logits(self, row: int) -> torch.Tensor:
        if self.head is not None:
            assert isinstance(self.feed, Texts)
            ids = [self.feed.ids[row]]
            features = pooled(self.model, ids, pooling=self.head.pooling, normalize=self.head.normalize)
            found: torch.Tensor = self.head(features)[0]
            return found
        return class_logits(self.model.module(**self.feed.batch([row]).arguments))[0]

    def _causal(self, row: int) -> torch.Tensor:
        import torch

        arguments = self.feed.batch([row]).arguments
        ids = arguments["input_ids"][0]
        logits = self._finite(self.model.module(**arguments, use_cache=False).logits[0, :-1], row)
        targets = ids[1:] if self.mode == "empirical" else self._draw(logits.detach().log_softmax(-1), row)
        return torch.nn.functional.cross_entropy(logits, targets, reduction="sum")

    def _masked(self, row: int) -> torch.Tensor:
        import torch

        assert isinstance(self.feed, Texts)
        arguments = self.feed.batch([row]).arguments
        plain = _plain(self.feed.ids[row], self.special)
        count = max(1, round(MASKED * len(plain)))
        places = torch.tensor(sorted(_random(self.seed, row, 1).permutation(plain)[:count]))
        ids = arguments["input_ids"]
        targets = ids[0, places]
        ids[0, places] = int(self.model.tokenizer.mask_token_id)
        logits = self._finite(self.model.module(**arguments).logits[0, places], row)
        if self.mode != "empirical":
            targets = self._draw(logits.detach().log_softmax(-1), row)
        return torch.nn.functional.cross_entropy(logits, targets, reduction="sum")

    def _draw(self, scores: torch.Tensor, row: int) -> torch.Tensor:
        """One class for each line of log-probabilities, drawn from them; the row's own stream of random numbers."""
        import torch

        total = scores.double().exp().numpy().cumsum(1)
        points = _random(self.seed, row, 0).random(len(total)) * total[:, -1]
        drawn = (total <= points[:, None]).sum(1)
        return torch.from_numpy(np.minimum(drawn, total.shape[1] - 1))

    def _finite(self, logits: torch.Tensor, row: int) -> torch.Tensor:
        return finite(logits.unsqueeze(0), what="the outputs", model=self.model, rows=[row])[0]


def _plain(ids: Sequence[int], special: set[int]) -> list[int]:
    return [place for place, token in enumerate(ids) if token not in special]


def _random(seed: int, row: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([seed, row * 2 + stream], np.uint64)))


def collect(model: Model, objective: Objective, partial: Partial, pace: Pace) -> dict[str, Any]:
    """One row at a time, unpadded: the record of what was collected, which `partial` keeps as `fisher`."""
    done = partial.state.get("fisher") or {}
    rows = objective.feed.rows
    if done.get("done"):
        pace.tick(rows)
        return dict(done)
    places: dict[str, torch.nn.Parameter] = {}
    for place, parameter in model.module.named_parameters():  # a tied parameter comes once
        if place in model.names:
            places[place] = parameter
    totals: dict[str, Array] = {
        place: np.zeros(tuple(parameter.shape), np.float64) for place, parameter in places.items()
    }
    count = np.zeros(1, np.int64)
    start = 0
    arrays = partial.kept(done) if done.get("next") else None
    if arrays is not None and arrays.keys() == {"count", *totals}:
        for place, total in totals.items():
            total[...] = arrays[place]
        start = int(done["next"])
    moved: set[str] = set(done.get("moved", ()) if start else ())
    with _differentiable(model.module, places.values()):
        for row in range(rows):
            if row >= start:
                moved |= _add_row(model, objective, row, places, totals)
                if row + 1 < rows:
                    record = {"next": row + 1, "moved": sorted(moved)}
                    pace.keep(partial, "fisher", lambda: {"count": count, **totals}, record)
            pace.tick(1)
    results = {model.names[place]: (place, rows, total.shape) for place, total in totals.items()}
    record = partial.keep("fisher", {"count": count, **totals}) | {
        "results": {"fisher": results},
        "done": True,
        "still": sorted(model.names[place] for place in places if place not in moved),
    }
    partial.note(fisher=record)
    return record


def _add_row(
    model: Model,
    objective: Objective,
    row: int,
    places: dict[str, torch.nn.Parameter],
    totals: dict[str, Array],
) -> set[str]:
    import torch

    moved = set()
    losses = list(objective.losses(row))
    parameters = list(places.values())
    for number, loss in enumerate(losses):
        gradients: Any = torch.autograd.grad(
            loss, parameters, retain_graph=number + 1 < len(losses), allow_unused=True
        )
        for place, gradient in zip(places, gradients, strict=True):
            if gradient is None:  # no loss depends on it
                continue
            moved.add(place)
            total = totals[place]
            if gradient.is_sparse:
                held = gradient.coalesce()
                lines, values = held.indices()[0].numpy(), held.values().numpy()
                total[lines] += np.square(values)
            else:
                values = gradient.numpy()
                np.add(total, np.square(values), out=total)
            if not np.isfinite(values).all():
                raise NonFiniteError(
                    f"{model.label}: the gradient of row {row + 1} for {model.names[place]} holds NaN or Inf"
                )
    return moved


@contextmanager
def _differentiable(module: Any, parameters: Any) -> Iterator[None]:
    """Gradients of the parameters; those of embeddings as the few rows that a text touches."""
    import torch

    used: dict[int, int] = {}
    for part in module.modules():
        for parameter in part.parameters(recurse=False):
            used[id(parameter)] = used.get(id(parameter), 0) + 1
    sparse = [
        part
        for part in module.modules()
        if isinstance(part, torch.nn.Embedding) and used[id(part.weight)] == 1 and not part.sparse
    ]
    held = list(parameters)
    try:
        for parameter in held:
            parameter.requires_grad_(True)
        for part in sparse:
            part.sparse = True
        yield
    finally:
        for part in sparse:
            part.sparse = False
        for parameter in held:
            parameter.requires_grad_(False)
