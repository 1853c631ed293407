"""`merganser localize`: which few entries of a fine-tune carry its task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from merganser.cli import _saving, console

NAME = "localize"
EXAMPLE = (
    "Example: merganser localize base math train.jsonl found --test test.jsonl --share 0.001 --share 0.01"
)


def command(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The directory of the base model.")],
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The directory of its fine-tune.")],
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="Rows of the task: .jsonl, .parquet, .csv, .tsv or .txt.")
    ],
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="The directory to make: mask, recipe.yaml, report.json."),
    ],
    test: Annotated[
        Path | None,
        typer.Option(help="Other rows of the task, on which the grafts are scored (default: DATA)."),
    ] = None,
    head: Annotated[Path | None, typer.Option(help="The linear head of an encoder.")] = None,
    share: Annotated[
        list[float] | None,
        typer.Option(
            help="Of the entries a mask may have; may be given several times (0.0001, 0.001, 0.01)."
        ),
    ] = None,
    tensors: Annotated[
        list[str] | None,
        typer.Option(help="Patterns of the tensors that masks cover (all); may be repeated."),
    ] = None,
    against: Annotated[
        list[Path] | None, typer.Option(help="Masks of other tasks, to tell the overlap; may be repeated.")
    ] = None,
    text: Annotated[str, typer.Option(help="The column of texts.")] = "text",
    label: Annotated[str, typer.Option(help="The column of labels.")] = "label",
    max_length: Annotated[int | None, typer.Option(help="Cut texts after so many tokens.", min=1)] = None,
    batch: Annotated[int, typer.Option(help="Rows of one forward pass.", min=1)] = 16,
    steps: Annotated[int, typer.Option(help="Steps of gradient descent.", min=0)] = 100,
    rows_a_step: Annotated[int, typer.Option(help="Rows that one step looks at.", min=1)] = 1024,
    rate: Annotated[
        float | None,
        typer.Option(help="The learning rate (default: the first step moves the steepest entry by --bias)."),
    ] = None,
    bias: Annotated[float, typer.Option(help="Masks begin at sigmoid(-bias) from where they start.")] = 10.0,
    keep: Annotated[
        float, typer.Option(help="The share of the gain that the chosen mask is to keep.")
    ] = 0.95,
    seed: Annotated[int, typer.Option(help="Of random masks and the order of rows.", min=0)] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an OUT that localize wrote.")
    ] = False,
    quiet: _saving.QUIET = False,
    as_json: console.JSON = False,
) -> None:
    """Learn a mask over the entries of MODEL that carry what it learned on DATA, and the graft of it on BASE.

    Grafts of the largest changes and of random entries, as many, are scored beside it. Runs the models (needs the
    `models` extra). OUT/recipe.yaml rebuilds the graft with `merganser merge`, without data.
    """
    from merganser.search.localization import LocalizeOptions, check_out, localize

    given = {"shares": share, "tensors": tensors}
    options = LocalizeOptions(
        **{name: tuple(value) for name, value in given.items() if value},  # type: ignore[arg-type]
        text=text,
        label=label,
        max_length=max_length,
        batch=batch,
        steps=steps,
        rows_a_step=rows_a_step,
        rate=rate,
        bias=bias,
        keep=keep,
        seed=seed,
    )
    check_out(out, overwrite)
    with console.progress(not quiet and not as_json, "learning masks") as progress:
        found = localize(
            base, model, data, test=test, head=head, against=against or (), options=options, progress=progress
        )
    found.save(out, overwrite=overwrite)
    if as_json:
        console.print_json(found.report)
    elif not quiet:
        report(found.report, out)


def report(found: Any, out: Path) -> None:
    """The report as text."""
    measured = found["measured_on"]
    same = ", the rows of the search" if measured["rows of the search"] else ""
    console.say(
        f"scored on {measured['rows']} rows of {measured['data']}{same}; {found['parameters']:,} entries"
    )
    metrics = [key for key in ("accuracy", "loss", "calibration_error") if key in found["base"]]
    rows = [
        (name, "-", "-", *(_number(found[name][key]) for key in metrics), "-") for name in ("base", "model")
    ]
    rows += [
        (
            line["mask"],
            f"{line['share']:.4%}",
            line["entries"],
            *(_number(line[key]) for key in metrics),
            "-" if line["kept"] is None else f"{line['kept']:.1%}",
        )
        for line in found["grafts"]
    ]
    heads = [key.replace("_", " ") for key in metrics]
    console.table(("mask", "share", "entries", *heads, "kept"), rows)
    for line in found["overlaps"]:
        console.say(
            f"{line['mask']}: shares {line['shared']} entries, {line['of_this']:.1%} of this mask "
            f"({line['by_chance_of_this']:.1%} by chance) and {line['of_that']:.1%} of that"
        )
    console.say(_choice(found))
    console.say(f"{out}/recipe.yaml grafts them")


def _choice(found: Any) -> str:
    """Which share was taken, and why."""
    share, kept = f"at most {found['chosen']:.4%} of the entries", found["chosen_kept"]
    wanted = f"{_percent(found['options']['keep'])} of the gain on {found['data']}"
    if found["kept_enough"]:
        return f"chosen: {share}, the smallest share that keeps {wanted} ({kept:.1%})"
    if kept is None:
        return (
            f"none chosen by what it keeps: on {found['data']} the fine-tune is no better than its base "
            f"({found['metric']}); taken: {share}, the smallest share"
        )
    return (
        f"no share keeps {wanted}; taken: {share}, which keep most of it ({kept:.1%}). "
        "A larger --share or more --steps may keep more"
    )


def _percent(value: float) -> str:
    return f"{100 * value:.4g}%"


def _number(value: float) -> str:
    return f"{value:.4f}"
