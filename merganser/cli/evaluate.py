"""`merganser evaluate`: score a model on a suite, with results per sample."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from merganser.cli import _fitness, _saving, console

if TYPE_CHECKING:
    from merganser.algebra import Weights
    from merganser.evaluate import Results
    from merganser.running import Model

NAME = "evaluate"
EXAMPLE = "Example: merganser evaluate models/math suite.yaml results/math"


def command(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL SUITE OUT",
            help="A model directory or a recipe (.yaml, merged in memory), a suite (.yaml), the directory to make.",
        ),
    ] = None,
    from_lm_eval: Annotated[
        Path | None,
        typer.Option(
            help="Instead of running a model, take over logs of lm-eval's --log_samples; only OUT is given."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace results at OUT, at the very end.")
    ] = False,
    no_resume: _saving.NO_RESUME = False,
    threads: _fitness.THREADS = 0,
    seed: Annotated[
        int | None, typer.Option(help="Of random draws of a recipe; stands above the recipe's.")
    ] = None,
    memory: _fitness.MEMORY = None,
    allow_pickle: console.ALLOW_PICKLE = False,
    strict: _saving.STRICT = False,
    quiet: _saving.QUIET = False,
    as_json: console.JSON = False,
) -> None:
    """Score MODEL on the tasks of SUITE and write results per sample to OUT.

    Everything that can be checked is checked before anything runs. OUT appears whole or not at all; an
    interrupted run goes on after its last finished task when the same command is run again. Needs the
    `models` extra.
    """
    from merganser.errors import RequestError

    given = list(arguments or ())
    if len(given) != (3 if from_lm_eval is None else 1):
        wanted = "MODEL, SUITE and OUT" if from_lm_eval is None else "--from-lm-eval with OUT alone"
        raise RequestError(f"evaluate takes {wanted}; {len(given)} given (see --help)")
    if from_lm_eval is not None:
        found = _taken_over(from_lm_eval, Path(given[0]), overwrite)
    else:
        model, suite, out = given
        found = _run(
            model,
            Path(suite),
            Path(out),
            overwrite=overwrite,
            resume=not no_resume,
            threads=threads,
            seed=seed,
            memory=memory,
            allow_pickle=allow_pickle,
            strict=strict,
            bar=not quiet and not as_json,
        )
    if as_json:
        console.print_json(found.as_json())
    elif not quiet:
        report(found)
        console.say(f"results: {given[-1]}")


def _run(
    model: str,
    suite: Path,
    out: Path,
    *,
    overwrite: bool,
    resume: bool,
    threads: int,
    seed: int | None,
    memory: str | None,
    allow_pickle: bool,
    strict: bool,
    bar: bool,
) -> Results:
    from merganser.evaluate import Suite, evaluate_into
    from merganser.evaluate.output import check_target
    from merganser.running import open_model, require

    limit = None if memory is None else console.parse_size(memory, "--memory")

    check_target(out, overwrite)
    require("torch", "transformers", "pyarrow")
    recipe = _recipe(model, seed, allow_pickle, strict) if model.endswith((".yaml", ".yml")) else None
    tasks = Suite.open(suite)
    tasks.check()
    _fitness.use_threads(threads)
    source: Model | str = model
    if recipe is not None:
        source = open_model(recipe, memory=limit)
    try:
        with console.progress(bar, "evaluating", "samples") as progress:
            return evaluate_into(source, tasks, out, overwrite=overwrite, resume=resume, progress=progress)
    except KeyboardInterrupt as interruption:
        stopped = console.Interrupted("interrupted")
        for note in getattr(interruption, "__notes__", ()):
            stopped.add_note(note)
        raise stopped from None


def _recipe(path: str, seed: int | None, allow_pickle: bool, strict: bool) -> Weights:
    """A recipe's result, lazy, every tensor rounded as `merganser merge` would write it."""
    from merganser.recipe import as_saved, build, load

    weights, fields = build(load(path, strict=strict), seed=seed, allow_pickle=allow_pickle)
    for note in weights.notes:
        if "warning" in note:
            console.warn(str(note["warning"]))
    return as_saved(weights, fields.get("dtype")).relabel(path)


def _taken_over(logs: Path, out: Path, overwrite: bool) -> Results:
    from merganser.evaluate import read_lm_eval
    from merganser.evaluate.output import check_target

    check_target(out, overwrite)
    found = read_lm_eval(logs)
    found.save(out, overwrite=overwrite)
    return found


def report(found: Results) -> None:
    """A line a metric."""
    console.say(f"{found.model['label']} on {found.suite['name']}")
    console.say()
    rows: list[tuple[object, ...]] = []
    for name, task in found.tasks.items():
        shown = (name, task.kind, task.rows)
        for metric, value in task.metrics.items():
            if metric.endswith("_stderr"):
                continue
            error = task.metrics.get(f"{metric}_stderr")
            told = "undefined" if value is None else f"{value:.4f}"
            rows.append((*shown, metric, told, "" if error is None else f"± {error:.4f}"))
            shown = ("", "", "")  # type: ignore[assignment]
        for what, number in task.beside.items():
            rows.append(("", "", "", f"({what.replace('_', ' ')})", f"{number:.4f}", ""))
    console.table(("task", "kind", "samples", "metric", "value", "stderr"), rows)
    console.say()
