"""`merganser port`: a patch carried to an updated base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from merganser.cli import _saving, console
from merganser.errors import RequestError

NAME = "port"
EXAMPLE = "Example: merganser port adapter models/base-v1 models/base-v2 models/mine-v2"
_COLUMNS = ("patch", "update", "drift", "cosine", "survives")


@_saving.options("seed", "no_proof", "check")
def command(
    patch: Annotated[
        str, typer.Argument(metavar="PATCH", help="A LoRA adapter, a task vector or a fine-tune of OLD.")
    ],
    old: Annotated[str, typer.Argument(metavar="OLD", help="The base that the patch was made on.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The updated base.")],
    out: Annotated[
        Path | None,
        typer.Argument(metavar="OUT", help="The directory to make; without it only the report is made."),
    ] = None,
    scale: Annotated[float, typer.Option(help="Of the patch.")] = 1.0,
    fresh: Annotated[str | None, typer.Option(help="A patch trained on NEW, to compare with.")] = None,
    rows: Annotated[int, typer.Option(help="Tensors of the report to show; --json has all.", min=0)] = 10,
    *,
    saving: _saving.Saving,
) -> None:
    """Put a PATCH that was made on OLD onto NEW, and tell how much of it the update of the base leaves."""
    from merganser import open as open_weights
    from merganser.methods.adapters import port

    if out is None and saving.overwrite:
        raise RequestError("--overwrite without OUT: there is nothing to replace")
    limit = console.parse_size(saving.memory, "--memory")
    opened = [open_weights(path, allow_pickle=saving.allow_pickle) for path in (patch, old, new)]
    other = None if fresh is None else open_weights(fresh, allow_pickle=saving.allow_pickle)
    ported = port(*opened, scale=scale, fresh=other, threads=saving.threads, memory=limit)
    report = dict(next(note for note in ported.notes if note.get("step") == "port"))
    if not saving.as_json and not saving.quiet:
        _show(report, rows)
    if out is None:
        if saving.as_json:
            console.print_json(report)
        return
    fields = {"recipe": {"patch": patch, "old": old, "new": new, "scale": scale}}
    _saving.write(ported, fields, out, saving, NAME, "porting")


def _show(report: dict[str, Any], rows: int) -> None:
    tensors = list(report["tensors"].items())
    tensors.sort(key=lambda item: abs((item[1]["survives"] or 1.0) - 1.0))
    tensors.reverse()
    fields = [*_COLUMNS, *(key for key in ("residual", "fresh_cosine") if key in report["summary"])]
    if any("reads" in measures for _, measures in tensors):
        fields += ["reads", "reads_by_chance", "writes", "writes_by_chance"]
    lines = [("all", report["summary"]), *tensors[:rows]]
    console.table(
        ("tensor", *(field.replace("_", " ") for field in fields)),
        [(name, *(_number(measures.get(field)) for field in fields)) for name, measures in lines],
    )
    if len(tensors) > rows:
        console.say(f"... and {len(tensors) - rows} more")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
