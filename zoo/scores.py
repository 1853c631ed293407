"""Scoring parents and merges on the suites: one result folder for each, kept, so that a report goes on where it was.

Nothing of a merge is written but its results: it is computed in memory and scored by `merganser.evaluate`.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from demo.fetch import DemoError

from zoo import by_data
from zoo.candidates import BY_NAME

STATISTICS_ROWS = 200
METRIC = {"minilm": "accuracy", "llama": "bits_per_byte"}


@dataclass(frozen=True)
class Zoo:
    """The finished zoo: its folder and zoo.json."""

    root: Path
    index: Mapping[str, Any]

    @classmethod
    def open(cls, root: Path) -> Zoo:
        """Read zoo.json; `DemoError` where the zoo is not built."""
        try:
            return cls(root, json.loads((root / "zoo.json").read_text(encoding="utf-8")))
        except OSError:
            raise DemoError(f"there is no zoo in {root}: run make zoo first") from None

    def over(self, family: str) -> list[str]:
        """The tasks or domains of a family, in order."""
        return list(self.index["tasks" if family == "minilm" else "domains"])

    def models(self, family: str, role: str, seed: int | None = None) -> list[dict[str, Any]]:
        """The models of a family and role, siblings in the order of their tasks."""
        found = [
            m
            for m in self.index["models"]
            if m["family"] == family and m["role"] == role and seed in (None, m["seed"])
        ]
        order = self.over(family)
        return sorted(found, key=lambda m: order.index(m["over"][0]) if role == "sibling" else 0)

    def seeds(self, family: str) -> list[int]:
        """The seeds of which all siblings are there."""
        wanted = len(self.over(family))
        seeds = sorted({m["seed"] for m in self.models(family, "sibling")})
        return [seed for seed in seeds if len(self.models(family, "sibling", seed)) == wanted]

    def suite(self, family: str, part: str) -> Path:
        """The suite of a family: part is validation or test."""
        return self.root / "suites" / f"{family}.{part}.yaml"


@dataclass(frozen=True)
class Score:
    """Something to score. `what` is a role of the zoo (base, sibling, multitask) or a candidate's name."""

    family: str
    part: str
    what: str
    seed: int
    setting: Mapping[str, Any]
    parents: tuple[str, ...]
    """Folders: the base first, then the siblings; of a role the model alone."""
    tasks: tuple[str, ...]
    """Those of the suite that are scored."""
    root: Path
    made_from: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        """Where its results are kept."""
        text = json.dumps(self.made_from, sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        stem = self.what.replace(", ", "-").replace(" ", "-")
        return self.root / "scores" / f"{self.family}-{self.part}-{stem}-{self.seed}-{key}"

    @property
    def name(self) -> str:
        """What progress shows."""
        return f"{self.family} {self.what} {self.seed} {self.part} {dict(self.setting) or ''}".strip()

    def metrics(self, name: str | None = None) -> dict[str, float] | None:
        """The score by task, or another metric by its name; None while it is missing."""
        try:
            found = json.loads((self.folder / "results.json").read_text(encoding="utf-8"))
        except OSError:
            return None
        wanted = name or METRIC[self.family]
        return {task: one["metrics"][wanted] for task, one in found["tasks"].items()}

    def mean(self) -> float | None:
        """The mean over tasks."""
        found = self.metrics()
        return None if found is None else sum(found.values()) / len(found)


def score_of(
    zoo: Zoo,
    family: str,
    part: str,
    what: str,
    models: Sequence[Mapping[str, Any]],
    seed: int,
    setting: Mapping[str, Any] | None = None,
    tasks: Sequence[str] = (),
) -> Score:
    """A score of models of the zoo."""
    from merganser._version import __version__

    suite = zoo.suite(family, part)
    wanted = tuple(tasks or zoo.over(family))
    candidate = BY_NAME.get(what)
    made_from = {
        "merganser": __version__,
        "what": what,
        "method": [
            candidate.method,
            candidate.statistics and [candidate.statistics, STATISTICS_ROWS],
            dict(candidate.learned or {}),
        ]
        if candidate
        else None,
        "setting": dict(setting or {}),
        "models": [m["sha256"] for m in models],
        "suite": hashlib.sha256(suite.read_bytes()).hexdigest(),
        "data": {
            name: zoo.index["tasks" if family == "minilm" else "domains"][name]["digest"] for name in wanted
        },
        "tasks": wanted,
    }
    folders = tuple(str((zoo.root / m["folder"]).resolve()) for m in models)
    return Score(family, part, what, seed, dict(setting or {}), folders, wanted, zoo.root, made_from)


def run(scores: Sequence[Score], workers: int, told: Callable[[Score, float, int], None]) -> list[str]:
    """Score what is not there, in order; `told` gets each finished one, its seconds and how many are left.

    Returns a line for each that failed: the others go on.
    """
    waiting = [score for score in {one.folder: one for one in scores}.values() if score.metrics() is None]
    failed: list[str] = []
    if workers == 0:
        for number, score in enumerate(waiting, 1):
            try:
                seconds = make(score)
            except Exception as problem:
                failed.append(_failure(score, problem))
                continue
            told(score, seconds, len(waiting) - number)
        return failed
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _begin)
    running: dict[Future[float], Score] = {}
    left = len(waiting)
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                score = waiting.pop(0)
                running[pool.submit(make, score)] = score
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                score, left = running.pop(future), left - 1
                problem = future.exception()
                if problem is None:
                    told(score, future.result(), left)
                else:
                    failed.append(_failure(score, problem))
    finally:
        for process in list(getattr(pool, "_processes", None) or {}):
            pool._processes[process].terminate()
        pool.shutdown(wait=False, cancel_futures=True)
    return failed


def _failure(score: Score, problem: BaseException) -> str:
    if isinstance(problem, BrokenExecutor):
        raise DemoError(f"{score.name}: a process was ended from outside") from problem
    return f"{score.name}: {type(problem).__name__}: {problem}"


def _begin() -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)


def make(score: Score) -> float:
    """Score it; seconds."""
    from merganser.evaluate import Results, evaluate

    began = time.perf_counter()
    tasks = {}
    first = None
    for models, names in _models(score):
        found = evaluate(models, _suite(score, names))
        first = first or found
        tasks |= found.tasks
    assert first is not None
    first = Results(first.model, first.suite, {name: tasks[name] for name in score.tasks})
    score.folder.parent.mkdir(exist_ok=True)
    first.save(score.folder, overwrite=True)
    return time.perf_counter() - began


def _suite(score: Score, names: Sequence[str]) -> Any:
    from merganser.evaluate import Suite

    opened = Suite.open(score.root / "suites" / f"{score.family}.{score.part}.yaml")
    return replace(opened, tasks=tuple(task for task in opened.tasks if task.name in names))


def _models(score: Score) -> Iterator[tuple[Any, Sequence[str]]]:
    """What is run, and the tasks it is scored on."""
    from merganser.running import open_model

    candidate = BY_NAME.get(score.what)
    if candidate is None:
        yield open_model(score.parents[0]), score.tasks
    elif candidate.per_task:
        for number, task in enumerate(score.tasks, 1):  # 0 is the merge without a mask
            yield open_model(merged(score, {"task": number})), [task]
    else:
        yield open_model(merged(score, {})), score.tasks


def merged(score: Score, more: Mapping[str, Any]) -> Any:
    """The merge, lazily."""
    import merganser as mg
    from merganser import methods

    candidate = BY_NAME[score.what]
    if candidate.learned is not None:
        return by_data.found(score, candidate.learned)
    base, *models = (mg.open(path, name=f"model {n}") for n, path in enumerate(score.parents))
    setting = {**score.setting, **more}
    if candidate.statistics is not None:
        setting["statistics"] = [
            mg.open(
                _statistics(score, path, task, candidate.statistics), name=f"{task} {candidate.statistics}"
            )
            for path, task in zip(score.parents[1:], score.tasks, strict=True)
        ]
    return methods.get(candidate.method)(base, models, **setting)


def _statistics(score: Score, model: str, task: str, kind: str) -> Path:
    """Fisher information or Gram matrices of a parent over its own task's calibration rows."""
    from merganser.observe import observe

    out = score.root / "statistics" / f"{Path(model).name}-{kind}-{STATISTICS_ROWS}"
    if not (out / kind).is_dir():
        out.parent.mkdir(exist_ok=True)
        data = score.root / "suites" / "calibration" / f"{task}.jsonl"
        head = score.root / "suites" / "heads" / f"{task}.safetensors"
        minilm = score.family == "minilm"
        more = {"head": head} if minilm and kind == "fisher" else {}
        observe(
            model, data, out, collect=[kind], max_length=48 if minilm else 127, rows=STATISTICS_ROWS, **more
        )
    return out / kind
