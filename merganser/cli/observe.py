"""`merganser observe`: run a model over data and keep statistics of it as weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from merganser.cli import _saving, console
from merganser.errors import listing

NAME = "observe"
EXAMPLE = "Example: merganser observe models/math math.jsonl stats/math --collect gram,fisher --rows 1000"


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model directory.")],
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Rows: .jsonl, .parquet, .csv, .tsv or .txt.")],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="The directory to make, one sealed checkpoint a kind in it.")
    ],
    collect: Annotated[
        str, typer.Option(help="What of: gram, fisher, absmax, second_moment, mean.", metavar="KIND,...")
    ] = "absmax,second_moment,mean",
    fisher: Annotated[
        str | None,
        typer.Option(
            help="Labels of its gradients: the expectation over the model's predictions, one drawn from them, or the "
            "data's (default: true where there are classes, sampled for language models).",
            metavar="true|sampled|empirical",
        ),
    ] = None,
    text: Annotated[str | None, typer.Option(help="The column of texts.", show_default="text")] = None,
    image: Annotated[
        str | None,
        typer.Option(help="The column of image files (beside DATA) or bytes.", show_default="image"),
    ] = None,
    values: Annotated[
        str, typer.Option(help="Columns of numbers that the model takes instead.", metavar="COLUMN,...")
    ] = "",
    label: Annotated[str, typer.Option(help="The column of labels, for --fisher empirical.")] = "label",
    head: Annotated[
        Path | None,
        typer.Option(help="A linear head over an encoder, whose predictions --collect fisher takes."),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            help="What the model is run as (default: as its config says).",
            metavar="encoder|classifier|image_classifier|series_classifier|causal|masked",
        ),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens of a text that are kept (default: as the model takes).", min=1)
    ] = None,
    rows: Annotated[int | None, typer.Option(help="Only the first so many rows.", min=1)] = None,
    batch: Annotated[int, typer.Option(help="Rows in one pass.", min=1)] = 16,
    seed: Annotated[int, typer.Option(help="Of drawn labels and masks.", min=0)] = 0,
    memory: Annotated[
        str, typer.Option(help="What the whole process may hold; larger models are run layer by layer.")
    ] = "4GiB",
    threads: Annotated[int, typer.Option(help="Threads of torch; 0 leaves it the choice.", min=0)] = 0,
    layerwise: Annotated[
        bool, typer.Option("--layerwise", help="Layer by layer, even where the model fits.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace statistics at OUT, at the very end.")
    ] = False,
    no_resume: _saving.NO_RESUME = False,
    quiet: _saving.QUIET = False,
    as_json: console.JSON = False,
) -> None:
    """Run MODEL over DATA and write statistics under the names of its tensors: OUT/gram, OUT/fisher ...

    An interrupted run goes on where it stopped when the same command is run again.
    """
    limit = console.parse_size(memory, "--memory")
    from merganser.observe import observe
    from merganser.running import require

    require("torch", "transformers")
    if threads:
        import torch

        torch.set_num_threads(threads)
    try:
        with console.progress(not quiet and not as_json, "observing", "rows") as progress:
            report = observe(
                model,
                data,
                out,
                collect=collect,
                fisher=fisher,
                text=text,
                image=image,
                values=[name.strip() for name in values.split(",") if name.strip()],
                label=label,
                head=head,
                kind=kind,
                max_length=max_length,
                rows=rows,
                batch=batch,
                seed=seed,
                memory=limit,
                layerwise=layerwise,
                overwrite=overwrite,
                resume=not no_resume,
                progress=progress,
            )
    except KeyboardInterrupt as interruption:
        stopped = console.Interrupted("interrupted")
        for note in getattr(interruption, "__notes__", ()):
            stopped.add_note(note)
        raise stopped from None
    if as_json:
        console.print_json(report.as_json())
    elif not quiet:
        tokens = f", {console.counted(report.tokens, 'token')}" if report.tokens else ""
        console.say(
            f"{out}: {console.counted(report.rows, 'row')}{tokens} in {report.seconds:.1f} s"
            f"{', layer by layer' if report.layerwise else ''} (peak memory {console.size(report.peak_memory)})"
        )
        console.table(
            ("kind", "tensors", "digest"),
            [(kind, found["tensors"], found["digest"]) for kind, found in report.kinds.items()],
        )
        reasons: dict[str, list[str]] = {}
        for name, reason in report.not_covered.items():
            reasons.setdefault(reason, []).append(name)
        for reason, names in reasons.items():
            console.say(f"no statistics of inputs: {listing(names, 3)}: {reason}")
        if report.no_gradient:
            console.say(f"no loss depends on, so Fisher information 0: {listing(report.no_gradient, 3)}")
        if report.resumed:
            console.say("taken over from an interrupted run")
