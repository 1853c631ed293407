"""`merganser verify`: re-check a sealed checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from merganser.cli import console

NAME = "verify"
EXAMPLE = "Example: merganser verify merged"


def command(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A directory or file that merganser sealed.")],
    as_json: console.JSON = False,
) -> None:
    """Read every tensor and file again and compare digests with merganser.json."""
    from merganser import verify

    with console.progress(not as_json, "verifying") as progress:
        found = verify(out, progress=progress)
    if as_json:
        console.print_json(found | {"verified": True})
        return
    console.say(
        f"{out}: verified, {found['tensors']} tensors ({console.size(found['bytes'])}) and {found['files']} files "
        f"are as sealed; digest {found['digest']}"
    )
