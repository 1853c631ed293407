"""Fine-tuning the two siblings, on the spot, through a frozen head.

The same start, the same settings and a fixed seed each time. Only the upper three of the six layers are trained,
which saves a quarter of the time. A finished sibling is kept in the cache under a name that covers all it depends on.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from demo.fetch import appear, digest, intact
from demo.score import INVERSE_PENALTY, LENGTH, Head, Tick, Tokens, by_length, encode, load
from demo.tasks import Task

SETTINGS = {
    "layers": 3,
    "epochs": 2,
    "batch": 16,
    "learning_rate": 1e-4,
    "warmup": 0.1,
    "weight_decay": 0.01,
    "seed": 1,
}
WEIGHTS = "model.safetensors"
Batch = TypeVar("Batch")


def key(base: Path, data: str) -> str:
    """A name for the sibling of `base` trained on the data with this digest."""
    what = {"base": digest(base / WEIGHTS), "data": data, "torch": torch.__version__, **SETTINGS}
    what |= {"length": LENGTH, "penalty": INVERSE_PENALTY}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


def steps(tokens: Tokens) -> int:
    """How many rows training goes through."""
    return int(SETTINGS["epochs"]) * len(tokens)


def sibling(base: Path, task: Task, tokens: Tokens, head: Head, cache: Path, tick: Tick) -> Path:
    """The folder of the sibling, trained on the task's tokens now unless the cache holds it intact."""
    final = cache / f"{task.name}-{key(base, task.digest)}"
    if intact(final):
        tick(steps(tokens))
        return final
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".partial-") as temporary:
        here = Path(temporary) / "model"
        write(base, fine_tune(base, tokens, head, tick), here)
        appear(here, final)
    return final


def write(base: Path, model: Any, here: Path) -> None:
    """The folder of `base` again, as `here`, with the tensors that the trained encoder has."""
    shutil.copytree(base, here, ignore=shutil.ignore_patterns(WEIGHTS))
    tensors = load_file(base / WEIGHTS)
    trained = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    unknown = trained.keys() - tensors.keys()
    assert not unknown, f"the encoder has tensors that its file lacks: {sorted(unknown)}"
    save_file({**tensors, **trained}, here / WEIGHTS, metadata={"format": "pt"})


def fine_tune(base: Path, tokens: Tokens, head: Head, tick: Tick) -> Any:
    """The encoder of `base` after training on the rows; the head is not touched."""
    torch.manual_seed(int(SETTINGS["seed"]))
    model = load(base).train()
    model.requires_grad_(False)
    model.encoder.layer[-int(SETTINGS["layers"]) :].requires_grad_(True)

    def loss(rows: list[int]) -> Tensor:
        scores = head(encode(model, [tokens.ids[i] for i in rows]))
        return torch.nn.functional.binary_cross_entropy_with_logits(scores, tokens.labels[rows].float())

    batches = list(by_length(tokens.ids, int(SETTINGS["batch"])))
    descend(model, batches, loss, SETTINGS, lambda rows: tick(len(rows)))
    return model


def descend(
    model: Any,
    batches: Sequence[Batch],
    loss: Callable[[Batch], Tensor],
    settings: Mapping[str, float],
    tick: Callable[[Batch], None],
) -> None:
    """AdamW on what requires a gradient: warm-up, linear decay, each epoch over all batches in a drawn order.

    `settings` has epochs, learning_rate, warmup (a share of the steps) and weight_decay. The order is drawn from
    torch's generator, which is the caller's to seed.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trainable, lr=settings["learning_rate"], weight_decay=settings["weight_decay"], fused=True
    )
    epochs = int(settings["epochs"])
    total = epochs * len(batches)
    warm = max(1, int(settings["warmup"] * total))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (total - step) / max(1, total - warm))
    )
    for _ in range(epochs):
        for number in torch.randperm(len(batches)).tolist():
            value = loss(batches[number])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
            tick(batches[number])
