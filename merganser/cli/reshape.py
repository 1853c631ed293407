"""`merganser reshape`: steps on one model, without a recipe file."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from merganser.cli import _saving
from merganser.errors import RequestError

NAME = "reshape"
EXAMPLE = "Example: merganser reshape model deeper \"layers: {keep: '0-15, 8-23'}\""


@_saving.options()
def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model directory.")],
    out: _saving.OUT,
    steps: Annotated[
        list[str],
        typer.Argument(
            metavar="STEPS",
            help="Steps in their order, each in YAML; `merganser steps` lists them.",
        ),
    ],
    *,
    saving: _saving.Saving,
) -> None:
    """Grow, shrink or rearrange MODEL by STEPS on its named axes and seal the result at OUT."""
    from merganser.recipe import load

    recipe = load({"model": model, "steps": [_parsed(step) for step in steps]})
    _saving.run(recipe, out, saving, NAME, "reshaping")


def _parsed(step: str) -> Any:
    from merganser.document import parse

    found = parse(step, "step")
    if not isinstance(found, dict | str):
        raise RequestError(f"{step!r} is no step; write it as `name: settings`")
    return found
