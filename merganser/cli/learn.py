"""`merganser learn`: coefficients of task vectors by gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from merganser.cli import _fitness, _saving, console

NAME = "learn"
EXAMPLE = "Example: merganser learn recipe.yaml unlabelled.yaml learned.yaml --by adamerging"


def command(
    recipe: Annotated[
        Path,
        typer.Argument(metavar="RECIPE", help="A recipe on task vectors, such as task_arithmetic."),
    ],
    suite: Annotated[
        Path, typer.Argument(metavar="SUITE", help="The tasks whose data are learned from, with their heads.")
    ],
    out: _fitness.OUT,
    by: Annotated[
        str, typer.Option(help="How it is learned.", metavar="adamerging|atlas|self_positioning")
    ] = "adamerging",
    coefficients: Annotated[
        str | None,
        typer.Option(
            help="One a task vector, a layer of it, or a tensor of it.", metavar="task|layer|tensor"
        ),
    ] = None,
    objective: Annotated[
        str | None, typer.Option(help="What is made small.", metavar="entropy|labels")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of gradient descent.")] = None,
    rate: Annotated[float | None, typer.Option(help="The learning rate.")] = None,
    batch: Annotated[int | None, typer.Option(help="Rows of each task in a step.")] = None,
    start: Annotated[float | None, typer.Option(help="Where the coefficients start.")] = None,
    seed: Annotated[int, typer.Option(help="Of the order of rows.", min=0)] = 0,
    memory: Annotated[
        str | None,
        typer.Option(help="Refuse to begin where more is needed, as 8GiB (activations are not counted)."),
    ] = None,
    threads: _fitness.THREADS = 0,
    strict: _saving.STRICT = False,
    overwrite: _fitness.OVERWRITE = False,
    quiet: _fitness.QUIET = False,
    as_json: console.JSON = False,
) -> None:
    """Learn the models' weights in RECIPE from the data of SUITE and write the recipe that has them.

    Labels are read only where the method needs them. Needs the `models` extra.
    """
    from merganser.running import require
    from merganser.search.learning import learn_into
    from merganser.search.vector_recipe import VectorRecipe

    require("torch", "transformers", "pyarrow")
    console.warn_of_keys(VectorRecipe.open(recipe, strict=strict).recipe.ignored)
    limit = None if memory is None else console.parse_size(memory, "--memory")
    _fitness.use_threads(threads)
    with console.progress(not quiet and not as_json, "learning", "steps") as progress:
        found = learn_into(
            recipe,
            suite,
            out,
            by=by,
            coefficients=coefficients,
            objective=objective,
            steps=steps,
            rate=rate,
            batch=batch,
            start=start,
            seed=seed,
            memory=limit,
            overwrite=overwrite,
            progress=progress,
        )
    if as_json:
        console.print_json({**found.as_json(), "recipe": str(out)})
        return
    if quiet:
        return
    tenth = max(1, len(found.losses) // 10)
    first, last = (sum(part) / len(part) for part in (found.losses[:tenth], found.losses[-tenth:]))
    console.say(
        f"{by}: {console.counted(len(found.losses), 'step')}, loss {first:.4f} (mean of the first {tenth}) "
        f"to {last:.4f} (of the last {tenth})"
    )
    console.say()
    rows = []
    for model, values in found.coefficients.items():
        numbers = list(values.values())
        mean = sum(numbers) / len(numbers)
        rows.append((model, len(numbers), *(f"{x:.4f}" for x in (mean, min(numbers), max(numbers)))))
    console.table(("model", "coefficients", "mean", "least", "most"), rows)
    console.say(
        f"\nrecipe: {out} (its tensors differ from those learned by {found.difference:.1g} of the largest change)"
    )
