"""The comparison of results as one HTML page that needs nothing else: no scripts, no requests, light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from merganser._version import __version__
from merganser.compare.parts import Cell, card, cell, figure, sheet, table
from merganser.compare.plots import SERIES, heatmap, legend, text
from merganser.compare.result_plots import (
    Interval,
    flip_bars,
    forest,
    rank_lines,
    reliability,
    short,
    signed,
    spread,
)
from merganser.errors import listing

Row = dict[str, Any]
MOST_DRAWN = 40
"""Tasks in a plot, and rows of a table; --json has all."""
MOST_CURVES = 12
MOST_SHOWN = 200
"""Characters of a text on the page."""
PERCENT = ("accuracy", "accuracy, normalised", "exact match")
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
        _flips(document, colours),
        _after_merge(document, colours),
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
    first = next((row for row in document["overall"] if row["measure"] in PERCENT), None)
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
            said = signed(change["difference"], measure in PERCENT)
            sure = f" ({_range(change, measure)})" if change["low"] is not None else ""
            below = f'<span class="{_tone(change, better)}">{said}</span>{sure}'
        runs = next(len(model["runs"]) for model in document["models"] if model["name"] == name)
        several = f", {runs} runs" if runs > 1 else ""
        tiles.append(
            f'<div class="tile s{colour % SERIES}"><b title="{text(name)}">{text(short(name, 60))}{tag}</b>'
            f'<div class="big">{_score(row["score"], measure)}</div><div '
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
                f"have no partner "
                f"(ids {', '.join(map(_cut, row['examples']))}); left out"
            )
        )
    turned = document["concordance"]["turned"] if document["concordance"] else []
    if turned:
        first = turned[0]
        more = f", and {len(turned) - 1} more pairs like it" if len(turned) > 1 else ""
        said.append(
            text(
                f"{first['a']} is better than {first['b']} on {_listed(first['better_on'])} and worse on "
                f"{_listed(first['worse_on'])}, beyond chance{more}: a mean over tasks hides that"
            )
        )
    if not said:
        return ""
    shown = "".join(f"<p>{one}</p>" for one in said[:MOST_DRAWN])
    return f'<div class="card note wide">{shown}{_more(len(said), MOST_DRAWN)}</div>'


def _summary(document: Row, colours: dict[str, int]) -> str:
    shown, hidden = _over(document, colours, "mean_of_tasks"), _over(document, colours, "pooled")
    if not shown:
        return ""
    heads = ["measure", "tasks", "model", "score", "difference", "interval", "p", "detectable"]
    content = _tight(table(heads, shown, words=(0, 2)))
    if hidden:
        pooled = _tight(table(heads, hidden, words=(0, 2)))
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
                    _model(one["model"], colours),
                    _score(one["score"], row["measure"]),
                    *_apart(apart.get(one["model"]), row["measure"], row["better"], holm=False),
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
            rows.append(("mean of tasks", [_interval(held.get(name)) for name in others]))
        lines = []
        for task in document["tasks"]:
            for one in task["measures"]:
                if one["measure"] != measure:
                    continue
                better = one["better"]
                held = {row["model"]: row for row in one["differences"]}
                rows.append((task["task"], [_interval(held.get(name)) for name in others]))
                lines += _rows(task["task"], one, colours)
        drawn = forest(
            rows[:MOST_DRAWN],
            [colours[name] for name in others],
            others,
            f"Differences of {measure}",
            higher=better == "higher",
            percent=measure in PERCENT,
        )
        unit = " in percentage points" if measure in PERCENT else ""
        heads = ["task", "model", "score", "difference", "interval", "p", "p, Holm", "detectable"]
        content = table(heads, lines[: 4 * MOST_DRAWN], words=(0, 1))
        told = (
            f'<div class="card wide"><h3>{text(measure.capitalize())}: difference from '
            f"{text(document['reference'])}"
            f"{unit}</h3>{_legend(others, colours)}{drawn}{_more(len(rows), MOST_DRAWN)}"
            f"<details><summary>the numbers</summary>{_tight(content)}{_more(len(lines), 4 * MOST_DRAWN)}"
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
            text_cell(task),
            _model(row["model"], colours),
            _score(row["score"], one["measure"]),
            *_apart(held.get(row["model"]), one["measure"], one["better"], holm=True),
        ]
        for row in one["scores"]
    ]


def _flips(document: Row, colours: dict[str, int]) -> str:
    others = [name for name in colours if name != document["reference"]]
    drawn, lines, shown, graded = [], [], [], []
    for task in document["tasks"]:
        held = {row["model"]: row for row in task["flips"]}
        if not held:
            continue
        if "of" in next(iter(held.values())):
            graded += [
                [
                    text_cell(task["task"]),
                    _model(row["model"], colours),
                    text_cell(row["of"]),
                    _share(row["worse"]),
                    _share(row["better"]),
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
                    text_cell(task["task"]),
                    _model(name, colours),
                    _counted(row["negative"]),
                    _counted(row["positive"]),
                    _share(row["kept"]),
                    _share(row.get("inconsistent")),
                    _share(row.get("both_wrong_differ")),
                    _share(row.get("both_right_differ")),
                    _share(row.get("agreement")),
                    _share(floor),
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
            f"{_legend(others, colours)}{plot}{_more(len(drawn), MOST_DRAWN)}"
            f"<details><summary>the "
            f"numbers</summary>{_tight(table(heads, lines[: 4 * MOST_DRAWN], words=(0, 1)))}"
            f"{_more(len(lines), 4 * MOST_DRAWN)}</details>"
            f"{_flip_examples(shown, colours, document['reference'])}</div>"
        )
    if graded:
        heads = ["task", "model", "of", "worse", "better", "mean regression", "mean gain"]
        parts.append(
            card(
                "<h3>Samples that got better or worse</h3>"
                + _tight(table(heads, graded[: 4 * MOST_DRAWN], words=(0, 1, 2)))
                + _more(len(graded), 4 * MOST_DRAWN)
            )
        )
    return "".join(parts)


_KINDS = {"negative": "lost", "positive": "gained", "both_wrong_differ": "both wrong, differ"}


def _flip_examples(
    shown: Sequence[tuple[str, str, str, Row]], colours: dict[str, int], reference: str
) -> str:
    rows = [
        [
            text_cell(task),
            _model(name, colours),
            text_cell(_KINDS[kind]),
            text_cell(one["id"]),
            text_cell(one["answer"]),
            text_cell(one["outputs"]["old"]["output"]),
            text_cell(one["outputs"]["new"]["output"]),
            _loss(one["outputs"]["old"]["loss"]),
            _loss(one["outputs"]["new"]["loss"]),
        ]
        for task, name, kind, one in _some(shown)
    ]
    if not rows:
        return ""
    heads = ["task", "model", "", "sample", "answer", "before", "now", "loss before", "loss now"]
    return (
        f"<details><summary>{len(rows)} examples (before: {text(reference)})</summary>"
        f"{_tight(table(heads, rows, words=(0, 1, 2, 3, 4, 5, 6)))}</details>"
    )


def _some(shown: Sequence[Any], most: int = 120) -> list[Any]:
    """The first of every task and model in turn, so that none crowds out the others."""
    lists: dict[tuple[Any, ...], list[Any]] = {}
    for one in shown:
        lists.setdefault(tuple(one[:-1]), []).append(one)
    share = max(1, most // max(1, len(lists)))
    return [one for some in lists.values() for one in some[:share]][:most]


def _after_merge(document: Row, colours: dict[str, int]) -> str:
    if not document["after_merge"]:
        return ""
    lines, shown = [], []
    for row in document["after_merge"]:
        only, lost, some = row["only_merged"], row["lost_by_all"], row["lost_by_some"]
        alone = ", ".join(f"{_whole(value)}" for value in row["alone"].values())
        lines.append(
            [
                text_cell(row["task"]),
                _model(row["model"], colours, 18),
                _counted(only),
                _whole(only["expected"]),
                _share(row["rescued"]),
                alone,
                _counted(lost),
                _whole(lost["expected"]),
                _counted(some),
                _whole(some["expected"]),
                _share(row["any_parent"]),
            ]
        )
        shown += [(row["task"], row["model"], "gained", one) for one in only["examples"]]
        shown += [(row["task"], row["model"], "lost by all", one) for one in lost["examples"]]
    names = [*document["parents"], *([document["base"]] if document["base"] else [])]
    rows = [
        [
            text_cell(task),
            _model(model, colours, 18),
            text_cell(kind),
            text_cell(one["id"]),
            text_cell(one["answer"]),
            text_cell(one["outputs"]["merged"]["output"]),
            *(text_cell(one["outputs"][name]["output"]) for name in document["parents"]),
            *([text_cell(one["outputs"]["base"]["output"])] if document["base"] else []),
        ]
        for task, model, kind, one in _some(shown)
    ]
    heads = ["task", "model", "only merged", "chance", "rescued", "parents alone", "lost by all", "chance "]
    heads += ["lost by some", "chance  ", "any parent"]
    details = ""
    if rows:
        top = ["task", "model", "", "sample", "answer", "merged", *(short(name, 18) for name in names)]
        details = (
            f"<details><summary>{len(rows)} examples</summary>"
            f"{_tight(table(top, rows, words=range(len(top))))}</details>"
        )
    return (
        "<h2>Right only after the merge</h2>"
        f'<p class="soft">Parents: {text(", ".join(document["parents"]))}. Only merged: right, and every '
        f"parent wrong; chance: "
        "what independent answers would give; rescued: of the samples on which every parent is wrong; "
        "parents alone: samples "
        "that one parent has right and the others wrong, in the order of the parents. Lost: right in all or "
        "in some parents and wrong "
        "after the merge. Any parent: the share that some parent gets right.</p>"
        + card(_tight(table(heads, lines[: 2 * MOST_DRAWN], words=(0, 1))) + details)
    )


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
                text_cell(task["task"]),
                _model(row["model"], colours),
                f"{row['samples']:,}",
                _share(row["ece"]),
                _number(row["brier"]),
                signed(row["overconfidence"], True),
            ]
            for row in task["calibration"]
        ]
    heads = ["task", "model", "samples", "expected calibration error", "Brier", "overconfidence, points"]
    return (
        '<h2>Calibration</h2><p class="soft">How often a model is right (upwards) when it is this sure '
        "(across), in bins of "
        "equal mass; below the dashed line it promises too much. Of several runs the first is drawn, the "
        "table has their mean.</p>"
        f"{_legend(list(colours), colours)}<div "
        f'class="curves">{"".join(figures)}</div>{_more(len(tasks), MOST_CURVES)}'
        f"<details><summary>the numbers</summary>"
        f"{card(_tight(table(heads, lines[: 4 * MOST_DRAWN], words=(0, 1))))}</details>"
    )


def _outputs(document: Row, colours: dict[str, int]) -> str:
    lines = [
        [
            text_cell(task["task"]),
            _model(row["model"], colours),
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
        _tight(table(heads, lines[: 4 * MOST_DRAWN], words=(0, 1))) + _more(len(lines), 4 * MOST_DRAWN)
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
                    text_cell(row["task"]),
                    _model(row["model"], colours),
                    one["measure"],
                    str(row["runs"]),
                    _score(one["mean"], one["measure"]),
                    _size(one["sd"], one["measure"]),
                    _size(sampling, one["measure"]),
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
        plot = spread(list(drawn.items())[:MOST_DRAWN], f"Runs, {measure}", measure in PERCENT)
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
                        text_cell(task["task"]),
                        _model(row["model"], colours),
                        measure["measure"],
                        signed(noise["difference"], measure["measure"] in PERCENT),
                        _size(noise["sd"], measure["measure"]),
                        "" if noise["ratio"] is None else f"{noise['ratio']:.3g}",
                        _p(noise["p"]),
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
            f"seeds?</summary>"
            f"{card(_tight(table(top, tested[: 4 * MOST_DRAWN], words=(0, 1, 2))))}</details>"
        )
    return (
        f"<h2>Spread over seeds</h2>{_legend(names, colours)}{''.join(plots)}"
        f"<details><summary>the numbers</summary>"
        f"{card(_tight(table(heads, lines[: 4 * MOST_DRAWN], words=(0, 1, 2))))}</details>{second}"
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
    more = _more(len(found["ranks"]), MOST_CURVES)
    return f"<h2>Do the tasks agree on the order?</h2>{''.join(cards)}{more}"


def _reversals(document: Row) -> str:
    found = document["concordance"]
    said = (
        f"{found['reversals']} times two models change places between two tasks; {found['significant']} of these are "
        f"beyond chance "
        "in both tasks (Holm-adjusted p < 0.05)."
    )
    lines = [
        [
            text_cell(row["a"]),
            text_cell(row["b"]),
            text_cell(_listed(row["better_on"])),
            text_cell(_listed(row["worse_on"])),
        ]
        for row in found["turned"][:12]
    ]
    heads = ["model", "against", "better on", "worse on"]
    content = _tight(table(heads, lines, words=(0, 1, 2, 3))) if lines else ""
    return (
        f'<div class="card"><h3>Orders that turn around</h3><p>{said}</p>{content}'
        f"{_more(len(found['turned']), 12)}</div>"
    )


def _method(document: Row) -> str:
    return (
        '<h2>How to read this</h2><p class="soft">'
        f"Intervals: percentile bootstrap, {document['resamples']:,} resamples of the samples, seed "
        f"{document['seed']}, the same "
        "resamples for every model. p: McNemar's exact test for right and wrong, the paired t test for "
        "losses and for means of several "
        "runs, the bootstrap for correlations and over tasks; Holm: adjusted over the tasks of a measure. "
        "Detectable: the smallest "
        "difference that these samples would show with power 80 % at level 5 %. All of it speaks of the "
        "choice of samples; "
        "what another training seed would give is under spread over seeds, where several runs were given.</p>"
    )


# Small things ---------------------------------------------------------------------------------------------------------


def text_cell(value: object) -> Cell:
    """A cell of words that may break, cut to a bounded length."""
    return cell("" if value is None else _cut(str(value)), "said")


def _roles(document: Row) -> dict[str, str]:
    roles = dict.fromkeys(document["merged"], "merged") | dict.fromkeys(document["parents"], "parent")
    if document["base"]:
        roles[document["base"]] = "base"
    return roles


def _listed(tasks: Sequence[str]) -> str:
    return listing([short(task, 24) for task in tasks], 6)


def _model(name: str, colours: dict[str, int], most: int = 40) -> Cell:
    return Cell(
        f'<td class="said"><span class="dotted s{colours[name] % SERIES}" title="{text(name)}">'
        f"{text(short(name, most))}</span></td>"
    )


def _legend(names: Sequence[str], colours: dict[str, int]) -> str:
    if len(names) == 1:
        return ""
    if [colours[name] for name in names] == list(range(len(names))):
        return legend([short(name, 40) for name in names])
    keys = "".join(
        f'<span class="key s{colours[name] % SERIES}">{text(short(name, 40))}</span>' for name in names
    )
    return f'<div class="legend">{keys}</div>'


def _apart(row: Row | None, measure: str, better: str, *, holm: bool) -> list[str]:
    if row is None or row["difference"] is None:
        return [""] * (5 if holm else 4)
    tone = _tone(row, better)
    written = signed(row["difference"], measure in PERCENT)
    found: list[str] = [Cell(f'<td class="{tone}">{written}</td>') if tone else written]
    found += [_range(row, measure), _p(row["p"])]
    if holm:
        found.append(_p(row["p_holm"]))
    return [*found, _size(row["detectable"], measure)]


def _tone(row: Row, better: str) -> str:
    """Good or bad where the interval leaves out 0 (and the adjusted p agrees, where there is one)."""
    if row["low"] is None or row["high"] is None or row["low"] <= 0 <= row["high"]:
        return ""
    adjusted = row.get("p_holm", row["p"])
    if adjusted is None or adjusted >= 0.05:
        return ""
    return "good" if (row["difference"] > 0) == (better == "higher") else "bad"


def _interval(row: Row | None) -> Interval | None:
    if row is None or row["difference"] is None:
        return None
    return row["difference"], row["low"], row["high"]


def _range(row: Row, measure: str) -> str:
    if row["low"] is None:
        return ""
    return f"{signed(row['low'], measure in PERCENT)} to {signed(row['high'], measure in PERCENT)}"


def _score(value: float | None, measure: str) -> str:
    if value is None:
        return ""
    return f"{value:.2%}" if measure in PERCENT else f"{value:.4g}"


def _size(value: float | None, measure: str) -> str:
    if value is None:
        return ""
    return f"{100 * value:.2f}" if measure in PERCENT else f"{value:.3g}"


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def _counted(row: Row) -> str:
    return f"{_whole(row['count'])} ({row['share']:.1%})"


def _whole(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _cut(value: object) -> str:
    said = str(value)
    return said if len(said) <= MOST_SHOWN else said[: MOST_SHOWN - 1] + "…"


def _more(count: int, most: int) -> str:
    return f'<p class="soft">and {count - most} more; --json has all</p>' if count > most else ""


def _tight(content: str) -> str:
    return content.replace("<table>", '<table class="tight">', 1)
