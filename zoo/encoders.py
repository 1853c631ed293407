"""Frozen heads on the base model's features, and encoders fine-tuned through them.

All six layers are trained, the embeddings stay. A head is fitted once on base features and never changes, so that any
two encoders, merged ones too, are scored through the same heads.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from demo import score, train
from demo.score import Tokens
from demo.tasks import Rows
from safetensors.torch import load_file, save_file
from torch import Tensor

from zoo.jobs import HEAD_FILE, Job
from zoo.splits import drawn

Tick = Callable[[float], None]


@dataclass(frozen=True)
class Head:
    """A linear head: logits are `features weight' + bias`; weight is [classes, hidden]."""

    weight: Tensor
    bias: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        return values @ self.weight.T + self.bias


def fit_head(values: Tensor, labels: Tensor, classes: int, inverse_penalty: float) -> Head:
    """Multinomial logistic regression: mean cross-entropy + |W|^2 / (2 C n), by L-BFGS in f64 (convex: no seed)."""
    x = values.double().clone()
    weight = torch.zeros(classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)

    def loss() -> Tensor:
        fit = torch.nn.functional.cross_entropy(x @ weight.T + bias, labels)
        return fit + weight.square().sum() / (2 * inverse_penalty * len(x))

    score.minimise(loss, [weight, bias])
    return Head(weight.detach().float(), bias.detach().float())


def save_head(head: Head, classes: tuple[str, ...], path: Path) -> None:
    """One safetensors file in the form that `merganser evaluate` reads."""
    metadata = {"labels": json.dumps(classes), "pooling": "mean", "normalize": "true"}
    save_file({"weight": head.weight, "bias": head.bias}, path, metadata=metadata)


def load_head(folder: Path) -> Head:
    """The head that a job left in `folder`."""
    tensors = load_file(folder / HEAD_FILE)
    return Head(tensors["weight"], tensors["bias"])


def read(path: Path) -> tuple[tuple[str, ...], dict[str, Rows]]:
    """Classes and rows of a task, as `zoo.prepare` wrote them."""
    data = json.loads(path.read_text(encoding="utf-8"))
    parts = {p: Rows(*map(tuple, zip(*data[p], strict=True))) for p in ("train", "validation")}
    return tuple(data["classes"]), parts


@torch.inference_mode()
def accuracy(model: Any, head: Head, tokens: Tokens) -> float:
    """Share of rows whose largest logit is the right one's."""
    right = head(score.features(model, tokens)).argmax(1) == tokens.labels
    return float(right.double().mean())


def make_head(job: Job, here: Path, tick: Tick) -> dict[str, Any]:
    """Fit a head and measure the base with it; returns what there is to tell."""
    (name,) = job.over
    settings = job.made_from["settings"]
    base = Path(job.paths["base"])
    classes, rows = read(Path(job.paths["rows"][name]))
    fixed = Rows(rows["train"].texts[: settings["rows"]], rows["train"].labels[: settings["rows"]])
    tokens = score.tokenize(base, fixed, settings["length"])
    model = score.load(base)
    done = 0

    def more(count: int) -> None:
        nonlocal done
        done += count
        tick(0.85 * done / len(tokens))

    values = score.features(model, tokens, more)
    head = fit_head(values, tokens.labels, len(classes), settings["inverse_penalty"])
    here.mkdir()
    save_head(head, classes, here / HEAD_FILE)
    held = score.tokenize(base, rows["validation"], settings["length"])
    fit = float((head(values).argmax(1) == tokens.labels).double().mean())
    return {"validation": {name: accuracy(model, head, held)}, "training_accuracy": fit}


def make_encoder(job: Job, here: Path, tick: Tick) -> dict[str, Any]:
    """Fine-tune the base on one task, or on all through each one's head, and write the model."""
    settings = job.made_from["settings"]
    base = Path(job.paths["base"])
    heads: dict[str, Head] = {}
    tokens: dict[str, Tokens] = {}
    held: dict[str, Tokens] = {}
    for name in job.over:
        _, rows = read(Path(job.paths["rows"][name]))
        heads[name] = load_head(Path(job.paths["heads"][name]))
        tokens[name] = score.tokenize(
            base, drawn(rows["train"], job.seed, settings["rows"]), settings["length"]
        )
        held[name] = score.tokenize(base, rows["validation"], settings["length"])
    model = fine_tune(base, tokens, heads, settings, job.seed, lambda share: tick(0.95 * share))
    train.write(base, model, here)
    model.eval()
    rows_seen = settings["epochs"] * sum(map(len, tokens.values()))
    return {
        "rows": rows_seen,
        "tokens": settings["epochs"] * sum(len(ids) for t in tokens.values() for ids in t.ids),
        "validation": {name: accuracy(model, heads[name], held[name]) for name in job.over},
    }


def fine_tune(
    base: Path,
    tokens: Mapping[str, Tokens],
    heads: Mapping[str, Head],
    settings: Mapping[str, Any],
    seed: int,
    tick: Tick,
) -> Any:
    """The encoder of `base` after training; every batch is of one task and goes through that task's frozen head."""
    torch.manual_seed(seed)
    model = score.load(base).train()
    model.requires_grad_(False)
    model.encoder.layer.requires_grad_(True)
    batches = [
        (name, rows) for name in tokens for rows in score.by_length(tokens[name].ids, settings["batch"])
    ]
    total, done = settings["epochs"] * len(batches), 0

    def loss(batch: tuple[str, list[int]]) -> Tensor:
        name, rows = batch
        logits = heads[name](score.encode(model, [tokens[name].ids[i] for i in rows]))
        return torch.nn.functional.cross_entropy(logits, tokens[name].labels[rows])

    def more(_: tuple[str, list[int]]) -> None:
        nonlocal done
        done += 1
        tick(done / total)

    train.descend(model, batches, loss, settings, more)
    return model
