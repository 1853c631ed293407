"""Gradient descent on the coefficients of task vectors: AdaMerging's, aTLAS's and Self-Positioning's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from merganser._progress import Progress
from merganser.algebra import Weights
from merganser.recipe import as_saved
from merganser.search.groups import Group
from merganser.search.vector_recipe import Arrays

if TYPE_CHECKING:
    import torch

    from merganser.evaluate import Suite

WEIGHT_DECAY, MOST_NORM = 0.1, 1.0
"""Of aTLAS: AdamW's decay, and the norm that gradients are cut to."""


@dataclass(frozen=True)
class Method:
    """How coefficients are learned. `rate` is the learning rate, `start` the coefficients' first value."""

    name: str
    paper: str
    coefficients: str
    objective: str
    optimiser: str
    rate: float
    start: float
    steps: int
    batch: int


METHODS: dict[str, Method] = {
    one.name: one
    for one in (
        Method("adamerging", "P185", "tensor", "entropy", "Adam", 1e-3, 0.3, 500, 16),
        Method("atlas", "P094", "tensor", "labels", "AdamW", 1e-1, 0.0, 100, 128),
        Method("self_positioning", "P457", "task", "labels", "SGD", 1e-1, 1.0, 200, 32),
    )
}


@dataclass(frozen=True)
class Settings:
    """What is chosen about a descent."""

    method: Method
    entropy: bool
    steps: int
    rate: float
    batch: int
    start: float
    seed: int


def train(
    base: Arrays,
    taus: Sequence[Arrays],
    zero: Weights,
    found: Mapping[str, Group | None],
    suite: Suite,
    settings: Settings,
    progress: Progress | None,
) -> tuple[list[list[float]], list[float], Arrays]:
    """Coefficients [vectors, groups], losses by step, and the tensors that they make."""
    import torch

    from merganser.running import open_model
    from merganser.search.coefficients import Running, Vectors
    from merganser.search.objectives import Batches, Objective

    vectors = Vectors(base, taus, found)
    model = open_model(as_saved(zero, "float32"))
    running = Running(model)
    objectives = [Objective(task, model, settings.entropy) for task in suite.tasks]
    data = [Batches(one.rows, settings.batch, (settings.seed, k)) for k, one in enumerate(objectives)]
    head = _Positions(settings, len(taus), len(vectors.groups))
    step = _Stepper(settings, head.parameters)
    losses: list[float] = []
    share = 1.0 if settings.method.name == "adamerging" else 1.0 / len(objectives)
    for number in range(settings.steps):
        total = 0.0
        step.zero()
        for one, rows in zip(objectives, data, strict=True):
            # One task at a time, so that one task's activations are held; gradients add up.
            loss = running(vectors.merged(head()), partial(one, rows.next())) * share
            torch.autograd.backward(loss)
            total += float(loss.detach())
        step(number)
        losses.append(total)
        if progress is not None:
            progress(number + 1, settings.steps)
    with torch.no_grad():
        values = head()
        tensors = {name: tensor.numpy() for name, tensor in vectors.merged(values).items()}
    return values.detach().tolist(), losses, tensors


class _Positions:
    """From what is learned to coefficients [vectors, groups]."""

    def __init__(self, settings: Settings, vectors: int, count: int) -> None:
        import torch

        self.method = settings.method.name
        if self.method == "self_positioning":
            self.logits = torch.zeros(vectors, 1, requires_grad=True)
            self.scale = torch.full((1,), float(settings.start), requires_grad=True)
            self.parameters = [self.logits, self.scale]
        else:
            self.raw = torch.full((vectors, count), float(settings.start), requires_grad=True)
            self.parameters = [self.raw]

    def __call__(self) -> torch.Tensor:
        if self.method == "self_positioning":
            return self.logits.softmax(0) * self.scale
        return self.raw.clamp(0.0, 1.0) if self.method == "adamerging" else self.raw


class _Stepper:
    """The optimiser of a method, and its schedule."""

    def __init__(self, settings: Settings, parameters: list[torch.Tensor]) -> None:
        import torch

        self.settings = settings
        self.parameters = parameters
        kinds: dict[str, Callable[[], torch.optim.Optimizer]] = {
            "Adam": lambda: torch.optim.Adam(parameters, lr=settings.rate),
            "AdamW": lambda: torch.optim.AdamW(parameters, lr=settings.rate, weight_decay=WEIGHT_DECAY),
            "SGD": lambda: torch.optim.SGD(parameters, lr=settings.rate),
        }
        self.optimiser = kinds[settings.method.optimiser]()

    def zero(self) -> None:
        self.optimiser.zero_grad()

    def __call__(self, number: int) -> None:
        import torch

        if self.settings.method.optimiser == "AdamW":
            rate = self.settings.rate * (1 + math.cos(math.pi * number / self.settings.steps)) / 2
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            torch.nn.utils.clip_grad_norm_(self.parameters, MOST_NORM)
        self.optimiser.step()
