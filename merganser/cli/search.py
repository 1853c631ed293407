"""`merganser search`: the best values for the open numbers of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from merganser.cli import _fitness, _saving, console

NAME = "search"
EXAMPLE = (
    "Example: merganser search open.yaml validation.yaml best.yaml --by cma --evaluations 200 --baseline"
)


def command(
    recipe: Annotated[
        Path,
        typer.Argument(metavar="RECIPE", help="A recipe with open numbers, as in weight: {search: [0, 1]}."),
    ],
    suite: _fitness.SUITE,
    out: _fitness.OUT,
    by: Annotated[str, typer.Option(help="The optimiser.", metavar="grid|random|cma")] = "cma",
    evaluations: Annotated[int, typer.Option(help="How many candidates are scored.")] = 100,
    seed: Annotated[int, typer.Option(help="Of random draws.", min=0)] = 0,
    fitness: _fitness.FITNESS = "mean",
    metric: _fitness.METRIC = None,
    baseline: Annotated[
        bool,
        typer.Option("--baseline", help="Score parents, their average, and as many random candidates too."),
    ] = False,
    test: Annotated[
        Path | None,
        typer.Option(help="A suite on other data, on which the result is scored when it is chosen."),
    ] = None,
    threads: _fitness.THREADS = 0,
    memory: _fitness.MEMORY = None,
    strict: _saving.STRICT = False,
    overwrite: _fitness.OVERWRITE = False,
    quiet: _fitness.QUIET = False,
    as_json: console.JSON = False,
) -> None:
    """Search the open numbers of RECIPE for the best score on SUITE and write the recipe that has it.

    Candidates are merged in memory. Evaluations are kept beside OUT (OUT without .yaml, .journal.jsonl): the
    same command goes on where it was stopped. Needs the `models` extra.
    """
    from merganser.search.run import search_into
    from merganser.search.space import Space
    from merganser.search.writer import journal_of

    space = Space.open(recipe, strict=strict)
    console.warn_of_keys(space.ignored)
    goal = _fitness.fitness_of(suite, fitness, metric, threads, memory)
    other = None if test is None else _fitness.fitness_of(test, fitness, metric, threads)
    if other is not None:
        other.live = goal.live
    try:
        with console.progress(not quiet and not as_json, "searching", "candidates") as progress:
            found = search_into(
                space,
                goal,
                out,
                by=by,
                evaluations=evaluations,
                seed=seed,
                baseline=baseline,
                test=other,
                overwrite=overwrite,
                progress=progress,
            )
    except KeyboardInterrupt:
        raise console.Interrupted(
            f"interrupted; evaluations made so far are kept in {journal_of(out)}, from where the same command goes on"
        ) from None
    if as_json:
        console.print_json({**found.as_json(), "recipe": str(out)})
    elif not quiet:
        report(found)
        console.say(f"recipe: {out}")


def report(found: Any) -> None:
    """What was found, beside the baselines."""
    console.say(
        f"{console.counted(found.evaluations, 'candidate')} by {found.by}, seed {found.seed}: {found.made} "
        "evaluations made, "
        f"{found.taken} taken from the journal" + (f", {found.failed} failed" if found.failed else "")
    )
    console.say()
    _fitness.scores("merge", [(one.name, one.score, one.test) for one in (found.best, *found.baselines)])
    console.say()
    shown = list(found.values.items())
    console.table(("open number", "value"), [(key, value) for key, value in shown[:40]])
    if len(shown) > 40:
        console.say(f"... and {len(shown) - 40} more")
    console.say()
