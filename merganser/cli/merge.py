"""`merganser merge`: run a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from merganser.cli import _saving

NAME = "merge"
EXAMPLE = "Example: merganser merge recipe.yaml merged --memory 512MiB"


@_saving.options()
def command(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="A YAML recipe, merganser's own form or mergekit's.")
    ],
    out: _saving.OUT,
    strict: _saving.STRICT = False,
    batch_norm: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA",
            help="Rows on which BatchNorm's running statistics are computed anew, which the parents' do not fit. Needs "
            "the `models` extra, and the merge in memory.",
        ),
    ] = None,
    conflicts: Annotated[
        bool,
        typer.Option(
            "--conflicts",
            help="Of ties: report what is trimmed and where signs disagree (reads the parents again).",
        ),
    ] = False,
    *,
    saving: _saving.Saving,
) -> None:
    """Merge models as RECIPE says and seal the result at OUT.

    An interrupted merge goes on where it stopped when the same command is run again.
    """
    from merganser.recipe import load

    _saving.run(
        load(recipe, strict=strict), out, saving, NAME, "merging", batch_norm=batch_norm, conflicts=conflicts
    )
