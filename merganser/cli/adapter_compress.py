"""`merganser compress-patch`: a patch as signs."""

from __future__ import annotations

from typing import Annotated

import typer

from merganser.cli import _saving, console
from merganser.errors import RequestError

NAME = "compress-patch"
EXAMPLE = "Example: merganser compress-patch models/tuned patch --base models/base --density 0.05"


@_saving.options("seed", "shard_size", "allow_nonfinite", "no_proof", "check")
def command(
    patch: Annotated[
        str,
        typer.Argument(metavar="PATCH", help="A task vector, a LoRA adapter, or with --base a fine-tune."),
    ],
    out: _saving.OUT,
    base: Annotated[str | None, typer.Option(help="The model that a fine-tune is the change of.")] = None,
    density: Annotated[float, typer.Option(help="Share of elements to keep, in (0, 1].")] = 0.05,
    alpha: Annotated[float, typer.Option(help="Factor on every scale.")] = 1.0,
    scale: Annotated[
        str,
        typer.Option(help="deviation (of all elements, the paper's) or mean (magnitude of the kept ones)."),
    ] = "deviation",
    *,
    saving: _saving.Saving,
) -> None:
    """Keep of PATCH the signs of its largest elements and one scale a tensor (ComPEFT), packed at OUT."""
    from merganser import open as open_weights
    from merganser.methods.adapters import compress

    opened = open_weights(patch, allow_pickle=saving.allow_pickle)
    if base is not None:
        if opened.degree == 0.0:
            raise RequestError(f"{patch} is a change already; --base is for a fine-tuned model")
        opened = opened - open_weights(base, allow_pickle=saving.allow_pickle)
    elif opened.degree != 0.0:
        raise RequestError(f"{patch} is a model and not a change; say with --base what it is a fine-tune of")
    packed = compress(opened, density=density, alpha=alpha, scale=scale)  # type: ignore[arg-type]
    recipe = {"patch": patch, "base": base, "density": density, "alpha": alpha, "scale": scale}
    report = _saving.write(packed, {"degree": 0.0, "recipe": recipe}, out, saving, NAME, "compressing")
    if not saving.quiet and not saving.as_json:
        files = [file for file in sorted(report.path.iterdir()) if file.name != "merganser.json"]
        total = sum(file.stat().st_size for file in files)
        each = ", ".join(f"{file.name} {console.size(file.stat().st_size)}" for file in files)
        console.say(f"on disk: {console.size(total)} ({each})")
