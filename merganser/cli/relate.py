"""`merganser relate`: two models or more on the same inputs, and the line between them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from merganser.cli import _page, console

if TYPE_CHECKING:
    from merganser.algebra import Weights

NAME = "relate"
EXAMPLE = "Example: merganser relate seed0 seed1 test.jsonl --align weights --html related.html"
ALIGNMENTS = ("none", "weights", "activations", "both")


def command(
    models: Annotated[
        list[str], typer.Argument(metavar="MODELS", help="Two model directories or more.", show_default=False)
    ],
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA", help="Rows (.jsonl, .parquet, .csv, .txt) or a suite (.yaml).", show_default=False
        ),
    ],
    text: Annotated[str, typer.Option(help="Column of texts.")] = "text",
    label: Annotated[
        str | None, typer.Option(help="Column of labels; default: `label` where there is one.")
    ] = None,
    head: Annotated[Path | None, typer.Option(help="A linear head, for encoders without one.")] = None,
    task: Annotated[
        str | None, typer.Option(help="Of a suite, the task whose texts the spaces are made of.")
    ] = None,
    max_length: Annotated[int | None, typer.Option(help="Cut texts after so many tokens.", min=1)] = None,
    rows: Annotated[int | None, typer.Option(help="Only the first rows.", min=1)] = None,
    only: Annotated[
        str | None,
        typer.Option(
            help="What to do of line, weights, cka, relative, transfer, with commas; default: all that can be done."
        ),
    ] = None,
    align: Annotated[
        str,
        typer.Option(
            help="Measure lines also after aligning the second model.",
            metavar="none|weights|activations|both",
        ),
    ] = "none",
    points: Annotated[int, typer.Option(help="Points on a line, ends included.", min=3)] = 11,
    anchors: Annotated[
        str | None,
        typer.Option(
            metavar="N,...",
            help="Anchors of relative representations; default: 128, or half of the rows. Of several numbers the first "
            "is for everything, and the spaces are compared by each.",
        ),
    ] = None,
    pooling: Annotated[
        str, typer.Option(help="How states of a text become one.", metavar="mean|cls|last")
    ] = "mean",
    batch: Annotated[int, typer.Option(help="Rows that run at once.", min=1)] = 32,
    seed: Annotated[int, typer.Option(help="Of anchors, halves of the rows and Hopkins' draws.", min=0)] = 0,
    memory: Annotated[str, typer.Option(help="For the moments that --align activations collects.")] = "4GiB",
    html: Annotated[
        Path | None, typer.Option(help="Write one self-contained page with plots to this file.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the --html file.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
    as_json: console.JSON = False,
) -> None:
    """Relate models by running them: losses on the line between them, layers, spaces, heads passed between them.

    Pairs are all pairs of MODELS. Nothing is written but the page.
    """
    from merganser import open as open_weights
    from merganser.errors import RequestError, did_you_mean

    _page.check(html, overwrite)
    limit = console.parse_size(memory, "--memory")
    for option, given, known in (
        ("--align", align, ALIGNMENTS),
        ("--pooling", pooling, ("mean", "cls", "last")),
    ):
        if given not in known:
            raise RequestError(
                f"{option} {given!r} is unknown{did_you_mean(given, known)} (known: {', '.join(known)})"
            )
    if len(models) < 2:
        raise RequestError("relating takes two models or more, and DATA after them")
    if data.is_dir():
        raise RequestError(f"{data}: is a directory; the last argument is the data: rows, or a suite")
    from merganser.compare.relation import read_data, relate
    from merganser.compare.relation_page import relation_page

    given_data = read_data(
        data, text=text, label=label, head=head, task=task, max_length=max_length, rows=rows
    )
    opened = [open_weights(path, name=path) for path in models]
    parts = None if only is None else [part.strip() for part in only.split(",")]
    with console.progress(not (as_json or quiet), "relating", "runs") as progress:
        found = relate(
            opened,
            given_data,
            parts=parts,
            aligners=_aligners(align, given_data, batch, limit),
            points=points,
            anchors=_numbers(anchors),
            pooling=pooling,  # type: ignore[arg-type]
            batch=batch,
            seed=seed,
            progress=progress,
        )
    _page.tell(found, report, html, relation_page(found) if html is not None else "", as_json)


def _numbers(text: str | None) -> list[int] | None:
    from merganser.errors import RequestError

    if text is None:
        return None
    try:
        return [int(one) for one in text.split(",")]
    except ValueError:
        raise RequestError(
            f"--anchors {text!r}: expected whole numbers with commas, as in 32,64,128"
        ) from None


def _aligners(align: str, data: Any, batch: int, memory: int) -> dict[str, Any]:
    """By name, what brings a second model into a first one's order. Methods and models meet here."""

    def by_weights(second: Weights, first: Weights) -> Weights:
        from merganser.methods.align.weight_matching import align as matched

        return matched(second, to=first)

    def by_activations(second: Weights, first: Weights) -> Weights:
        from merganser.compare.relation import MOST_ROWS
        from merganser.methods.align.activation_matching import align_activations
        from merganser.observe.paired import pair_texts
        from merganser.running import open_model

        one, two = (open_model(w.label) for w in (first, second))  # their labels are their paths
        moments = pair_texts(
            one, two, data.texts[:MOST_ROWS], max_length=data.max_length, batch=batch, memory=memory
        )
        return align_activations(second, to=first, statistics=moments.weights())

    known = {"weights": by_weights, "activations": by_activations}
    return {name: function for name, function in known.items() if align in (name, "both")}


def report(found: dict[str, Any]) -> None:
    """The relation as text."""
    numbers = {row["model"]: k + 1 for k, row in enumerate(found["models"])}
    rows = []
    for row in found["models"]:
        scores = [
            f"{name}: {one['loss']:.4f}" + ("" if one["right"] is None else f" ({one['right']:.1%} right)")
            for name, one in row.get("scores", {}).items()
        ]
        rows.append((numbers[row["model"]], row["model"], row["kind"], "; ".join(scores)))
    console.table(("no.", "model", "kind", "loss"), rows)
    _lines(found, numbers)
    for row in found["cka"]:
        same = [row["values"][k][k] for k in range(min(len(row["values"]), len(row["values"][0])))]
        console.say(
            f"\nCKA of {numbers[row['a']]} and {numbers[row['b']]}, layer by layer: "
            + " ".join("-" if value is None else f"{value:.2f}" for value in same)
        )
    _relative(found["relative"], numbers)
    if found["transfer"]:
        console.say()
        console.table(
            ("model", "transfer score", "uniformity", "Hopkins", "mutual information"),
            [
                (
                    row["model"],
                    *(f"{row[k]:.4f}" for k in ("score", "uniformity", "hopkins", "mutual_information")),
                )
                for row in found["transfer"]["rows"]
            ],
        )
        console.say(f"the score selects {found['transfer']['selected']}")
    for row in found["warnings"]:
        console.say(f"\nwarning, {row['what']}{' of ' + row['of'] if row['of'] else ''}: {row['why']}")
    for row in found["left_out"]:
        console.say(
            f"\nleft out: {row['what']}{' of ' + row['of'] if row['of'] else ''}\n  because {row['why']}"
        )


def _lines(found: dict[str, Any], numbers: dict[str, int]) -> None:
    if found["lines"]:
        console.say()
        console.table(
            ("pair", "task", "second model", "barrier", "at", "loss in the middle", "right"),
            [
                (
                    f"{numbers[row['a']]} and {numbers[row['b']]}",
                    row["task"],
                    _way(row),
                    f"{row['barrier']:.4f}",
                    f"{row['barrier_at']:.2f}",
                    f"{row['losses'][len(row['shares']) // 2]:.4f}",
                    "-" if row["right"] is None else f"{row['right'][len(row['shares']) // 2]:.1%}",
                )
                for row in found["lines"]
            ],
        )
    if found["weights"]:
        console.say()
        console.table(
            ("pair", "second model", "L2 distance", "singular vectors, weighted", "large ones"),
            [
                (
                    f"{numbers[row['a']]} and {numbers[row['b']]}",
                    _way(row),
                    f"{row['distance']:.4g}",
                    _number(row["weighted"]),
                    _number(row["large"]),
                )
                for row in found["weights"]
            ],
        )


def _relative(found: dict[str, Any] | None, numbers: dict[str, int]) -> None:
    if found is None:
        return
    console.say(f"\n{found['anchors']} anchors, {found['scored_rows']} rows compared")
    console.table(
        ("pair", "form", "mrr", "by chance", "neighbours shared", "cosine"),
        [
            (
                f"{numbers[row['a']]} and {numbers[row['b']]}",
                {"shuffled": "wrong anchors"}.get(form, form),
                *(f"{row[form][key]:.3f}" for key in ("mrr", "mrr_chance", "jaccard", "cosine")),
            )
            for row in found["pairs"]
            for form in ("relative", "absolute", "shuffled")
            if row[form] is not None
        ],
    )
    if found.get("sweep"):
        console.say()
        console.table(
            ("anchors", "pair", "mrr", "by chance", "neighbours shared", "cosine"),
            [
                (
                    row["anchors"],
                    f"{numbers[row['a']]} and {numbers[row['b']]}",
                    *(f"{row[key]:.3f}" for key in ("mrr", "mrr_chance", "jaccard", "cosine")),
                )
                for row in found["sweep"]
            ],
        )
    if found["stitched"]:
        console.say()
        console.table(
            ("head trained on", "scored on", "relative", "absolute", "wrong anchors"),
            [
                (
                    numbers[row["trained_on"]],
                    numbers[row["scored_on"]],
                    *(
                        "-" if row[k] is None else f"{row[k]:.1%}"
                        for k in ("relative", "absolute", "shuffled")
                    ),
                )
                for row in found["stitched"]
            ],
        )
        console.say(f"the most common class: {found['most_common']:.1%}")


def _way(row: dict[str, Any]) -> str:
    return f"aligned by {row['aligned']}" if row["aligned"] else "as it is"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
