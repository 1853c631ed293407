"""`merganser soup`: averages of fine-tunes of one base, chosen by scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from merganser.cli import _fitness, console

NAME = "soup"
EXAMPLE = "Example: merganser soup run0 run1 run2 soup.yaml --suite validation.yaml"


def command(
    arguments: Annotated[
        list[str],
        typer.Argument(metavar="MODELS... OUT.yaml", help="Fine-tunes of one base, and the recipe to write."),
    ],
    suite: Annotated[
        Path, typer.Option(help="A suite of tasks on validation data, never on the test split.")
    ],
    by: Annotated[str, typer.Option(help="Which are averaged.", metavar="greedy|uniform")] = "greedy",
    allow: Annotated[
        list[str] | None,
        typer.Option(
            help="A key of config.json in which models may contradict each other; may be given several times.",
            metavar="KEY",
        ),
    ] = None,
    fitness: _fitness.FITNESS = "mean",
    metric: _fitness.METRIC = None,
    threads: _fitness.THREADS = 0,
    memory: _fitness.MEMORY = None,
    overwrite: _fitness.OVERWRITE = False,
    quiet: _fitness.QUIET = False,
    as_json: console.JSON = False,
) -> None:
    """Average MODELS, all of them or (greedy) those that do not lower the score, and write the recipe of it.

    Needs the `models` extra.
    """
    from merganser.search.soups import soup_into

    *models, out = arguments
    goal = _fitness.fitness_of(suite, fitness, metric, threads, memory)
    with console.progress(not quiet and not as_json, "tasting", "averages") as progress:
        found = soup_into(
            models, goal, out, kind=by, allow=allow or (), overwrite=overwrite, progress=progress
        )
    if as_json:
        console.print_json({**found.as_json(models), "recipe": out})
        return
    if quiet:
        return
    rows = [(models[k], score, None) for k, score in enumerate(found.singles)]
    rows.append((f"average of {len(models)}", found.uniform, None))
    if found.kind == "greedy":
        rows.append((f"greedy soup of {len(found.ingredients)}", found.score, None))
    _fitness.scores("model", rows)
    console.say()
    for k, score, added in found.tried[1:]:
        alone = found.singles[k].failed is not None
        why = "no score of its own" if alone else f"with it {_fitness.number(score.fitness)}"
        console.say(f"{models[k]}: {'added' if added else 'left out'} ({why})")
    console.say(f"recipe: {out}")
