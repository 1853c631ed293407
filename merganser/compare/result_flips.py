"""The part of the page of a comparison that is about single samples: flips, and what a merge gains and loses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from merganser.compare import result_cells as cells
from merganser.compare.parts import card, table
from merganser.compare.plots import text
from merganser.compare.result_cells import MOST_DRAWN
from merganser.compare.result_plots import flip_bars, short

Row = dict[str, Any]


def flips(document: Row, colours: dict[str, int]) -> str:
    """Answers that change from the reference to each model."""
    others = [name for name in colours if name != document["reference"]]
    drawn, lines, shown, graded = [], [], [], []
    for task in document["tasks"]:
        held = {row["model"]: row for row in task["flips"]}
        if not held:
            continue
        if "of" in next(iter(held.values())):
            graded += [
                [
                    cells.words(task["task"]),
                    cells.model(row["model"], colours),
                    cells.words(row["of"]),
                    cells.share(row["worse"]),
                    cells.share(row["better"]),
                    f"{row['regression']:.4g}",
                    f"{row['gain']:.4g}",
                ]
                for row in held.values()
            ]
            continue
        bars = []
        for name in others:
            row = held[name]
            floors = [value for value in row["negative_between_seeds"].values() if value is not None]
            floor = sum(floors) / len(floors) if floors else None
            bars.append((row["negative"]["share"], row["positive"]["share"], floor))
            lines.append(
                [
                    cells.words(task["task"]),
                    cells.model(name, colours),
                    cells.counted(row["negative"]),
                    cells.counted(row["positive"]),
                    cells.share(row["kept"]),
                    cells.share(row.get("inconsistent")),
                    cells.share(row.get("both_wrong_differ")),
                    cells.share(row.get("both_right_differ")),
                    cells.share(row.get("agreement")),
                    cells.share(floor),
                ]
            )
            shown += [
                (task["task"], name, kind, one) for kind, some in row["examples"].items() for one in some
            ]
        drawn.append((task["task"], bars))
    if not drawn and not graded:
        return ""
    parts = ["<h2>Flips</h2>"]
    if drawn:
        heads = ["task", "model", "lost", "gained", "kept", "inconsistent", "both wrong, differ"]
        heads += ["both right, differ", "agreement", "between seeds"]
        plot = flip_bars(drawn[:MOST_DRAWN], [colours[name] for name in others], others, "Flips")
        parts.append(
            f'<div class="card wide"><h3>Against {text(document["reference"])}, share of samples'
            f"{' (the mark: flips between seeds of one model)' if any(line[-1] for line in lines) else ''}</h3>"
            f"{cells.legend_of(others, colours)}{plot}{cells.more(len(drawn), MOST_DRAWN)}"
            "<details><summary>the numbers</summary>"
            f"{cells.tight(table(heads, lines[: 4 * MOST_DRAWN], words=(0, 1)))}"
            f"{cells.more(len(lines), 4 * MOST_DRAWN)}</details>"
            f"{_flip_examples(shown, colours, document['reference'])}</div>"
        )
    if graded:
        heads = ["task", "model", "of", "worse", "better", "mean regression", "mean gain"]
        parts.append(
            card(
                "<h3>Samples that got better or worse</h3>"
                + cells.tight(table(heads, graded[: 4 * MOST_DRAWN], words=(0, 1, 2)))
                + cells.more(len(graded), 4 * MOST_DRAWN)
            )
        )
    return "".join(parts)


_KINDS = {"negative": "lost", "positive": "gained", "both_wrong_differ": "both wrong, differ"}


def _flip_examples(
    shown: Sequence[tuple[str, str, str, Row]], colours: dict[str, int], reference: str
) -> str:
    rows = [
        [
            cells.words(task),
            cells.model(name, colours),
            cells.words(_KINDS[kind]),
            cells.words(one["id"]),
            cells.given(one.get("given")),
            cells.words(one["answer"]),
            cells.words(one["outputs"]["old"]["output"]),
            cells.words(one["outputs"]["new"]["output"]),
            cells.loss(one["outputs"]["old"]["loss"]),
            cells.loss(one["outputs"]["new"]["loss"]),
        ]
        for task, name, kind, one in _some(shown)
    ]
    if not rows:
        return ""
    heads = [
        "task",
        "model",
        "change",
        "sample",
        "given",
        "answer",
        "before",
        "now",
        "loss before",
        "loss now",
    ]
    return (
        f"<details><summary>{len(rows)} example{'s' * (len(rows) != 1)} (before: {text(reference)})</summary>"
        f"{_how_to_get_texts(shown)}{cells.tight(table(heads, rows, words=range(8)))}</details>"
    )


def _how_to_get_texts(shown: Sequence[tuple[str, str, str, Row]]) -> str:
    if all("given" in one for *_, one in shown):
        return ""
    return '<p class="soft">--suite, with the suite that was evaluated, shows what the models were given.</p>'


def _some(shown: Sequence[Any], most: int = 120) -> list[Any]:
    """The first of every task and model in turn, so that none crowds out the others."""
    lists: dict[tuple[Any, ...], list[Any]] = {}
    for one in shown:
        lists.setdefault(tuple(one[:-1]), []).append(one)
    share = max(1, most // max(1, len(lists)))
    return [one for some in lists.values() for one in some[:share]][:most]


def after_merge(document: Row, colours: dict[str, int]) -> str:
    """What is right only after the merge, and what it loses."""
    if not document["after_merge"]:
        return ""
    lines, shown = [], []
    for row in document["after_merge"]:
        only, lost, some = row["only_merged"], row["lost_by_all"], row["lost_by_some"]
        alone = ", ".join(f"{cells.count(value)}" for value in row["alone"].values())
        lines.append(
            [
                cells.words(row["task"]),
                cells.model(row["model"], colours, 18),
                cells.counted(only),
                cells.count(only["expected"]),
                cells.share(row["rescued"]),
                alone,
                cells.counted(lost),
                cells.count(lost["expected"]),
                cells.counted(some),
                cells.count(some["expected"]),
                cells.share(row["any_parent"]),
            ]
        )
        shown += [(row["task"], row["model"], "gained", one) for one in only["examples"]]
        shown += [(row["task"], row["model"], "lost by all", one) for one in lost["examples"]]
    names = [*document["parents"], *([document["base"]] if document["base"] else [])]
    rows = [
        [
            cells.words(task),
            cells.model(model, colours, 18),
            cells.words(kind),
            cells.words(one["id"]),
            cells.given(one.get("given")),
            cells.words(one["answer"]),
            cells.words(one["outputs"]["merged"]["output"]),
            *(cells.words(one["outputs"][name]["output"]) for name in document["parents"]),
            *([cells.words(one["outputs"]["base"]["output"])] if document["base"] else []),
        ]
        for task, model, kind, one in _some(shown)
    ]
    heads = ["task", "model", "only merged", "only merged, by chance", "rescued"]
    heads += ["parents alone", "lost by all", "lost by all, by chance", "lost by some"]
    heads += ["lost by some, by chance", "any parent"]
    details = ""
    if rows:
        top = ["task", "model", "change", "sample", "given", "answer", "merged"]
        top += [short(name, 18) for name in names]
        details = (
            f"<details><summary>{len(rows)} example{'s' * (len(rows) != 1)}</summary>"
            f"{_how_to_get_texts(shown)}{cells.tight(table(top, rows, words=range(len(top))))}</details>"
        )
    return (
        "<h2>Right only after the merge</h2>"
        f'<p class="soft">Parents: {text(", ".join(document["parents"]))}. Only merged: right, and every '
        "parent wrong; by chance: what independent answers would give; rescued: of the samples on which every "
        "parent is wrong; parents alone: samples that one parent has right and the others wrong, in the "
        "order of the parents. Lost: right in all or in some parents and wrong after the merge. Any parent: "
        "the share that some parent gets right.</p>"
        + card(cells.tight(table(heads, lines[: 2 * MOST_DRAWN], words=(0, 1))) + details)
    )
