"""The page of a relation: one HTML file without scripts or requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from merganser.compare.parts import card, cell, figure, sheet, table
from merganser.compare.plots import text
from merganser.compare.relation_plots import curves, layers

Row = dict[str, Any]
MOST_PAIRS = 12
"""Pairs whose plots are drawn."""
MOST_ROWS = 60


def relation_page(document: Row) -> str:
    """The page for a document of `relate`."""
    numbers = {row["model"]: str(k + 1) for k, row in enumerate(document["models"])}
    parts = [
        _head(document, numbers),
        _warnings(document),
        _lines(document, numbers),
        _weights(document, numbers),
        _cka(document, numbers),
        _relative(document, numbers),
        _transfer(document, numbers),
        _left_out(document),
    ]
    style = "details{margin-top:10px}summary{cursor:pointer;margin-bottom:6px}"
    return sheet("merganser relate: " + ", ".join(list(numbers)[:4]), parts, style)


def _head(document: Row, numbers: dict[str, str]) -> str:
    tasks = list(dict.fromkeys(name for row in document["models"] for name in row.get("scores", {})))
    heads = ["no.", "model", "kind", "width", "layers"]
    for name in tasks:
        heads += [f"loss, {name}", f"right, {name}"]
    rows = []
    for row in document["models"]:
        found: list[str] = [numbers[row["model"]], cell(row["model"], "name"), cell(row["kind"], "word")]
        found += [str(row.get("width", "")), str(row.get("layers", ""))]
        for name in tasks:
            score = row.get("scores", {}).get(name, {})
            found += [_number(score.get("loss")), _percent(score.get("right"))]
        rows.append(found)
    data = document["data"]
    of = f"{data['rows']:,} rows of " if data["rows"] else ""
    return (
        f'<h1>Related by running</h1><p class="soft">{of}{text(data["name"])}. Losses in nats. '
        f"merganser {text(document['version'])}</p>" + card(table(heads, rows, words=(1, 2)))
    )


def _warnings(document: Row) -> str:
    rows = [
        [cell(row["what"], "word"), cell(row["of"], "word"), cell(row["why"], "long")]
        for row in document["warnings"]
    ]
    if not rows:
        return ""
    return "<h2>Few rows</h2>" + card(table(["what", "of", "why"], rows, words=(1, 2)))


def _lines(document: Row, numbers: dict[str, str]) -> str:
    if not document["lines"]:
        return ""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in document["lines"]:
        groups.setdefault((row["a"], row["b"], row["task"]), []).append(row)
    figures = []
    for (a, b, task), rows in list(groups.items())[:MOST_PAIRS]:
        title = f"{numbers[a]} to {numbers[b]}, {task}: loss on the line"
        first = rows[0]
        chord = ((0.0, first["losses"][0]), (1.0, first["losses"][-1]))
        series = [(_way(row), list(zip(row["shares"], row["losses"], strict=True))) for row in rows]
        figures.append(figure(title, curves(series, title, chord)))
    heads = ["pair", "task", "second model", "barrier", "at", "middle", "right in the middle", "right lost"]
    body = []
    for row in document["lines"]:
        middle = len(row["shares"]) // 2
        body.append(
            [
                f"{numbers[row['a']]} and {numbers[row['b']]}",
                cell(row["task"], "word"),
                cell(_way(row), "word"),
                f"{row['barrier']:.4g}",
                f"{row['barrier_at']:.2g}",
                f"{row['losses'][middle]:.4g}",
                _percent(row["right"][middle]) if row["right"] else "",
                _percent(row["right_lost"]),
            ]
        )
    return (
        '<h2>The line between them</h2><p class="soft">(1 - t) A + t B, nothing written. Barrier: the largest excess '
        "of the loss over the dashed straight line between the ends; right lost: the same for the share of right "
        f'answers.</p><div class="cards">{"".join(figures)}</div>'
        + card(table(heads, body, words=(1, 2)), space=True)
    )


def _weights(document: Row, numbers: dict[str, str]) -> str:
    if not document["weights"]:
        return ""
    heads = ["pair", "second model", "L2 distance", "relative", "weighted by singular value", "large ones"]
    rows = [
        [
            f"{numbers[row['a']]} and {numbers[row['b']]}",
            cell(_way(row), "word"),
            f"{row['distance']:.5g}",
            f"{row['relative_distance']:.3f}",
            _number(row["weighted"]),
            _number(row["large"]),
        ]
        for row in document["weights"]
    ]
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in document["weights"]:
        groups.setdefault((row["a"], row["b"]), []).append(row)
    cards = []
    for (a, b), ways in list(groups.items())[:MOST_PAIRS]:
        names = [row["tensor"] for row in ways[0]["tensors"]][:MOST_ROWS]
        by_way = [{row["tensor"]: row for row in way["tensors"]} for way in ways]
        tops = ["matrix", *(_way(way) for way in ways)]
        body = [[cell(name, "name"), *(f"{one[name]['weighted']:.3f}" for one in by_way)] for name in names]
        more = len(ways[0]["tensors"]) - len(names)
        end = f'<p class="soft">and {more} more; --json has all</p>' if more > 0 else ""
        cards.append(
            f'<details><summary class="soft">{numbers[a]} and {numbers[b]}: weighted by singular value, by matrix'
            f"</summary>{card(table(tops, body))}{end}</details>"
        )
    return (
        '<h2>Weights</h2><p class="soft">How the singular vectors of each matrix agree, -1 to 1: weighted by the '
        "products of singular values, and among those of at least 0.3 of the largest.</p>"
        + card(table(heads, rows, words=(1,)))
        + "".join(cards)
    )


def _cka(document: Row, numbers: dict[str, str]) -> str:
    figures = []
    for row in document["cka"][:MOST_PAIRS]:
        title = f"{numbers[row['a']]} and {numbers[row['b']]}"
        drawn = layers(
            row["values"], f"layers of {numbers[row['a']]}", f"layers of {numbers[row['b']]}", title
        )
        figures.append(figure(title, drawn))
    return (
        (
            '<h2>Layers against layers</h2><p class="soft">Linear CKA of pooled states, unbiased: 0 for unrelated, 1 '
            f"for equal up to rotation, shift and scale. Layer 0 is the embeddings.</p>"
            f'<div class="cards">{"".join(figures)}</div>'
        )
        if figures
        else ""
    )


def _relative(document: Row, numbers: dict[str, str]) -> str:
    found = document["relative"]
    if not found:
        return ""
    heads = ["pair", "form", "mrr", "by chance", "neighbours shared", "cosine"]
    rows = []
    for pair in found["pairs"]:
        for form, word in (("relative", "relative"), ("absolute", "absolute"), ("shuffled", "wrong anchors")):
            one = pair[form]
            if one is not None:
                rows.append(
                    [
                        f"{numbers[pair['a']]} and {numbers[pair['b']]}",
                        cell(word, "word"),
                        f"{one['mrr']:.3f}",
                        f"{one['mrr_chance']:.3f}",
                        f"{one['jaccard']:.3f}",
                        f"{one['cosine']:.3f}",
                    ]
                )
    parts = [
        (
            f'<h2>Relative representations</h2><p class="soft">Each row as its cosines to {found["anchors"]} anchors, '
            f"of the last layer; {found['scored_rows']:,} rows compared. mrr: how well a row finds itself in the other "
            "model.</p>"
        ),
        card(table(heads, rows, words=(1,))),
    ]
    if found["stitched"]:
        names = list(dict.fromkeys(row["trained_on"] for row in found["stitched"]))
        by = {(row["trained_on"], row["scored_on"]): row for row in found["stitched"]}
        tables = []
        for form, word in (
            ("relative", "relative form"),
            ("absolute", "absolute form"),
            ("shuffled", "relative form, anchors of the second in a wrong order"),
        ):
            body = [[f"trained on {numbers[a]}", *(_percent(by[a, b][form]) for b in names)] for a in names]
            tables.append(
                figure(f"Right answers, {word}", table(["head", *(f"on {numbers[b]}" for b in names)], body))
            )
        parts.append(
            "<h3>Stitched: a head trained on one model's space, scored on another's</h3>"
            f'<p class="soft">The most common class: {_percent(found["most_common"])}.</p>'
            f'<div class="cards">{"".join(tables)}</div>'
        )
    return "".join(parts)


def _transfer(document: Row, numbers: dict[str, str]) -> str:
    found = document["transfer"]
    if not found:
        return ""
    rows = [
        [
            numbers[row["model"]],
            cell(row["model"], "name"),
            f"{row['score']:.4f}",
            f"{row['uniformity']:.4f}",
            f"{row['hopkins']:.4f}",
            f"{row['mutual_information']:.4f}",
        ]
        for row in sorted(found["rows"], key=lambda row: -row["score"])
    ]
    heads = ["no.", "model", "transfer score", "uniformity", "Hopkins", "mutual information"]
    return (
        '<h2>Transfer score</h2><p class="soft">Without labels: -uniformity + Hopkins + mutual information / ln '
        f"classes. It selects {text(found['selected'])}.</p>" + card(table(heads, rows, words=(1,)))
    )


def _left_out(document: Row) -> str:
    rows: Sequence[Sequence[str]] = [
        [cell(row["what"], "word"), cell(row["of"], "word"), cell(row["why"], "long")]
        for row in document["left_out"]
    ]
    if not rows:
        return ""
    return "<h2>Left out</h2>" + card(table(["what", "of", "why"], rows, words=(1, 2)))


def _way(row: Row) -> str:
    return f"aligned by {row['aligned']}" if row["aligned"] else "as it is"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
