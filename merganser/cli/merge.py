"""`merganser merge`: run a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from merganser.cli import console

NAME = "merge"
EXAMPLE = "Example: merganser merge recipe.yaml merged --memory 512MiB"


def command(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe, merganser's own form or mergekit's.")],
    out: Annotated[Path, typer.Argument(help="The directory to make. It appears whole or not at all.")],
    memory: Annotated[str, typer.Option(help="What the whole process may hold, as 256MiB or 1GB.")] = "1GiB",
    threads: Annotated[int, typer.Option(help="Worker threads; 0 is one a core.", min=0)] = 0,
    seed: Annotated[
        int | None, typer.Option(help="Of random draws; stands above the recipe's (else 0).")
    ] = None,
    shard_size: Annotated[str, typer.Option(help="What one file may hold.")] = "5GB",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a checkpoint at OUT, at the very end.")
    ] = False,
    no_resume: Annotated[
        bool,
        typer.Option("--no-resume", help="Start over, even where an interrupted run could be continued."),
    ] = False,
    allow_pickle: console.ALLOW_PICKLE = False,
    allow_nonfinite: Annotated[
        bool, typer.Option("--allow-nonfinite", help="Write NaN and Inf instead of failing on them.")
    ] = False,
    no_sync: Annotated[
        bool, typer.Option("--no-sync", help="Do not wait for the disk before the output gets its name.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar and no report.")] = False,
    as_json: console.JSON = False,
) -> None:
    """Merge models as RECIPE says and seal the result at OUT.

    An interrupted merge goes on where it stopped when the same command is run again.
    """
    limit = console.parse_size(memory, "--memory")
    shard = console.parse_size(shard_size, "--shard-size")
    from merganser import save
    from merganser.recipe import build, load

    weights, fields = build(load(recipe), seed=seed, allow_pickle=allow_pickle)
    with console.progress(not quiet and not as_json, "merging") as progress:
        report = save(
            weights,
            out,
            memory=limit,
            threads=threads,
            shard_size=shard,
            overwrite=overwrite,
            resume=not no_resume,
            allow_nonfinite=allow_nonfinite,
            sync=not no_sync,
            progress=progress,
            generator="merganser merge",
            **fields,
        )
    if as_json:
        console.print_json(report.as_json())
    elif not quiet:
        moved = report.bytes_read + report.bytes_written
        console.say(
            f"{report.path}: {report.tensors} tensors, {console.size(report.bytes_written)} written, "
            f"{console.size(report.bytes_read)} read in {report.seconds:.1f} s "
            f"({console.size(moved / max(report.seconds, 1e-9))}/s, peak memory {console.size(report.peak_memory)})"
        )
        if report.resumed:
            console.say(f"{report.resumed} tensors were taken over from an interrupted run")
        for parent, names in report.unused.items():
            shown = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
            console.say(f"not used of {parent}: {len(names)} tensors ({shown})")
        for name, count in report.nonfinite.items():
            console.say(f"warning: {name} holds {count} values that are not finite")
        console.say(f"digest {report.digest}")
