"""`merganser rank-mixtures`: which parts of data are worth training on together."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from merganser.cli import _fitness, console

if TYPE_CHECKING:
    from merganser.search.mixtures import Proxies

NAME = "rank-mixtures"
EXAMPLE = "Example: merganser rank-mixtures web code books --suite validation.yaml --sets mixtures.yaml"


def command(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODELS",
            help="Models trained from one base on separate parts of data; PATH or PART=PATH.",
        ),
    ],
    suite: Annotated[Path, typer.Option(help="The suite that mixtures are judged on.")],
    sets: Annotated[
        Path | None,
        typer.Option(help="Mixtures to score, with true scores where known (default: every set)."),
    ] = None,
    fitness: _fitness.FITNESS = "mean",
    metric: _fitness.METRIC = None,
    journal: Annotated[Path | None, typer.Option(help="Keep evaluations in this file (.jsonl).")] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap of rank correlations.", min=0)] = 0,
    threads: _fitness.THREADS = 0,
    memory: _fitness.MEMORY = None,
    allow_pickle: console.ALLOW_PICKLE = False,
    quiet: _fitness.QUIET = False,
    as_json: console.JSON = False,
) -> None:
    """Score parameter averages of models, each trained on a part of data, in place of a model for each mixture.

    Nothing is written but --journal. Needs the `models` extra.
    """
    from merganser import open as open_weights
    from merganser.checkpoint.names import is_index
    from merganser.errors import RequestError
    from merganser.search.mixtures import rank_mixtures, read_sets

    opened = {}
    for one in models:
        name, mark, path = one.partition("=")
        if not mark or os.path.exists(one):
            home, base = os.path.split(os.path.normpath(one))  # an index is called as its model's directory
            name, path = os.path.basename(home) if is_index(base) and home else base, one
        if name in opened:
            raise RequestError(f"two parts are called {name!r}; name them: PART=PATH")
        opened[name] = open_weights(path, name=name, allow_pickle=allow_pickle)
    goal = _fitness.fitness_of(suite, fitness, metric, threads, memory)
    wanted = None if sets is None else read_sets(sets, list(opened))
    with console.progress(not quiet and not as_json, "averaging", "sets") as progress:
        found = rank_mixtures(opened, goal, wanted, seed=seed, journal=journal, progress=progress)
    if as_json:
        console.print_json(found.as_json())
        return
    if quiet:
        return
    columns: dict[str, Callable[[Proxies], float | None]] = {
        "average": lambda one: one.average.fitness,
        "mean of parts": lambda one: one.mean,
        "ensemble": lambda one: one.ensemble,
        "true": lambda one: one.mixture.true,
    }
    shown = {name: of for name, of in columns.items() if any(of(one) is not None for one in found.rows)}
    console.table(
        ("parts", *shown),
        [(one.mixture.name, *(_number(of(one)) for of in shown.values())) for one in found.rows],
    )
    for row in found.rows:
        if row.average.failed:
            console.say(f"{row.mixture.name} failed: {row.average.failed}")
    for proxy in found.agreement:
        interval = "" if proxy.low is None else f" (95 % {proxy.low:.2f} to {proxy.high:.2f})"
        console.say(
            f"\n{proxy.proxy} against true scores, {proxy.count} sets: "
            f"Spearman {_rank(proxy.spearman)}{interval}, Kendall {_rank(proxy.kendall)}"
        )


def _number(value: float | None) -> str:
    return "-" if value is None else _fitness.number(value)


def _rank(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
