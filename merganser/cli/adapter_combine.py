"""`merganser combine-lora`: LoRA adapters to one, or one to another rank."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from merganser.cli import _saving, console
from merganser.errors import RequestError

NAME = "combine-lora"
EXAMPLE = "Example: merganser combine-lora both style:0.8 facts:0.5 --rank 32"
RANK = Annotated[int | None, typer.Option(help="At most so many per module.", min=1)]
ENERGY = Annotated[
    float | None,
    typer.Option(help="Share of the squared singular values to keep, in (0, 1]; decides the rank."),
]
BASE = Annotated[str | None, typer.Option(help="What the config says the base is.")]
DTYPE = Annotated[str, typer.Option(help="Of the factors.")]


@_saving.options("seed", "shard_size", "no_proof", "check")
def command(
    out: _saving.OUT,
    adapters: Annotated[
        list[str],
        typer.Argument(
            metavar="ADAPTERS", help="PEFT LoRA directories, each with :WEIGHT after it where that is not 1."
        ),
    ],
    rank: RANK = None,
    energy: ENERGY = None,
    base: BASE = None,
    dtype: DTYPE = "float32",
    *,
    saving: _saving.Saving,
) -> None:
    """Add ADAPTERS up to one LoRA adapter at OUT.

    It is exact, with the ranks added up, unless --rank or --energy makes it smaller. With one adapter this resizes it.
    """
    from merganser import open as open_weights
    from merganser.methods.adapters import combine

    limit = console.parse_size(saving.memory, "--memory")
    named = [_parsed(text) for text in adapters]
    combined = combine(
        [open_weights(path, allow_pickle=saving.allow_pickle) for path, _ in named],
        [weight for _, weight in named],
        rank=rank,
        energy=energy,
        base=base,
        threads=saving.threads,
        memory=limit,
    )
    recipe = {"adapters": [{"adapter": p, "weight": w} for p, w in named], "rank": rank, "energy": energy}
    fields = {"degree": 0.0, "dtype": dtype, "recipe": recipe}
    _saving.write(combined, fields, out, saving, NAME, "combining")


def _parsed(text: str) -> tuple[str, float]:
    """A path, and the weight after its last colon; a path that exists as it is has weight 1."""
    path, colon, number = text.rpartition(":")
    if not colon or Path(text).exists():
        return text, 1.0
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise RequestError(f"{text!r}: {number!r} is no weight; write an adapter as PATH or PATH:0.5")
    return path, weight
