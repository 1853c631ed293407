"""The comparison of results as one HTML page that needs nothing else: no scripts, no requests, light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from merganser._version import __version__
from merganser.compare import result_cells as cells
from merganser.compare import result_flips
from merganser.compare.parts import card, figure, sheet, table
from merganser.compare.plots import SERIES, heatmap, text
from merganser.compare.result_cells import MOST_DRAWN
from merganser.compare.result_plots import (
    Interval,
    forest,
    rank_lines,
    reliability,
    short,
    signed,
    spread,
)
from merganser.compare.scores import SHARES

Row = dict[str, Any]
MOST_CURVES = 12
STYLE = """
.note{border-left:4px solid var(--warm)}.note p{margin:3px 0}
.row{font:13px system-ui,sans-serif;fill:var(--text)}.zero{stroke:var(--text);stroke-width:1.2}.faint{opacity:.55}
.small{paint-order:stroke;stroke:var(--card);stroke-width:3px}.bar.lost{opacity:.55}.good{color:var(--good);font-weight:600}.bad{color:var(--bad);font-weight:600}
.tiles{display:grid;gap:14px;grid-template-columns:repeat(auto-fit,minmax(190px,1fr));margin:14px 0 16px}
.tile{background:var(--card);border:1px solid var(--edge);border-top:4px solid var(--c);
border-radius:10px;padding:10px 14px}
.tile b{display:block;overflow-wrap:anywhere}.big{font-size:24px;font-weight:600;line-height:1.3}
.tag{font-size:11.5px;color:var(--soft);border:1px solid var(--edge);border-radius:9px;padding:0 7px;margin-left:6px;
font-weight:400}
.curves{display:grid;gap:16px;grid-template-columns:repeat(auto-fit,minmax(min(100%,320px),1fr))}
.dotted::before{content:"";display:inline-block;width:9px;height:9px;border-radius:5px;margin-right:7px;background:var(--c)}
details{margin:10px 0}summary{cursor:pointer;color:var(--soft)}details .card{margin-top:8px}
table.tight td,table.tight th{padding:4px 7px}
td.said{text-align:left;white-space:normal;overflow-wrap:anywhere;min-width:92px}
td.given{min-width:min(260px,60vw)}
table.tight th{white-space:normal}
.wide{margin-bottom:16px}.legend{margin:2px 0 8px}
"""


def comparison_page(document: Row) -> str:
    """The page for a document of `compare`."""
    colours = {model["name"]: k for k, model in enumerate(document["models"])}
    parts = [
        _head(document, colours),
        _notes(document),
        _summary(document, colours),
        _differences(document, colours),
        result_flips.flips(document, colours),
        result_flips.after_merge(document, colours),
        _calibration(document, colours),
        _outputs(document, colours),
        _seeds(document, colours),
        _ranks(document, colours),
        _method(document),
    ]
    title = "merganser compare: " + ", ".join(row["name"] for row in document["models"][:4])
    return sheet(title, parts, STYLE)


def _head(document: Row, colours: dict[str, int]) -> str:
    roles = _roles(document)
    first = next((row for row in document["overall"] if row["measure"] in SHARES), None)
    first = first or (document["overall"][0] if document["overall"] else None)
    scores = {}
    if first is not None:
        what = f"{first['measure']}, mean of {len(first['tasks'])} tasks"
        scores = {row["model"]: row for row in first["mean_of_tasks"]["scores"]}
        apart = {row["model"]: row for row in first["mean_of_tasks"]["differences"]}
        measure, better = first["measure"], first["better"]
    else:
        one = document["tasks"][0]["measures"][0]
        what, measure, better = (
            f"{one['measure']} on {document['tasks'][0]['task']}",
            one["measure"],
            one["better"],
        )
        scores = {row["model"]: row for row in one["scores"]}
        apart = {row["model"]: row for row in one["differences"]}
    tiles = []
    for name, colour in colours.items():
        row, change = scores[name], apart.get(name)
        tag = f'<span class="tag">{text(roles[name])}</span>' if roles.get(name) else ""
        below = "reference"
        if change is not None and change["difference"] is not None:
            said = signed(change["difference"], measure in SHARES)
            sure = f" ({cells.limits(change, measure)})" if change["low"] is not None else ""
            below = f'<span class="{cells.tone(change, better)}">{said}</span>{sure}'
        runs = next(len(model["runs"]) for model in document["models"] if model["name"] == name)
        several = f", {runs} runs" if runs > 1 else ""
        tiles.append(
            f'<div class="tile s{colour % SERIES}"><b title="{text(name)}">{text(short(name, 60))}{tag}</b>'
            f'<div class="big">{cells.score(row["score"], measure)}</div><div '
            f'class="soft">{below}{several}</div></div>'
        )
    tasks = document["tasks"]
    return (
        "<h1>On the same samples</h1>"
        f'<p class="soft">{len(colours)} models, {len(tasks)} {"task" if len(tasks) == 1 else "tasks"}, '
        f"{document['samples']:,} samples that every model answered. Reference: "
        f"{text(document['reference'])}. "
        f"Below: {text(what)}, and the difference with its {document['confidence']:.0%} interval. merganser "
        f"{text(__version__)}</p>"
        f'<div class="tiles">{"".join(tiles)}</div>'
    )


def _notes(document: Row) -> str:
    said = [text(note) for note in document["notes"]]
    for row in document["unpaired"]:
        said.append(
            text(
                f"task {row['task']!r}: {row['unpaired']} of the {row['samples']} samples of {row['model']} "
                f"have no partner (ids {', '.join(map(cells.cut, row['examples']))}); left out"
            )
        )
    turned = document["concordance"]["turned"] if document["concordance"] else []
    if turned:
        first = turned[0]
        more = f", and {len(turned) - 1} more pairs like it" if len(turned) > 1 else ""
        said.append(
            text(
                f"{first['a']} is better than {first['b']} on {cells.listed(first['better_on'])} and worse on "
                f"{cells.listed(first['worse_on'])}, beyond chance{more}: a mean over tasks hides that"
            )
        )
    if not said:
        return ""
    shown = "".join(f"<p>{one}</p>" for one in said[:MOST_DRAWN])
    return f'<div class="card note wide">{shown}{cells.more(len(said), MOST_DRAWN)}</div>'


def _summary(document: Row, colours: dict[str, int]) -> str:
    shown, hidden = _over(document, colours, "mean_of_tasks"), _over(document, colours, "pooled")
    if not shown:
        return ""
    heads = ["measure", "tasks", "model", "score", "difference", "interval", "p", "detectable"]
    content = cells.tight(table(heads, shown, words=(0, 2)))
    if hidden:
        pooled = cells.tight(table(heads, hidden, words=(0, 2)))
        content += f"<details><summary>all samples in one, whatever their task</summary>{pooled}</details>"
    return "<h2>Mean of the tasks</h2>" + card(content)


def _over(document: Row, colours: dict[str, int], key: str) -> list[list[str]]:
    rows: list[list[str]] = []
    for row in document["overall"]:
        apart = {one["model"]: one for one in row[key]["differences"]} if key in row else {}
        for one in row[key]["scores"] if key in row else []:
            rows.append(
                [
                    row["measure"],
                    str(len(row["tasks"])),
                    cells.model(one["model"], colours),
                    cells.score(one["score"], row["measure"]),
                    *cells.difference(apart.get(one["model"]), row["measure"], row["better"], holm=False),
                ]
            )
    return rows


def _differences(document: Row, colours: dict[str, int]) -> str:
    parts: list[str] = []
    further: list[str] = []
    first = {task["measures"][0]["measure"] for task in document["tasks"]} | {"loss"}
    others = [name for name in colours if name != document["reference"]]
    measures = list(dict.fromkeys(m["measure"] for task in document["tasks"] for m in task["measures"]))
    for measure in measures:
        rows: list[tuple[str, Sequence[Interval | None]]] = []
        better = "higher"
        overall = next((row for row in document["overall"] if row["measure"] == measure), None)
        if overall is not None:
            held = {row["model"]: row for row in overall["mean_of_tasks"]["differences"]}
            rows.append(("mean of tasks", [cells.interval(held.get(name)) for name in others]))
        lines = []
        for task in document["tasks"]:
            for one in task["measures"]:
                if one["measure"] != measure:
                    continue
                better = one["better"]
                held = {row["model"]: row for row in one["differences"]}
                rows.append((task["task"], [cells.interval(held.get(name)) for name in others]))
                lines += _rows(task["task"], one, colours)
        drawn = forest(
            rows[:MOST_DRAWN],
            [colours[name] for name in others],
            others,
            f"Differences of {measure}",
            higher=better == "higher",
            percent=measure in SHARES,
        )
        unit = " in percentage points" if measure in SHARES else ""
        heads = ["task", "model", "score", "difference", "interval", "p", "p, Holm", "detectable"]
        content = table(heads, lines[: 4 * MOST_DRAWN], words=(0, 1))
        told = (
            f'<div class="card wide"><h3>{text(measure.capitalize())}: difference from '
            f"{text(document['reference'])}{unit}</h3>"
            f"{cells.legend_of(others, colours)}{drawn}{cells.more(len(rows), MOST_DRAWN)}"
            f"<details><summary>the numbers</summary>{cells.tight(content)}{cells.more(len(lines), 4 * MOST_DRAWN)}"
            "</details></div>"
        )
        (parts if measure in first else further).append(told)
    if further:
        parts.append(f"<details><summary>further measures</summary>{''.join(further)}</details>")
    return "<h2>By task</h2>" + "".join(parts)


def _rows(task: str, one: Row, colours: dict[str, int]) -> list[list[str]]:
    held = {row["model"]: row for row in one["differences"]}
    return [
        [
            cells.words(task),
            cells.model(row["model"], colours),
            cells.score(row["score"], one["measure"]),
            *cells.difference(held.get(row["model"]), one["measure"], one["better"], holm=True),
        ]
        for row in one["scores"]
    ]


def _calibration(document: Row, colours: dict[str, int]) -> str:
    tasks = [task for task in document["tasks"] if task["calibration"]]
    if not tasks:
        return ""
    figures: list[str] = []
    lines: list[list[str]] = []
    for task in tasks:
        curves = [(colours[row["model"]], row["model"], row["curve"]) for row in task["calibration"]]
        if len(figures) < MOST_CURVES:
            figures.append(figure(task["task"], reliability(curves, f"Reliability on {task['task']}")))
        lines += [
            [
                cells.words(task["task"]),
                cells.model(row["model"], colours),
                f"{row['samples']:,}",
                cells.share(row["ece"]),
                cells.number(row["brier"]),
                signed(row["overconfidence"], True),
            ]
            for row in task["calibration"]
        ]
    heads = ["task", "model", "samples", "expected calibration error", "Brier", "overconfidence, points"]
    return (
        '<h2>Calibration</h2><p class="soft">How often a model is right (upwards) when it is this sure '
        "(across), in bins of equal mass; below the dashed line it promises too much. Of several runs the "
        f"first is drawn, the table has their mean.</p>{cells.legend_of(list(colours), colours)}<div "
        f'class="curves">{"".join(figures)}</div>{cells.more(len(tasks), MOST_CURVES)}'
        f"<details><summary>the numbers</summary>"
        f"{card(cells.tight(table(heads, lines[: 4 * MOST_DRAWN], words=(0, 1))))}</details>"
    )


def _outputs(document: Row, colours: dict[str, int]) -> str:
    lines = [
        [
            cells.words(task["task"]),
            cells.model(row["model"], colours),
            f"{row['samples']:,}",
            *(
                f"{row[key]['mean']:.4g}"
                + (
                    f" ({row[key]['low']:.4g} to {row[key]['high']:.4g})"
                    if row[key]["low"] is not None
                    else ""
                )
                for key in ("reference_to_model", "model_to_reference")
            ),
        ]
        for task in document["tasks"]
        for row in task["outputs"]
    ]
    if not lines:
        return ""
    heads = ["task", "model", "samples", "KL(reference ‖ model), nats", "KL(model ‖ reference), nats"]
    return "<h2>Distance of the outputs</h2>" + card(
        cells.tight(table(heads, lines[: 4 * MOST_DRAWN], words=(0, 1)))
        + cells.more(len(lines), 4 * MOST_DRAWN)
    )


def _seeds(document: Row, colours: dict[str, int]) -> str:
    if not document["seeds"]:
        return ""
    lines = []
    for row in document["seeds"]:
        for one in row["measures"]:
            ratio = one["signal_to_noise"]
            sampling = one["sampling"]
            lines.append(
                [
                    cells.words(row["task"]),
                    cells.model(row["model"], colours),
                    one["measure"],
                    str(row["runs"]),
                    cells.score(one["mean"], one["measure"]),
                    cells.size(one["sd"], one["measure"]),
                    cells.size(sampling, one["measure"]),
                    "" if ratio is None else f"{ratio:.3g}",
                ]
            )
    plots = []
    measures = list(dict.fromkeys(m["measure"] for row in document["seeds"] for m in row["measures"]))
    for measure in measures[:2]:
        drawn: dict[str, list[tuple[int, str, Sequence[float]]]] = {}
        for row in document["seeds"]:
            for one in row["measures"]:
                if one["measure"] == measure and None not in one["scores"]:
                    entry = (colours[row["model"]], row["model"], one["scores"])
                    drawn.setdefault(row["task"], []).append(entry)
        plot = spread(list(drawn.items())[:MOST_DRAWN], f"Runs, {measure}", measure in SHARES)
        plots.append(f'<div class="card wide"><h3>{text(measure.capitalize())} of every run</h3>{plot}</div>')
    tested = []
    for task in document["tasks"]:
        for measure in task["measures"]:
            for row in measure["differences"]:
                noise = row["seeds"]
                if noise is None:
                    continue
                verdict = "" if noise["p"] is None else ("yes" if noise["p"] < 0.05 else "no")
                tested.append(
                    [
                        cells.words(task["task"]),
                        cells.model(row["model"], colours),
                        measure["measure"],
                        signed(noise["difference"], measure["measure"] in SHARES),
                        cells.size(noise["sd"], measure["measure"]),
                        "" if noise["ratio"] is None else f"{noise['ratio']:.3g}",
                        cells.p_value(noise["p"]),
                        verdict,
                    ]
                )
    top = ["task", "model", "measure", "difference", "sd of a run", "difference / sd", "p", "beyond seeds"]
    heads = ["task", "model", "measure", "runs", "mean", "sd over runs", "se of samples", "mean / sd"]
    names = [name for name in colours if any(row["model"] == name for row in document["seeds"])]
    second = ""
    if tested:
        second = (
            f"<details><summary>is a difference from {text(document['reference'])} larger than that of "
            f"seeds?</summary>{card(cells.tight(table(top, tested[: 4 * MOST_DRAWN], words=(0, 1, 2))))}</details>"
        )
    return (
        f"<h2>Spread over seeds</h2>{cells.legend_of(names, colours)}{''.join(plots)}"
        f"<details><summary>the numbers</summary>"
        f"{card(cells.tight(table(heads, lines[: 4 * MOST_DRAWN], words=(0, 1, 2))))}</details>{second}"
    )


def _ranks(document: Row, colours: dict[str, int]) -> str:
    found = document["concordance"]
    if found is None or len(colours) < 2:
        return ""
    ranks = found["ranks"][:MOST_CURVES]
    tasks = [row["task"] for row in ranks]
    models = [(colours[name], name, [row["ranks"][name] for row in ranks]) for name in colours]
    drawn = rank_lines(tasks, models, "Places of the models by task")
    cards = [f'<div class="card wide"><h3>Places, 1 is best</h3>{drawn}</div>']
    if len(colours) > 2 and len(tasks) > 1:
        values = {(row["a"], row["b"]): row["tau"] for row in found["tau"]}
        square = [[1.0 if a == b else values.get((a, b), values.get((b, a))) for b in tasks] for a in tasks]
        title = "Kendall's tau-b between tasks"
        labels = [str(k + 1) for k in range(len(tasks))]
        listed = ", ".join(f"{k}: {short(task, 24)}" for k, task in zip(labels, tasks, strict=True))
        cards.append(
            f'<div class="cards"><div class="card"><h3>{title}</h3>{heatmap(labels, square, title)}'
            f'<p class="soft">{text(listed)}</p></div>{_reversals(document)}</div>'
        )
    else:
        cards.append(_reversals(document))
    more = cells.more(len(found["ranks"]), MOST_CURVES)
    return f"<h2>Do the tasks agree on the order?</h2>{''.join(cards)}{more}"


def _reversals(document: Row) -> str:
    found = document["concordance"]
    said = (
        f"{found['reversals']} times two models change places between two tasks; {found['significant']} of "
        "these are beyond chance in both tasks (Holm-adjusted p < 0.05)."
    )
    lines = [
        [
            cells.words(row["a"]),
            cells.words(row["b"]),
            cells.words(cells.listed(row["better_on"])),
            cells.words(cells.listed(row["worse_on"])),
        ]
        for row in found["turned"][:12]
    ]
    heads = ["model", "against", "better on", "worse on"]
    content = cells.tight(table(heads, lines, words=(0, 1, 2, 3))) if lines else ""
    return (
        f'<div class="card"><h3>Orders that turn around</h3><p>{said}</p>{content}'
        f"{cells.more(len(found['turned']), 12)}</div>"
    )


def _method(document: Row) -> str:
    return (
        '<h2>How to read this</h2><p class="soft">'
        f"Intervals: percentile bootstrap, {document['resamples']:,} resamples of the samples, seed "
        f"{document['seed']}, the same resamples for every model. p: McNemar's exact test for right and "
        "wrong, the paired t test for losses and for means of several runs, the bootstrap for correlations "
        "and over tasks; Holm: adjusted over the tasks of a measure. Detectable: the smallest difference "
        "that these samples would show with power 80 % at level 5 %. All of it speaks of the choice of "
        "samples; what another training seed would give is under spread over seeds, where several runs were "
        "given.</p>"
    )


def _roles(document: Row) -> dict[str, str]:
    roles = dict.fromkeys(document["merged"], "merged") | dict.fromkeys(document["parents"], "parent")
    if document["base"]:
        roles[document["base"]] = "base"
    return roles
