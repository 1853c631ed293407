"""What the zoo's models are judged on: suites for `merganser evaluate`, and rows to observe models over.

suites/minilm.{validation,test}.yaml and llama.{validation,test}.yaml, their data and heads beside them;
calibration/NAME.jsonl holds 200 training texts a task or domain without labels, NAME.labelled.jsonl the same with them,
train/NAME.jsonl all training rows.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from demo.fetch import appear
from demo.tasks import Rows

from zoo.domains import Domain
from zoo.jobs import HEAD_FILE, STRIDE, WINDOW
from zoo.splits import Task
from zoo.tasks import LENGTH

CALIBRATION = 200


def write(folder: Path, tasks: Sequence[Task], domains: Sequence[Domain], heads: Mapping[str, Path]) -> None:
    """Write the folder, whole or not at all."""
    here = folder.with_name(".partial-suites")
    shutil.rmtree(here, ignore_errors=True)
    for inside in ("data", "heads", "calibration", "train"):
        (here / inside).mkdir(parents=True)
    for task in tasks:
        shutil.copyfile(heads[task.name] / HEAD_FILE, here / "heads" / f"{task.name}.safetensors")
        few = Rows(task.train.texts[:CALIBRATION], task.train.labels[:CALIBRATION])
        _lines(here / "calibration" / f"{task.name}.jsonl", ({"text": text} for text in few.texts))
        _lines(here / "calibration" / f"{task.name}.labelled.jsonl", _labelled(few, task.classes))
        _lines(here / "train" / f"{task.name}.jsonl", _labelled(task.train, task.classes))
    for domain in domains:
        _lines(here / "calibration" / f"{domain.name}.jsonl", _plain(domain.train[:CALIBRATION]))
        _lines(here / "train" / f"{domain.name}.jsonl", _plain(domain.train))
    for part in ("validation", "test"):
        for task in tasks:
            _lines(here / "data" / f"{task.name}.{part}.jsonl", _labelled(getattr(task, part), task.classes))
        for domain in domains:
            _lines(here / "data" / f"{domain.name}.{part}.jsonl", _plain(getattr(domain, part)))
        if tasks:
            _suite(here / f"minilm.{part}.yaml", f"MiniLM, {part}", [_classification(t, part) for t in tasks])
        if domains:
            _suite(here / f"llama.{part}.yaml", f"Llama, {part}", [_perplexity(d, part) for d in domains])
    appear(here, folder)


def _classification(task: Task, part: str) -> dict[str, Any]:
    return {
        "name": task.name,
        "kind": "classification",
        "data": f"data/{task.name}.{part}.jsonl",
        "head": f"heads/{task.name}.safetensors",
        "max_length": LENGTH,
        "labels": list(task.classes),
    }


def _perplexity(domain: Domain, part: str) -> dict[str, Any]:
    return {
        "name": domain.name,
        "kind": "perplexity",
        "data": f"data/{domain.name}.{part}.jsonl",
        "window": WINDOW,
        "stride": STRIDE,
    }


def _suite(path: Path, name: str, tasks: list[dict[str, Any]]) -> None:
    path.write_text(yaml.safe_dump({"name": name, "tasks": tasks}, sort_keys=False))


def _labelled(rows: Rows, classes: tuple[str, ...]) -> Iterable[dict[str, str]]:
    for number, (text, label) in enumerate(zip(rows.texts, rows.labels, strict=True)):
        yield {"id": _id(number, text), "text": text, "label": classes[label]}


def _plain(texts: Iterable[str]) -> Iterable[dict[str, str]]:
    for number, text in enumerate(texts):
        yield {"id": _id(number, text), "text": text}


def _id(number: int, text: str) -> str:
    """Of the text, and of its place: official test sets hold some texts twice."""
    return f"{number}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _lines(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
