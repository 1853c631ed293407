"""A running model that lies between two checkpoints, entry by entry, and its gradient in that place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser.algebra.selection import matcher
from merganser.architectures.meaning import differences
from merganser.errors import RequestError, listing
from merganser.running import Model
from merganser.search._texts import Texts

if TYPE_CHECKING:
    import torch

Flat = np.ndarray[Any, Any]


class Grafted:
    """base + mask * (tuned - base), put into the base's module. Masks are flat, over all chosen parameters.

    `tensors` maps the checkpoint's names to their stretch of the mask and their shape; tied names share a stretch.
    """

    def __init__(self, base: Model, tuned: Model, patterns: Sequence[str]) -> None:
        import torch

        _same(base, tuned)
        self.model = copy(base)  # other weights are put into it, and errors are to say so
        self.model.label = f"{base.label} with entries of {tuned.label}"
        tests = [matcher(pattern) for pattern in patterns]
        theirs = dict(tuned.module.named_parameters(remove_duplicate=False))
        self.places: list[tuple[torch.nn.Parameter, slice]] = []
        self.tensors: dict[str, tuple[slice, tuple[int, ...]]] = {}
        old, new, end = [], [], 0
        seen: dict[int, slice] = {}
        for place, parameter in base.module.named_parameters(remove_duplicate=False):
            name = base.names.get(place)
            if name is None or not any(test(name) for test in tests):
                continue
            stretch = seen.get(id(parameter))
            if stretch is None:
                stretch = slice(end, end + parameter.numel())
                end = stretch.stop
                seen[id(parameter)] = stretch
                self.places.append((parameter, stretch))
                old.append(parameter.detach().reshape(-1).clone())
                new.append(theirs[place].detach().reshape(-1))
            self.tensors[name] = (stretch, tuple(parameter.shape))
        if not old:
            raise RequestError(f"no parameter of {base.label} matches {listing(patterns)}")
        self.base = torch.cat(old)
        self.change = torch.cat(new) - self.base
        if not bool(self.change.any()):
            raise RequestError(
                f"{tuned.label} and {base.label} do not differ, so there is nothing to localize"
            )

    @property
    def size(self) -> int:
        """How many entries a mask has."""
        return len(self.base)

    def put(self, mask: torch.Tensor) -> None:
        """Put the grafted values into the module."""
        import torch

        values = torch.where(mask == 1, self.base + self.change, self.base + mask * self.change)
        with torch.no_grad():
            for parameter, stretch in self.places:
                parameter.copy_(values[stretch].view(parameter.shape))

    def gradient(self, mask: torch.Tensor, texts: Texts, rows: Sequence[int]) -> torch.Tensor:
        """The gradient of the mean loss over some rows by the mask, flat."""
        import torch

        self.put(mask)
        found, count = torch.zeros_like(mask), 0
        parameters = [parameter.requires_grad_(True) for parameter, _ in self.places]
        try:
            for part in texts.batches(rows):
                loss, many, _ = texts.loss(self.model, part)
                grads = torch.autograd.grad(loss, parameters, allow_unused=True)
                count += many
                for (_, stretch), grad in zip(self.places, grads, strict=True):
                    if grad is not None:
                        found[stretch] += grad.reshape(-1)
        finally:
            for parameter in parameters:
                parameter.requires_grad_(False)
        return found * self.change / max(count, 1)

    def score(self, mask: torch.Tensor, texts: Texts) -> dict[str, float]:
        """What the grafted model makes of the texts."""
        self.put(mask)
        return texts.score(self.model)


def learned(
    grafted: Grafted,
    texts: Texts,
    count: int,
    *,
    steps: int,
    rate: float | None,
    bias: float,
    rows_a_step: int,
    seed: int,
    progress: Callable[[int], None],
) -> torch.Tensor:
    """A mask of at most `count` entries, found as P084 does from that of the largest changes (f32, 0 and 1)."""
    import torch

    magnitudes = grafted.change.abs()
    start = torch.from_numpy(largest(magnitudes.numpy(), count)).float()
    sign = 1 - 2 * start
    logits = torch.full_like(start, -bias)
    order = np.random.default_rng(seed).permutation(len(texts))
    best, least = start, grafted.score(start, texts)["loss"]
    last = start
    for step in range(steps):
        at = (step * rows_a_step) % len(order)
        rows = sorted(map(int, np.roll(order, -at)[:rows_a_step]))
        share = logits.sigmoid()
        slope = grafted.gradient(start + sign * share, texts, rows) * sign * share * (1 - share)
        if rate is None:
            steepest = float(slope.abs().max())
            if steepest == 0.0:
                break
            rate = bias / steepest
        logits = (logits - rate * slope).clamp(
            -bias, bias
        )  # further out the sigmoid would let nothing come back
        mask = _rounded(logits, start, magnitudes, count)
        if not torch.equal(mask, last):
            last = mask
            loss = grafted.score(mask, texts)["loss"]
            if loss < least:
                best, least = mask, loss
        progress(step + 1)
    return best


def _rounded(logits: torch.Tensor, start: torch.Tensor, magnitudes: torch.Tensor, count: int) -> torch.Tensor:
    """Entries whose mask is nearer to 1; where they are too many, those nearest, of equal ones the largest changes."""
    import torch

    # gamma = sigmoid(-S) where the mask began at 1, sigmoid(S) elsewhere
    inside = torch.where(start > 0, -logits, logits)
    kept = (inside > 0).numpy()
    if kept.sum() > count:
        places = np.flatnonzero(kept)
        order = np.lexsort((places, -magnitudes.numpy()[places], -inside.numpy()[places]))
        kept = np.zeros_like(kept)
        kept[places[order[:count]]] = True
    return torch.from_numpy(kept).float()


def largest(values: Flat, count: int) -> Flat:
    """A mask of exactly `count` entries: the largest, of equal ones the first."""
    kept = np.zeros(len(values), bool)
    if count:
        least = np.partition(values, len(values) - count)[len(values) - count]
        kept[values > least] = True
        kept[np.flatnonzero(values == least)[: count - int(kept.sum())]] = True
    return kept


def _same(base: Model, tuned: Model) -> None:
    for model in (base, tuned):
        if model.unnamed:
            raise RequestError(
                f"{model.label}: transformers stores {listing(model.unnamed)} otherwise than the checkpoint; a mask "
                "over them cannot be written"
            )
    if found := differences(base.module.config.to_dict(), tuned.module.config.to_dict()):
        told = "; ".join(one.told(base.label, tuned.label) for one in found)
        raise RequestError(
            f"{tuned.label} is no fine-tune of {base.label} by config.json: {told}. A mask is judged under the base's "
            "config; if the same is meant, give both the same value there"
        )
    mine, theirs = (
        {
            place: (model.names[place], tuple(value.shape))
            for place, value in model.module.named_parameters(remove_duplicate=False)
            if place in model.names
        }
        for model in (base, tuned)
    )
    if mine != theirs:
        wrong = sorted(place for place in mine.keys() | theirs.keys() if mine.get(place) != theirs.get(place))
        raise RequestError(
            f"{tuned.label} is no fine-tune of {base.label}: {listing(wrong)} differ in name or shape"
        )
