"""The diagnosis as one HTML page that needs nothing else: no scripts, no requests, light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from merganser._version import __version__
from merganser.compare import verdict
from merganser.compare.diagnosis import between_models, mean_of
from merganser.compare.parts import card, cell, figure, sheet, table
from merganser.compare.plots import bars, heatmap, lines, text

Row = dict[str, Any]
MOST_MODELS = 24
"""Models up to which matrices are drawn."""
MOST_ROWS = 60
"""Tensors in the page's last table: those whose task vectors (or weights) are least alike."""
_TONE = {
    verdict.SHARED: "good",
    verdict.SAME: "good",
    verdict.OPEN: "open",
    "mixed": "open",
    verdict.WEAK: "open",
}


def page(document: Row) -> str:
    """The page for a document of `diagnose`."""
    numbers = {row["name"]: str(k + 1) for k, row in enumerate(document["models"])}
    if document["base"]:
        numbers[document["base"]["name"]] = "base"
    parts = [
        _head(document, numbers),
        _advice(document),
        _between(document, numbers),
        _plots(document, numbers),
    ]
    parts += [_kinds(document), _ranks(document), _tensors(document), _notes(document)]
    title = "merganser diagnose: " + ", ".join(row["name"] for row in document["models"][:4])
    return sheet(title, parts)


def _head(document: Row, numbers: dict[str, str]) -> str:
    found = document["verdict"]
    whole = {row["model"]: row for row in document["whole"]["models"]}
    described = [*([document["base"]] if document["base"] else []), *document["models"]]
    rows = []
    for model in described:
        norms = whole.get(model["name"], {})
        rows.append(
            [
                numbers[model["name"]],
                cell(model["name"], "name"),
                f"{model['tensors']:,}",
                f"{model['parameters']:,}",
                _number(norms.get("norm")),
                _number(norms.get("change")),
                _percent(norms.get("relative_change")),
                _percent(norms.get("changed")),
            ]
        )
    compared = document["compared"]
    return (
        "<h1>Side by side</h1>"
        f'<p><span class="verdict {_TONE.get(found, "bad")}">{text(found)}</span></p>'
        f'<p class="soft">{compared["tensors"]:,} tensors with {compared["elements"]:,} numbers compared, matched by '
        f"{text(compared['matched_by'])}. merganser {text(__version__)}</p>"
        + card(
            table(
                [
                    "no.",
                    "checkpoint",
                    "tensors",
                    "numbers",
                    "norm",
                    "norm of change",
                    "of base",
                    "entries changed",
                ],
                rows,
                words=(1,),
            )
        )
    )


def _advice(document: Row) -> str:
    if not document["advice"]:
        return ""
    cards = "".join(
        f'<div class="card advice"><b>{text(one["advice"])}</b><p class="soft">{text(one["because"])}.'
        f"{' Methods: ' + text(', '.join(one['methods'])) + '.' if one['methods'] else ''}"
        f"{' Sources: ' + text(', '.join(one['papers'])) + '.' if one['papers'] else ''}</p></div>"
        for one in document["advice"]
    )
    return (
        '<h2>Advice</h2><p class="soft">From these numbers alone; only a score on held-out data says '
        f'whether a merge is good.</p><div class="cards">{cards}</div>'
    )


def _between(document: Row, numbers: dict[str, str]) -> str:
    rows = document["whole"]["pairs"]
    names = list(numbers)
    if document["base"]:
        names = [names[-1], *names[:-1]]
    cards = []
    if len(names) <= MOST_MODELS:
        for key, title in (
            ("correspondence", "Correspondence of weights (median over matrices)"),
            ("cosine", "Cosine of weights"),
            ("vector_cosine", "Cosine of task vectors"),
        ):
            shown = names if key != "vector_cosine" else [row["name"] for row in document["models"]]
            if len(shown) > 1 and any(row.get(key) is not None for row in rows):
                cards.append(figure(title, _square(shown, numbers, rows, key, title)))
        if document["centred"]:
            labels = [numbers[row["name"]] for row in document["models"]]
            title = f"Cosine of differences from the mean (orthogonal changes: {-1 / (len(labels) - 1):.2f})"
            cards.append(figure(title, heatmap(labels, document["centred"], title)))
    rated = table(
        [
            "pair",
            "verdict",
            "comparable",
            "correspondence",
            "cosine",
            "distance",
            "task vectors",
            "conflicts",
            "why",
        ],
        [
            [
                f"{numbers[row['a']]} and {numbers[row['b']]}",
                cell(row["verdict"], "word"),
                _percent(row["comparable"]),
                _number(row.get("correspondence")),
                _number(row.get("cosine")),
                _number(row.get("distance")),
                _number(row.get("vector_cosine")),
                _percent(row.get("sign_conflicts")),
                cell(row["reason"], "long"),
            ]
            for row in rows
        ],
        words=(1, 8),
    )
    return f'<h2>Between models</h2><div class="cards">{"".join(cards)}</div>' + card(rated, space=True)


def _square(names: Sequence[str], numbers: dict[str, str], rows: list[Row], key: str, title: str) -> str:
    values = {(row["a"], row["b"]): row.get(key) for row in rows}
    square = [[1.0 if a == b else values.get((a, b), values.get((b, a))) for b in names] for a in names]
    return heatmap([numbers[name] for name in names], square, title)


def _plots(document: Row, numbers: dict[str, str]) -> str:
    vectors = any("vector_cosine" in row for row in document["whole"]["pairs"])
    key, word = ("vector_cosine", "task vectors") if vectors else ("cosine", "weights")
    cards = []

    def add(title: str, drawn: str) -> None:
        if drawn:
            cards.append(figure(title, drawn))

    parts: dict[str, list[tuple[float, float]]] = {}
    for part in document["by_part"]:
        value = mean_of(between_models(document, part), key)
        if value is not None:
            parts.setdefault(part["kind"], []).append((float(part["layer"]), value))
    add(
        f"Cosine of {word} by layer, mean over pairs",
        lines(list(parts.items()), f"Cosine of {word} by layer", 0.0),
    )
    if vectors:
        moved = []
        for model in document["models"]:
            line = [
                (float(layer["layer"]), row["relative_change"] or row["change"])
                for layer in document["by_layer"]
                for row in layer["models"]
                if row["model"] == model["name"] and row.get("relative_change") is not None
            ]
            if line:
                moved.append((numbers[model["name"]], line))
        add("Change relative to the base, by layer", lines(moved, "Relative change by layer"))
        kinds = document["by_kind"]
        names = ("sign_conflicts", "weighted_conflicts", "large_conflicts")
        conflicts = [
            (kind["kind"], [mean_of(between_models(document, kind), name) for name in names], [0.5] * 3)
            for kind in kinds
        ]
        add(
            "Sign conflicts by kind, mean over pairs (the line: random signs)",
            bars(conflicts, ["of entries", "weighted by size", "among the largest 10 %"], "Sign conflicts"),
        )
        overlap = [
            (
                kind["kind"],
                [mean_of(between_models(document, kind), "overlap", top) for top in ("1%", "10%")],
                [
                    mean_of(between_models(document, kind), "overlap_by_chance", top) or 0.0
                    for top in ("1%", "10%")
                ],
            )
            for kind in kinds
        ]
        add(
            "Overlap of the largest entries by kind (the line: by chance)",
            bars(overlap, ["largest 1 %", "largest 10 %"], "Overlap of the largest entries"),
        )
    else:
        matched = [
            (kind["kind"], mean_of(between_models(document, kind), "correspondence"))
            for kind in document["by_kind"]
        ]
        add(
            "Correspondence by kind, mean over pairs (the line: a shared base)",
            bars(
                [
                    (name, [None if found is None else max(0.0, found)], [verdict.SHARED_FROM])
                    for name, found in matched
                ],
                ["correspondence"],
                "Correspondence",
            ),
        )
    return f'<h2>By layer and kind</h2><div class="cards">{"".join(cards)}</div>' if cards else ""


def _kinds(document: Row) -> str:
    rows = []
    for kind in document["by_kind"]:
        pairs = between_models(document, kind)
        found = {row["verdict"] for row in pairs}
        rows.append(
            [
                kind["kind"],
                cell(found.pop() if len(found) == 1 else "mixed", "word"),
                f"{kind['tensors']:,}",
                f"{kind['elements']:,}",
                _number(mean_of(pairs, "correspondence")),
                _number(mean_of(pairs, "cosine")),
                _number(mean_of(pairs, "vector_cosine")),
                _percent(mean_of(pairs, "sign_conflicts")),
                _percent(mean_of(pairs, "large_conflicts")),
                _percent(mean_of(pairs, "overlap", "1%")),
                _percent(mean_of(pairs, "overlap", "10%")),
                _percent(kind["together"].get("cancelled")),
            ]
        )
    heads = [
        "kind",
        "verdict",
        "tensors",
        "numbers",
        "correspondence",
        "cosine",
        "task vectors",
        "conflicts",
        "among large",
    ]
    heads += ["overlap 1 %", "overlap 10 %", "cancelled"]
    return "<h2>By kind of tensor</h2>" + card(table(heads, rows, words=(1,)))


def _ranks(document: Row) -> str:
    if not document["rank"]:
        return ""
    tensors: dict[str, list[Row]] = {}
    for one in document["rank"]:
        tensors.setdefault(one["tensor"], []).append(one)
    rows = [
        [
            cell(name, "name"),
            _range([one["effective"] for one in found]) + ("" if found[0]["exact"] else " (estimate)"),
            _percent(mean_of(found, "share")),
            _range([one["stable"] for one in found]),
            f"{found[0]['full']:,}",
        ]
        for name, found in list(tensors.items())[:MOST_ROWS]
    ]
    more = len(tensors) - len(rows)
    what = "task vector" if document["base"] or document["changes"] else "difference from the first model"
    return (
        f'<h2>Rank of the {what}</h2><p class="soft">Effective rank: exp of the entropy of the '
        "squared singular values. Stable rank: squared Frobenius norm over the squared largest singular value.</p>"
        + card(table(["tensor", "effective", "of full, mean", "stable", "full"], rows))
        + (f'<p class="soft">and {more} more</p>' if more else "")
    )


def _tensors(document: Row) -> str:
    vectors = any("vector_cosine" in row for row in document["whole"]["pairs"])
    key = "vector_cosine" if vectors else "correspondence"
    found = []
    for tensor in document["tensors"]:
        value = mean_of(between_models(document, tensor), key)
        if value is not None:
            found.append((value, tensor))
    found.sort(key=lambda item: item[0])
    rows = [
        [
            cell(tensor["tensor"], "name"),
            " x ".join(map(str, tensor["shape"])),
            _number(value),
            _number(mean_of(between_models(document, tensor), "cosine")),
            _percent(mean_of(between_models(document, tensor), "sign_conflicts")),
            _percent(mean_of(tensor["models"], "relative_change")),
        ]
        for value, tensor in found[:MOST_ROWS]
    ]
    word = "cosine of task vectors" if vectors else "correspondence"
    heads = ["tensor", "shape", word, "cosine of weights", "conflicts", "change"]
    more = (
        f'<p class="soft">and {len(found) - len(rows)} more; --json has all</p>'
        if len(found) > len(rows)
        else ""
    )
    return "<h2>Tensors least alike</h2>" + card(table(heads, rows)) + more if rows else ""


def _notes(document: Row) -> str:
    compared = document["compared"]
    lists = [
        (
            "Not compared",
            [f"{one['model']}: {one['tensor']} ({one['reason']})" for one in compared["left_out"]],
        ),
        ("NaN or Inf", compared["not_finite"]),
        ("Too large for the sample of ranks", document["rank_left_out"]),
    ]
    parts = []
    for title, names in lists:
        if names:
            shown = "".join(f"<p><code>{text(name)}</code></p>" for name in names[:MOST_ROWS])
            more = f"<p class='soft'>and {len(names) - MOST_ROWS} more</p>" if len(names) > MOST_ROWS else ""
            parts.append(f"<h2>{text(title)}</h2>{card(shown + more)}")
    return "".join(parts)


# Small things ---------------------------------------------------------------------------------------------------------


def _range(values: list[float]) -> str:
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} to {high}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
