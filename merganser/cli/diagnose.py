"""`merganser diagnose`: what checkpoints have in common, and what that means for merging them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from merganser.cli import _page, console

NAME = "diagnose"
EXAMPLE = "Example: merganser diagnose models/math models/code --base models/base --html side-by-side.html"


def command(
    models: Annotated[
        list[str], typer.Argument(metavar="MODELS", help="Model directories, weights files or adapters.")
    ],
    base: Annotated[
        str | None,
        typer.Option(help="What the models were fine-tuned from; task vectors are differences from it."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write one self-contained page with plots to this file.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the --html file.")] = False,
    rank: Annotated[
        str,
        typer.Option(
            help="Effective ranks: of a sample of matrices, of all, or none.", metavar="sample|all|none"
        ),
    ] = "sample",
    memory: console.MEMORY = "1GiB",
    threads: Annotated[int, typer.Option(help="Worker threads; 0 is one a core.", min=0)] = 0,
    allow_pickle: console.ALLOW_PICKLE = False,
    as_json: console.JSON = False,
) -> None:
    """Say whether checkpoints share a base, how their changes agree, and what that advises for a merge.

    By group of tensors: cosines, sign conflicts, overlap of the largest entries, norms, effective ranks.
    Checkpoints are streamed; nothing of them is run.
    """
    limit = console.parse_size(memory, "--memory")
    _page.check(html, overwrite)
    from merganser import open as open_weights
    from merganser.compare import diagnose, page

    opened = [open_weights(path, name=path, allow_pickle=allow_pickle) for path in models]
    origin = None if base is None else open_weights(base, name=base, allow_pickle=allow_pickle)
    with console.progress(not as_json, "comparing") as progress:
        found = diagnose(opened, origin, rank=rank, threads=threads, memory=limit, progress=progress)
    _page.tell(found, report, html, page(found) if html is not None else "", as_json)


def report(found: dict[str, Any]) -> None:
    """The diagnosis as text."""
    from merganser.compare import between_models, mean_of

    compared, whole = found["compared"], found["whole"]
    console.say(
        f"{compared['tensors']} tensors with {compared['elements']:,} numbers compared, "
        f"matched by {compared['matched_by']}"
    )
    if left := compared["left_out"]:
        console.say(
            f"not compared: {len(left)} ({left[0]['tensor']} of {left[0]['model']}: {left[0]['reason']}"
            f"{' ...' if len(left) > 1 else ''})"
        )
    console.say(f"verdict: {found['verdict']}")
    changed = any("change" in row for row in whole["models"])
    if changed:
        console.say()
        console.table(
            ("model", "norm of change", "of base", "entries changed"),
            [
                (row["model"], _number(row["change"]), _share(row["relative_change"]), _share(row["changed"]))
                for row in whole["models"]
                if "change" in row
            ],
        )
    console.say()
    _pairs(whole["pairs"], changed)
    console.say()
    rows = []
    for kind in found["by_kind"]:
        pairs = between_models(found, kind)
        verdicts = {row["verdict"] for row in pairs}
        cells = [kind["kind"], kind["tensors"], _number(mean_of(pairs, "correspondence"))]
        cells += [_number(mean_of(pairs, "cosine"))]
        if changed:
            cells += [_number(mean_of(pairs, "vector_cosine"))]
            cells += [_share(mean_of(pairs, key)) for key in ("sign_conflicts", "large_conflicts")]
            cells += [_share(mean_of(pairs, "overlap", top)) for top in ("1%", "10%")]
            cells += [_share(kind["together"].get("cancelled"))]
        cells += [_number(mean_of([r for r in found["rank"] if r["kind"] == kind["kind"]], "effective"))]
        rows.append((*cells, verdicts.pop() if len(verdicts) == 1 else "mixed"))
    heads = ["kind", "tensors", "correspondence", "cosine"]
    if changed:
        heads += ["task vectors", "conflicts", "among large", "top 1%", "top 10%", "cancelled"]
    console.table((*heads, "effective rank", "verdict"), rows)
    for one in found["advice"]:
        sources = f" [{', '.join(one['papers'])}]" if one["papers"] else ""
        console.say(f"\n{one['about']}: {one['advice']}\n  because {one['because']}{sources}")


def _pairs(pairs: list[dict[str, Any]], changed: bool, most: int = 30) -> None:
    heads = [
        "a",
        "b",
        "correspondence",
        "cosine",
        "distance",
        *(["task vectors"] if changed else []),
        "verdict",
    ]
    console.table(
        heads,
        [
            (
                row["a"],
                row["b"],
                *(_number(row.get(key)) for key in ("correspondence", "cosine", "distance")),
                *([_number(row.get("vector_cosine"))] if changed else []),
                row["verdict"],
            )
            for row in pairs[:most]
        ],
    )
    if len(pairs) > most:
        console.say(f"... and {len(pairs) - most} more pairs")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
