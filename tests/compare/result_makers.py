"""Results of models that do not exist, for the tests of comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from merganser.compare import Run, Samples

LABELS = ("negative", "neutral", "positive")


def judged(right: Sequence[Any], loss: Sequence[Any] | None = None, **more: Any) -> Samples:
    """A classification task of which only right and wrong (and the loss) are known."""
    count = len(right)
    columns = {
        "id": list(range(count)),
        "input_digest": [f"d{k}" for k in range(count)],
        "right": list(right),
    }
    return Samples.of("classification", columns | ({} if loss is None else {"loss": list(loss)}) | more)


def run(name: str, **tasks: Samples) -> Run:
    return Run(name, tasks, identity=f"weights of {name}", suite="suite", suite_digest="0")


def classified(seed: int, skill: float, count: int = 400, data: int = 0) -> Samples:
    """Three classes; models of one `data` meet the same samples, some of them harder."""
    return Samples.of("classification", classification(seed, skill, count, data))


def classification(seed: int, skill: float, count: int = 400, data: int = 0) -> dict[str, list[Any]]:
    shared, random = np.random.default_rng([1, data]), np.random.default_rng([2, seed, data])
    label = shared.integers(0, len(LABELS), count)
    ease = shared.standard_normal(count)
    logits = 0.7 * random.standard_normal((count, len(LABELS)))
    logits[np.arange(count), label] += skill + 0.8 * ease
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    said = logs.argmax(axis=1)
    return {
        "id": [f"{data}-{k}" for k in range(count)],
        "input_digest": [f"{data}:{k:04x}" for k in range(count)],
        "answer": [LABELS[k] for k in label],
        "prediction": [LABELS[k] for k in said],
        "right": [bool(x) for x in said == label],
        "loss": (-logs[np.arange(count), label]).tolist(),
        "choices": [list(LABELS)] * count,
        "log_probabilities": logs.tolist(),
    }


def perplexity(seed: int, skill: float, count: int = 60) -> Samples:
    shared, random = np.random.default_rng(3), np.random.default_rng([4, seed])
    size = shared.integers(40, 400, count)
    nats = size * (1.5 - 0.1 * skill) * np.exp(0.2 * shared.standard_normal(count))
    nats *= np.exp(0.02 * random.standard_normal(count))
    columns = {"id": range(count), "nats": nats, "bytes": size, "tokens": size // 4}
    return Samples.of("perplexity", {name: list(values) for name, values in columns.items()})


def similarity(seed: int, skill: float, count: int = 80) -> Samples:
    shared, random = np.random.default_rng(5), np.random.default_rng([6, seed])
    target = np.round(shared.uniform(0, 5, count))
    guess = skill * target + shared.standard_normal(count) + 0.3 * random.standard_normal(count)
    columns = {"id": range(count), "similarity": np.round(guess, 1), "target": target}
    return Samples.of("similarity", {name: list(values) for name, values in columns.items()})
