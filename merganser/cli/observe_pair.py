"""`merganser observe-pair`: what two models do on the same rows, for matching and merging their units."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from merganser.cli import _saving, console

NAME = "observe-pair"
EXAMPLE = "Example: merganser observe-pair a b calibration.jsonl moments"


def command(
    first: Annotated[str, typer.Argument(metavar="A", help="A model directory.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one of the same family.")],
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Rows of texts, without labels.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Directory to write, as a sealed checkpoint.")],
    text: Annotated[str, typer.Option(help="Column of texts.")] = "text",
    max_length: Annotated[int | None, typer.Option(help="Cut texts after so many tokens.", min=1)] = None,
    rows: Annotated[int | None, typer.Option(help="Only the first rows.", min=1)] = None,
    batch: Annotated[int, typer.Option(help="Rows that run at once.", min=1)] = 16,
    memory: Annotated[str, typer.Option(help="What the moments may take, beside the models.")] = "4GiB",
    overwrite: _saving.OVERWRITE = False,
    quiet: _saving.QUIET = False,
    as_json: console.JSON = False,
) -> None:
    """Run A and B on the same rows and write the joint second moments of what their linear layers take in.

    The steps `align_activations` and `pleas` read them: for A and B in this order.
    """
    from merganser.errors import OutputError
    from merganser.running import open_model, read_rows

    limit = console.parse_size(memory, "--memory")
    if out.exists() and not overwrite:
        raise OutputError(f"{out}: already exists. Choose another name, or pass --overwrite to replace it")
    given = read_rows(data)
    given = given if rows is None else given.head(rows)
    texts = given.column(text)
    from merganser.observe.paired import pair_texts

    one, two = open_model(first), open_model(second)
    note = {"data": data.name, "data_digest": given.digest, "text": text}
    with console.progress(not (as_json or quiet), "observing", "rows") as progress:
        found = pair_texts(
            one, two, texts, max_length=max_length, batch=batch, memory=limit, note=note, progress=progress
        )
    report = found.save(out, overwrite=overwrite)
    document = {"path": str(out), "tensors": report.tensors, "bytes": report.bytes_written, **found.note}
    if as_json:
        console.print_json(document)
        return
    console.say(
        f"{out}: {len(found.joint)} layers, {console.size(report.bytes_written)}, "
        f"from {found.note['rows']} rows with {found.note['tokens']} tokens"
    )
