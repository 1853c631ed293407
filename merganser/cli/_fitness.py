"""What the commands that choose by scores share: the options of a fitness, and tables of scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from merganser.cli import _saving, console
from merganser.errors import RequestError

if TYPE_CHECKING:
    from merganser.search import SuiteFitness
    from merganser.search.evaluator import Score

SUITE = Annotated[
    Path,
    typer.Argument(metavar="SUITE", help="A suite of tasks on validation data, never on the test split."),
]
OUT = Annotated[Path, typer.Argument(metavar="OUT.yaml", help="The recipe to write.")]
FITNESS = Annotated[
    str,
    typer.Option(
        help="How tasks are combined: mean, worst, or weights by task.", metavar="mean|worst|a=2,b=1"
    ),
]
METRIC = Annotated[
    str | None,
    typer.Option(
        help="The metric of all tasks, or by task (default: each kind's).", metavar="NAME|a=loss,b=f1"
    ),
]
OVERWRITE = Annotated[bool, typer.Option("--overwrite", help="Replace the file OUT.yaml.")]
THREADS = Annotated[int, typer.Option(help="Threads of torch; 0 is its own choice.", min=0)]
MEMORY = Annotated[
    str | None,
    typer.Option(
        help="What the process may hold while a merge is computed in memory, as 8GiB (default: 1 GiB more than then)."
    ),
]
QUIET = _saving.QUIET


def use_threads(threads: int) -> None:
    """Say torch how many threads; 0 leaves its own choice."""
    if threads:
        import torch

        torch.set_num_threads(threads)


def fitness_of(
    suite: Path, fitness: str, metric: str | None, threads: int, memory: str | None = None
) -> SuiteFitness:
    """The fitness that the options say. Raises `RequestError` naming the option."""
    from merganser.running import require
    from merganser.search import SuiteFitness
    from merganser.search.live import Live

    combine: str | dict[str, float] = fitness
    if "=" in fitness:
        combine = {}
        for name, text in _pairs(fitness, "--fitness").items():
            try:
                combine[name] = float(text)
            except ValueError:
                raise RequestError(f"--fitness: the weight of {name!r} is {text!r}, not a number") from None
    made = SuiteFitness(
        suite,
        combine=combine,
        metric=_pairs(metric, "--metric") if metric and "=" in metric else metric,
        live=Live(None if memory is None else console.parse_size(memory, "--memory")),
    )
    require("torch", "transformers", "pyarrow")
    use_threads(threads)
    return made


def _pairs(text: str, option: str) -> dict[str, str]:
    found = {}
    for part in text.split(","):
        name, mark, value = part.partition("=")
        if not mark or not name.strip() or not value.strip() or name.strip() in found:
            raise RequestError(f"{option}: expected task=value,task=value with each task once, not {text!r}")
        found[name.strip()] = value.strip()
    return found


def scores(what: str, rows: Sequence[tuple[str, Score, Score | None]]) -> None:
    """A table: the fitness, each task's score, and the fitness on the test suite where there is one."""
    tasks = list(dict.fromkeys(task for _, score, _ in rows for task in score.tasks))
    tested = any(test is not None for *_, test in rows)
    console.table(
        (what, "fitness", *tasks, *(["test"] if tested else [])),
        [
            (
                name,
                number(score.fitness),
                *(number(score.tasks.get(task)) for task in tasks),
                *([number(None if test is None else test.fitness)] if tested else []),
            )
            for name, score, test in rows
        ],
    )
    for name, score, _ in rows:
        if score.failed:
            console.say(f"{name} failed: {score.failed}")


def number(value: float | None) -> str:
    """A score, four digits after the point."""
    return "-" if value is None else "failed" if value == -math.inf else f"{value:.4f}"
