"""docs/zoo.md out of the scores: a table a family, what papers claim beside what was seen, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zoo import findings, folds_page
from zoo.candidates import MEAN, PAIRWISE
from zoo.claims import CLAIMS
from zoo.figures import Figure

if TYPE_CHECKING:
    from zoo.report import Plan

WORDS = Path(__file__).with_name("notes.md")
UNITS = {"minilm": ("accuracy in %", 100.0, 1), "llama": ("bits per byte, lower is better", 1.0, 3)}
TITLES = {
    "minilm": "Seven MiniLM siblings, seven text tasks",
    "llama": "Four small Llamas, four text domains",
}
TABLE = (
    "Test rows, {unit}; mean over seeds and half of its 95 % interval (Student's t over seeds; none with one seed). "
    "*Difference*: mean of all tasks against the plain average of the weights, paired by seed. *Kept*: the share of "
    "what the specialists gain over the base, each on its own task. *Edge*: the best setting on validation rows is the "
    "first or the last of those tried."
)
COMPARED = (
    "The difference of the means over all tasks (positive: as claimed), paired by seed, with its 95 % interval over "
    "seeds: *seen* where the interval is above 0, *not seen* where it is below, *open* where it holds 0 or there is "
    "one seed. These are {count} comparisons a family with intervals of 95 % each: about one may be wrong by chance."
)
Values = dict[int, dict[str, float]]
"""By seed, the score by task."""


def render(plans: Sequence[Plan]) -> str:
    """The page."""
    lines = ["# The zoo", "", "<!-- Written by `make zoo-report`; own words go into zoo/notes.md. -->", ""]
    lines += [WORDS.read_text(encoding="utf-8").strip(), ""]
    for plan in sorted(plans, key=lambda plan: plan.family, reverse=True):
        lines += family(plan)
    lines += claims(plans)
    lines += findings.section(plans)
    lines += folds_page.section(plans[0].zoo.root)
    return "\n".join(lines).rstrip() + "\n"


def rows_of(plan: Plan) -> dict[str, Values]:
    """Everything that was scored on test rows, by name."""
    found: dict[str, Values] = {}
    for seed in plan.seeds:
        for score in plan.roles(seed):
            metrics = score.metrics()
            if metrics is None:
                continue
            if score.what == "base":
                found.setdefault("base", {})[seed] = metrics
            elif score.what == "multitask":
                found.setdefault("multitask", {})[seed] = metrics
            else:
                own = score.what.removeprefix("sibling ")
                found.setdefault("specialists", {}).setdefault(seed, {})[own] = metrics[own]
        ensemble = _ensemble(plan, seed)
        if ensemble:
            found.setdefault("ensemble", {})[seed] = ensemble
    tasks = len(plan.zoo.over(plan.family))
    own_tasks = found.get("specialists", {})
    found["specialists"] = {seed: values for seed, values in own_tasks.items() if len(values) == tasks}
    for one in plan.candidates:
        for score in plan.test(one):
            metrics = score.metrics()
            if metrics is not None:
                found.setdefault(one.name, {})[score.seed] = metrics
    return {name: values for name, values in found.items() if values}


def _ensemble(plan: Plan, seed: int) -> dict[str, float] | None:
    """Accuracy of the mean of all siblings' probabilities, task by task."""
    from merganser.evaluate import ensemble, read_results

    siblings = plan.ensemble(seed)
    if not siblings or any(score.metrics() is None for score in siblings):
        return None
    made = ensemble([read_results(score.folder) for score in siblings])
    return {name: task.metrics["accuracy"] for name, task in made.tasks.items()}


def _mean(values: Mapping[str, float]) -> float:
    return sum(values.values()) / len(values)


def family(plan: Plan) -> list[str]:
    """The section of one family."""
    unit, scale, digits = UNITS[plan.family]
    tasks = plan.zoo.over(plan.family)
    rows = rows_of(plan)
    lines = [f"## {TITLES[plan.family]}", ""]
    if not rows:
        return [*lines, "Nothing is scored yet: `make zoo`, then `make zoo-report`.", ""]
    lines += [
        TABLE.format(unit=unit),
        "",
        "| | setting | seeds | " + " | ".join(tasks) + " | mean | difference | kept |",
        "|---|---|--:|" + "--:|" * (len(tasks) + 3),
    ]
    order = [name for name in ("base", "specialists", "ensemble", "multitask") if name in rows]
    merges = [name for name in rows if name not in order]
    sign = 1 if plan.family == "minilm" else -1
    merges.sort(key=lambda name: -sign * Figure.of([_mean(v) for v in rows[name].values()]).mean)
    for name in (*order, *merges):
        values = rows[name] if name != "base" else dict(list(rows[name].items())[:1])  # it has no seeds
        cells = [Figure.of([v[t] for v in values.values()]).show(scale, digits) for t in tasks]
        mean = Figure.of([_mean(v) for v in values.values()])
        gap = _difference(rows[name], rows.get(MEAN, {}))
        setting = _setting(plan, name)
        shown = gap.show(scale, digits, signed=True) if gap is not None and name != MEAN else ""
        lines.append(
            f"| {'**' + name + '**' if name in order else name} | {setting} | {mean.seeds if name != 'base' else ''} | "
            + " | ".join(cells)
            + f" | {mean.show(scale, digits)} | {shown} | {_kept(rows, name)} |"
        )
    missing = [one.name for one in plan.candidates if one.name not in rows]
    if missing:
        lines += ["", f"Not scored yet: {', '.join(missing)}."]
    fewer = sorted({name for name in merges if len(rows[name]) < len(plan.seeds)})
    if fewer:
        lines += ["", f"With fewer than {len(plan.seeds)} seeds so far: {', '.join(fewer)}."]
    return [*lines, ""]


def _kept(rows: Mapping[str, Values], name: str) -> str:
    base, whole, own = rows.get("base", {}), rows.get("specialists", {}), rows[name]
    shares = [
        (_mean(own[seed]) - _mean(base[seed])) / gain
        for seed in own
        if seed in base and seed in whole and (gain := _mean(whole[seed]) - _mean(base[seed]))
    ]
    return f"{Figure.of(shares).show(100, 0)} %" if shares and name not in ("base", "specialists") else ""


def _setting(plan: Plan, name: str) -> str:
    for one in plan.candidates:
        if one.name == name:
            chosen = plan.chosen(one) or {}
            words = ", ".join(f"{key} {value:g}" for key, value in chosen.items())
            if one.learned:
                return "learned"
            count = len(one.settings)
            edge = chosen in (one.settings[0], one.settings[-1])
            return words + (f" of {count}{', edge' if edge else ''}" if count > 1 else "")
    return ""


def _difference(a: Values, b: Values) -> Figure | None:
    seeds = [seed for seed in a if seed in b]
    return Figure.of([_mean(a[seed]) - _mean(b[seed]) for seed in seeds]) if seeds else None


def claims(plans: Sequence[Plan]) -> list[str]:
    """What papers claim, beside what was seen."""
    found = {plan.family: rows_of(plan) for plan in plans}
    lines = [
        "## Claims of papers, at this scale",
        "",
        COMPARED.format(count=len(CLAIMS)),
        "",
        "| paper | claim | MiniLM, points | | Llama, bits per byte | |",
        "|---|---|--:|---|--:|---|",
    ]
    for claim in CLAIMS:
        cells = []
        for name in ("minilm", "llama"):
            rows, (_, scale, digits) = found.get(name, {}), UNITS[name]
            gap = _difference(rows.get(claim.better, {}), rows.get(claim.worse, {}))
            if gap is None:
                cells += ["", ""]
                continue
            gap = gap if name == "minilm" else Figure(-gap.mean, gap.half, gap.seeds)
            verdict = {1: "seen", -1: "**not seen**", 0: "open"}[gap.sign]
            cells += [gap.show(scale, digits + 1, signed=True), verdict]
        lines.append(
            f"| {claim.paper} | {claim.text} ({claim.better} over {claim.worse}) | {' | '.join(cells)} |"
        )
    return [
        *lines,
        "",
        f"Left out, since they take one or two models, or a mask: {', '.join(PAIRWISE)}.",
        "",
    ]
