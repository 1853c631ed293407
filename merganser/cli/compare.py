"""`merganser compare`: how models' results on the same samples differ, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from merganser.cli import _page, console
from merganser.errors import RequestError, did_you_mean, listing

if TYPE_CHECKING:
    from merganser.compare import Run

NAME = "compare"
EXAMPLE = (
    "Example: merganser compare results/base results/math results/code results/merged --base base "
    "--parents math,code --html compare.html"
)
WIDTH = 100
Row = dict[str, Any]


def command(
    results: Annotated[
        list[str] | None,
        typer.Argument(metavar="RESULTS", help="Directories of results, of evaluate or of lm-eval."),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="The model that differences are taken from; the first by default.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="The model that the parents were fine-tuned from.")] = None,
    parents: Annotated[
        str | None,
        typer.Option(help="The models that the others are merges of.", metavar="NAME,NAME,..."),
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(help="Several runs (seeds) of one model.", metavar="NAME=RESULTS,RESULTS,..."),
    ] = None,
    suite: Annotated[
        Path | None,
        typer.Option(
            help="The suite that the results are of: examples then show what the models were given.",
            metavar="SUITE.yaml",
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write one self-contained page with plots to this file.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the --html file.")] = False,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of the resamples.", min=0)] = 0,
    confidence: Annotated[float, typer.Option(help="Of intervals.")] = 0.95,
    examples: Annotated[int, typer.Option(help="Samples listed for every kind of flip.")] = 20,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave out samples and tasks that some model lacks.")
    ] = False,
    as_json: console.JSON = False,
) -> None:
    """Compare models by their results on the same samples.

    By task and over tasks: differences with paired bootstrap intervals and tests, flips, distance of the outputs,
    calibration, what only a merge gets right, the spread over seeds, and whether tasks agree on the order.
    """
    _page.check(html, overwrite)
    models, names = _models(results or [], group or [])
    chosen = [_named(name.strip(), names) for name in parents.split(",")] if parents else []
    from merganser.compare import compare, comparison_page
    from merganser.evaluate import Suite

    found = compare(
        models,
        reference=None if reference is None else _named(reference, names),
        base=None if base is None else _named(base, names),
        parents=chosen,
        resampled=resamples,
        seed=seed,
        confidence=confidence,
        examples=examples,
        allow_missing=allow_missing,
        suite=None if suite is None else Suite.open(suite),
    )
    _page.tell(found, report, html, comparison_page(found) if html is not None else "", as_json)


def _models(results: Sequence[str], groups: Sequence[str]) -> tuple[dict[str, list[Run]], dict[str, str]]:
    """The runs by model, and every way to name a model."""
    grouped: dict[str, list[str]] = {}
    for one in groups:
        name, equals, paths = one.partition("=")
        members = [path for path in paths.split(",") if path]
        if not equals or not name or not members:
            raise RequestError(f"--group {one!r}: write it as name=results,results")
        if name in grouped:
            raise RequestError(f"--group {name}: given twice")
        grouped[name] = members
    held = {path for members in grouped.values() for path in members}
    singles = [path for path in dict.fromkeys(results) if path not in held]
    if len(singles) + len(grouped) < 2:
        raise RequestError("at least two models are compared: give two directories of results, or groups")
    short = _short(singles, set(grouped))
    names = {name: name for name in grouped} | {path: short[path] for path in singles}
    names |= {short[path]: short[path] for path in singles}
    from merganser.compare import read_run

    models = {short[path]: [read_run(path, short[path])] for path in singles}
    for name, members in grouped.items():
        if len(set(members)) < len(members):
            raise RequestError(f"--group {name}: a directory is given twice")
        models[name] = [read_run(path, f"{name}: {path}") for path in members]
    return models, names


def _short(paths: Sequence[str], taken: set[str]) -> dict[str, str]:
    """The shortest ends of the paths by which they differ."""
    found = {}
    for path in paths:
        parts = [part for part in Path(path).parts if part != "/"] or [path]
        for count in range(1, len(parts) + 1):
            name = "/".join(parts[-count:])
            alike = [other for other in paths if other != path and f"/{other}".endswith(f"/{name}")]
            if not alike and name not in taken:
                break
        else:
            name = path
        found[path] = name
    return found


def _named(name: str, names: dict[str, str]) -> str:
    if name not in names:
        known = sorted(set(names.values()))
        raise RequestError(f"{name!r} is none of the models ({', '.join(known)}){did_you_mean(name, names)}")
    return names[name]


def report(found: Row) -> None:
    """The comparison as text of at most 100 columns."""
    console.say(
        f"{len(found['models'])} models, {console.counted(len(found['tasks']), 'task')}, {found['samples']:,} "
        f"samples that all answered; reference: {found['reference']}"
    )
    for note in found["notes"]:
        _wrapped(f"note: {note}")
    for row in found["unpaired"]:
        _wrapped(
            f"note: task {row['task']!r}: {row['unpaired']} of the {row['samples']} samples of "
            f"{row['model']} have no partner (ids {', '.join(row['examples'][:5])}); left out"
        )
    shown = {task["measures"][0]["measure"] for task in found["tasks"]} | {"loss"}
    for row in found["overall"]:
        if row["measure"] not in shown:
            continue
        _measure(row["measure"], f"mean of {len(row['tasks'])} tasks", row["mean_of_tasks"], found)
    for task in found["tasks"]:
        one = task["measures"][0]
        _measure(one["measure"], f"{task['task']} ({one['samples']:,} samples)", one, found)
        _flips(task)
    _after_merge(found)
    _seeds(found)
    _order(found)


def _measure(measure: str, where: str, row: Row, found: Row) -> None:
    from merganser.compare.scores import SHARES

    percent = measure in SHARES
    held = {one["model"]: one for one in row["differences"]}
    lines = []
    for one in row["scores"]:
        apart = held.get(one["model"])
        line = [_fit(one["model"], 28), _score(one["score"], percent), "", "", "", ""]
        if apart is not None and apart["difference"] is not None:
            line[2] = _signed(apart["difference"], percent)
            if apart["low"] is not None:
                line[3] = f"{_signed(apart['low'], percent)} to {_signed(apart['high'], percent)}"
            line[4] = _p(apart.get("p_holm", apart["p"]))
            line[5] = _size(apart["detectable"], percent)
        lines.append(line)
    adjusted = "p, Holm" if "p_holm" in (row["differences"] or [{}])[0] else "p"
    console.say(f"\n{_fit(where, 60)}: {measure}, difference from {_fit(found['reference'], 20)}")
    interval = f"{found['confidence']:.0%} interval"
    console.table(("model", "score", "difference", interval, adjusted, "detectable"), lines)


def _flips(task: Row) -> None:
    lines = []
    for row in task["flips"]:
        if "of" in row:
            lines.append((_fit(row["model"], 30), f"{row['worse']:.1%}", f"{row['better']:.1%}", "-", "-"))
            continue
        lines.append(
            (
                _fit(row["model"], 30),
                f"{_count(row['negative']['count'])} ({row['negative']['share']:.1%})",
                f"{_count(row['positive']['count'])} ({row['positive']['share']:.1%})",
                _share(row.get("inconsistent")),
                _share(row.get("agreement")),
            )
        )
    if lines:
        console.say()
        if "of" in task["flips"][0]:
            console.table(("model", "samples worse", "samples better"), [line[:3] for line in lines])
        else:
            console.table(("model", "lost", "gained", "inconsistent", "agreement"), lines)


def _after_merge(found: Row) -> None:
    if not found["after_merge"]:
        return
    console.say("\nright only after the merge (chance: were answers independent)")
    console.table(
        ("task", "model", "only merged", "chance", "rescued", "lost by all", "chance"),
        [
            (
                _fit(row["task"], 14),
                _fit(row["model"], 16),
                f"{_count(row['only_merged']['count'])} ({row['only_merged']['share']:.1%})",
                _count(round(row["only_merged"]["expected"], 1)),
                _share(row["rescued"]),
                f"{_count(row['lost_by_all']['count'])} ({row['lost_by_all']['share']:.1%})",
                _count(round(row["lost_by_all"]["expected"], 1)),
            )
            for row in found["after_merge"]
        ],
    )


def _seeds(found: Row) -> None:
    if not found["seeds"]:
        return
    from merganser.compare.scores import SHARES

    lines = []
    for row in found["seeds"]:
        for one in row["measures"][:2]:
            percent = one["measure"] in SHARES
            ratio = one["signal_to_noise"]
            line = [_fit(row["task"], 16), _fit(row["model"], 20), _fit(one["measure"], 14), str(row["runs"])]
            line += [_score(one["mean"], percent), _size(one["sd"], percent)]
            lines.append([*line, "-" if ratio is None else f"{ratio:.3g}"])
    console.say("\nspread over seeds")
    console.table(("task", "model", "measure", "runs", "mean", "sd", "mean / sd"), lines)


def _order(found: Row) -> None:
    order = found["concordance"]
    if order is None:
        return
    if len(found["models"]) > 2 and order["mean_tau"] is not None:
        console.say(f"\nKendall's tau-b between tasks, mean: {order['mean_tau']:.2f}")
    if order["reversals"]:
        console.say(
            f"changes of place of two models between two tasks: {order['reversals']}, beyond chance in both: "
            f"{order['significant']}"
        )
    for row in order["turned"][:5]:
        _wrapped(
            f"warning: {row['a']} is better than {row['b']} on {listing(row['better_on'])} and worse on "
            f"{listing(row['worse_on'])}, beyond chance; a mean over tasks hides that"
        )
    if len(order["turned"]) > 5:
        console.say(f"... and {len(order['turned']) - 5} more pairs")


def _wrapped(line: str) -> None:
    import textwrap

    for part in textwrap.wrap(line, WIDTH, subsequent_indent="  ") or [""]:
        console.say(part)


def _fit(name: str, most: int) -> str:
    name = console.clean(name).replace("\n", "\\n").replace("\t", "\\t")
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-(most - most // 2 - 1) :]}"


def _score(value: float | None, percent: bool) -> str:
    if value is None:
        return "undefined"
    return f"{value:.2%}" if percent else f"{value:.4g}"


def _signed(value: float, percent: bool) -> str:
    return f"{100 * value:+.2f}" if percent else f"{value:+.3g}"


def _size(value: float | None, percent: bool) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.2f}" if percent else f"{value:.3g}"


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _count(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"
