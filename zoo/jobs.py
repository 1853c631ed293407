"""What there is to make: heads, encoders and Llamas, each under a name that covers all it depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from demo.fetch import digest

from zoo.cuts import Cut
from zoo.domains import Domain
from zoo.splits import Task
from zoo.tasks import LENGTH

BASE, MULTITASK = "base", "multitask"
WEIGHTS, HEAD_FILE = "model.safetensors", "head.safetensors"
HEAD = {"length": LENGTH, "inverse_penalty": 10.0}
ENCODER = {
    "epochs": 2,
    "batch": 16,
    "learning_rate": 1e-4,
    "warmup": 0.1,
    "weight_decay": 0.01,
    "length": LENGTH,
}
LLAMA = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "block": 128,
    "batch": 16,
    "epochs": 1,
    "warmup": 0.05,
    "weight_decay": 0.1,
}
WINDOW = LLAMA["block"] - 1
"""Tokens a Llama sees at most when it is scored: as many as in training, where a block's last one is only predicted."""
STRIDE = 64
LLAMA_BASE = {**LLAMA, "learning_rate": 2e-3}
LLAMA_TUNED = {**LLAMA, "learning_rate": 5e-4}
READ, LEARNED, STEP = 3000, 1000, 0.35
"""Guesses for the time left, on one core: encoder tokens a second, read and trained on; seconds of a Llama's step."""


@dataclass(frozen=True)
class Job:
    """One thing to make. `made_from` is what its folder's name covers; `seconds` is a guess on one free core."""

    name: str
    kind: str
    """head, encoder or llama"""
    over: tuple[str, ...]
    """The tasks or domains it learns."""
    seed: int
    made_from: Mapping[str, Any]
    folder: Path
    seconds: float
    needs: tuple[str, ...] = ()
    paths: Mapping[str, Any] = field(default_factory=dict)
    """Where it reads: base, rows by task, heads by task."""

    @property
    def role(self) -> str:
        """head, base, multitask or sibling."""
        if self.kind == "head":
            return "head"
        return BASE if self.seed == 0 else MULTITASK if len(self.over) > 1 else "sibling"


def key(what: Mapping[str, Any]) -> str:
    """A short name for all that a thing depends on."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


def tokens(task: Task) -> float:
    """About how many tokens of a text are read: 1.4 a word and two marks, at most LENGTH."""
    return sum(min(LENGTH, 1.4 * len(text.split()) + 2) for text in task.train.texts) / len(task.train)


def jobs(
    root: Path,
    base: Path,
    tasks: Sequence[Task],
    domains: Sequence[Domain],
    cut: Cut,
    rows: Mapping[str, Path],
) -> list[Job]:
    """Everything the cut wants, in the order in which it should be begun.

    First what much waits for, then by seed; the later seeds' multitask controls, which take longest, come last.
    """
    made_with = {"torch": version("torch"), "transformers": version("transformers")}
    start = {"base": digest(base / WEIGHTS), **made_with}
    heads = {t.name: _head(root, base, t, cut, rows, start) for t in tasks}
    llama = _llama_base(root, domains, cut, rows, made_with)
    found: list[Job] = [*heads.values(), *([llama] if llama else [])]
    last: list[Job] = []
    for seed in cut.seeds:
        siblings = [_encoder(root, base, [t], seed, cut, heads, start) for t in tasks]
        controls = [_encoder(root, base, tasks, seed, cut, heads, start)] if len(tasks) > 1 else []
        if llama:
            siblings += [_llama(root, llama, [d], seed, cut, rows) for d in domains]
            controls += [_llama(root, llama, domains, seed, cut, rows)] if len(domains) > 1 else []
        if seed == cut.seeds[0]:
            found += controls
        else:
            last += controls
        found += siblings
    return [*found, *sorted(last, key=lambda job: -job.seconds)]


def _head(
    root: Path, base: Path, task: Task, cut: Cut, rows: Mapping[str, Path], start: Mapping[str, Any]
) -> Job:
    settings = {**HEAD, "rows": cut.drawn}
    made_from = {**start, "data": task.digest, "settings": settings}
    return Job(
        f"head {task.name}",
        "head",
        (task.name,),
        0,
        made_from,
        root / "heads" / f"{task.name}-{key(made_from)}",
        seconds=(cut.drawn + cut.validation) * tokens(task) / READ,
        paths={"base": base, "rows": {task.name: rows[task.name]}, "heads": {}},
    )


def _encoder(
    root: Path,
    base: Path,
    tasks: Sequence[Task],
    seed: int,
    cut: Cut,
    heads: Mapping[str, Job],
    start: Mapping[str, Any],
) -> Job:
    names = tuple(t.name for t in tasks)
    made_from = {
        **start,
        "heads": {n: key(heads[n].made_from) for n in names},
        "settings": {**ENCODER, "rows": cut.drawn},
        "seed": seed,
    }
    title = names[0] if len(names) == 1 else MULTITASK
    return Job(
        f"{title} {seed}",
        "encoder",
        names,
        seed,
        made_from,
        root / "models" / f"minilm-{title}-{seed}-{key(made_from)}",
        seconds=sum(
            (ENCODER["epochs"] * cut.drawn / LEARNED + cut.validation / READ) * tokens(t) for t in tasks
        ),
        needs=tuple(heads[n].name for n in names),
        paths={
            "base": base,
            "rows": {n: heads[n].paths["rows"][n] for n in names},
            "heads": {n: heads[n].folder for n in names},
        },
    )


def _llama_base(
    root: Path, domains: Sequence[Domain], cut: Cut, rows: Mapping[str, Path], made_with: Mapping[str, Any]
) -> Job | None:
    if not domains:
        return None
    settings = {**LLAMA_BASE, "steps": cut.steps_base, "vocab_size": cut.vocabulary}
    made_from = {
        **made_with,
        "tokenizers": version("tokenizers"),
        "data": {d.name: d.digest for d in domains},
        "settings": settings,
        "seed": 0,
    }
    names = tuple(d.name for d in domains)
    return Job(
        "llama base",
        "llama",
        names,
        0,
        made_from,
        root / "models" / f"llama-base-{key(made_from)}",
        seconds=cut.steps_base * STEP + 30,
        paths={"rows": {n: rows[n] for n in names}},
    )


def _llama(
    root: Path, base: Job, domains: Sequence[Domain], seed: int, cut: Cut, rows: Mapping[str, Path]
) -> Job:
    names = tuple(d.name for d in domains)
    made_from = {
        "base": key(base.made_from),
        "data": {d.name: d.digest for d in domains},
        "settings": {**LLAMA_TUNED, "steps": cut.steps * len(names)},
        "seed": seed,
    }
    title = names[0] if len(names) == 1 else MULTITASK
    return Job(
        f"llama {title} {seed}",
        "llama",
        names,
        seed,
        made_from,
        root / "models" / f"llama-{title}-{seed}-{key(made_from)}",
        seconds=len(names) * cut.steps * STEP + 15,
        needs=(base.name,),
        paths={"base": base.folder, "rows": {n: rows[n] for n in base.over}},
    )
