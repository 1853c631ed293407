"""Suites: tasks written down as YAML. Nothing in a suite runs code."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merganser import document
from merganser.checkpoint.layout import at_home
from merganser.errors import RequestError, did_you_mean
from merganser.evaluate.classification import Classification
from merganser.evaluate.generation import Generation
from merganser.evaluate.multiple_choice import MultipleChoice
from merganser.evaluate.perplexity import Perplexity
from merganser.evaluate.settings import read
from merganser.evaluate.similarity import Similarity
from merganser.evaluate.task import Prepared, Task, digest

if TYPE_CHECKING:
    from merganser.running import Model

KINDS: dict[str, type[Task]] = {
    cls.kind: cls for cls in (Classification, MultipleChoice, Generation, Perplexity, Similarity)
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")


@dataclass(frozen=True)
class Suite:
    """Tasks that a model is scored on. `name` is what results call the suite."""

    name: str
    tasks: tuple[Task, ...]

    @classmethod
    def open(cls, source: str | os.PathLike[str] | Mapping[str, Any], *, folder: Path | None = None) -> Suite:
        """Read a suite: a YAML file, or a mapping already read, whose paths are relative to `folder` (default: here).

        Paths may be absolute and may lead up: a suite is its user's own words. (Paths in rows of data may
        not.) Raises `RequestError` naming the place, as in `tasks[1].colum`, for what it does not understand.
        """
        if isinstance(source, Mapping):
            return _suite(dict(source), "suite", folder or Path())
        path = at_home(source)
        if path.is_dir():
            raise RequestError(f"{path}: is a directory; a suite is a YAML file")
        raw = document.parse(document.read_file(path, "suite"), str(path), "suite")
        return _suite(raw, str(path), path.parent)

    def check(self, model: Model | None = None) -> list[Prepared]:
        """Find what cannot work before anything runs: files, rows and labels, and with a model all that depends on it.

        Raises `RequestError` naming file and row. Gives the tasks ready to run on the model.
        """
        for task in self.tasks:
            task.check()
        return [] if model is None else [task.prepare(model) for task in self.tasks]

    @property
    def digest(self) -> str:
        """Of the tasks' settings and what lies in their files."""
        return digest(self.name, [task.described() for task in self.tasks])


def _suite(raw: Any, source: str, folder: Path) -> Suite:
    if not isinstance(raw, dict):
        raise RequestError(f"{source}: a suite is a mapping with name and tasks")
    for key in raw:
        if key not in ("name", "tasks"):
            raise RequestError(
                f"{source}: unknown key {key!r}{did_you_mean(key, ('name', 'tasks'))}; known are name, tasks"
            )
    name = raw.get("name", Path(source).stem)
    if not isinstance(name, str) or not name:
        raise RequestError(f"{source}: name: expected text, not {name!r}")
    written = raw.get("tasks")
    if not isinstance(written, list) or not written:
        raise RequestError(f"{source}: tasks: expected a list of tasks")
    tasks: list[Task] = []
    for number, one in enumerate(written):
        tasks.append(_task(one, f"{source}: tasks[{number}]", folder))
        twins = [task.name for task in tasks[:-1] if task.name.casefold() == tasks[-1].name.casefold()]
        if twins:
            raise RequestError(
                f"{source}: tasks[{number}].name: another task is called {twins[0]!r} (they name the files of results)"
            )
    return Suite(name, tuple(tasks))


def _task(raw: Any, place: str, folder: Path) -> Task:
    if not isinstance(raw, dict):
        raise RequestError(f"{place}: expected a mapping with name, kind and data, not {raw!r}")
    settings = dict(raw)
    kind = settings.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        hint = did_you_mean(kind, KINDS) if isinstance(kind, str) else ""
        given = "needs 'kind'" if kind is None else f"unknown kind {kind!r}{hint}"
        raise RequestError(f"{place}: {given}; kinds are {', '.join(KINDS)}")
    task = read(KINDS[kind], settings, place, folder=folder)
    if not _NAME.fullmatch(task.name):
        raise RequestError(
            f"{place}.name: expected letters, digits and . _ + - (it becomes the name of a file), not {task.name!r}"
        )
    return task
