"""Plots of a comparison as SVG text: intervals, flips, reliability, ranks. Coloured by the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from merganser.compare.plots import SERIES, drawing, text, ticks

WIDE = 1070
Interval = tuple[float, float | None, float | None]
LONGEST = 30


def short(name: str, most: int = LONGEST) -> str:
    """A name that fits beside a plot: its beginning and its end."""
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-(most - most // 2 - 1) :]}"


def forest(
    rows: Sequence[tuple[str, Sequence[Interval | None]]],
    series: Sequence[int],
    names: Sequence[str],
    title: str,
    *,
    higher: bool,
    percent: bool,
) -> str:
    """Differences with their intervals, a group of lines a row (a task), a colour a model; a line at 0."""
    held = [
        value
        for _, cells in rows
        for one in cells
        if one is not None
        for value in one
        if value is not None and math.isfinite(value)
    ]
    if not held:
        return ""
    left, right, line, gap, top = 190, 130, 15, 13, 30
    low, high = min(0.0, *held), max(0.0, *held)
    space = (high - low or 1.0) * 0.05
    low, high = low - space, high + space
    bottom = top + sum(len(cells) * line + gap for _, cells in rows)

    def across(value: float) -> float:
        return left + (WIDE - left - right) * (value - low) / (high - low)

    parts = []
    for tick in ticks(low, high):
        x = across(tick)
        kind = "zero" if tick == 0 else "grid"
        parts.append(f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 4}" y2="{bottom}"/>')
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{bottom + 18}" '
            f'text-anchor="middle">{signed(tick * (100 if percent else 1), False)}</text>'
        )
    words = ("worse", "better") if higher else ("better", "worse")
    zero = across(0.0)
    parts.append(f'<text class="tick" x="{zero - 12:.1f}" y="14" text-anchor="end">← {words[0]}</text>')
    parts.append(f'<text class="tick" x="{zero + 12:.1f}" y="14">{words[1]} →</text>')
    y = float(top)
    for label, cells in rows:
        middle = y + len(cells) * line / 2 + 4
        parts.append(
            f'<text class="row" x="{left - 14}" y="{middle:.1f}" text-anchor="end">{text(short(label, 26))}'
            f"<title>{text(label)}</title></text>"
        )
        for k, one in enumerate(cells):
            at = y + k * line + line / 2
            if one is not None and math.isfinite(one[0]):
                parts += _whisker(one, across, at, series[k], f"{label}, {names[k]}", percent)
        y += len(cells) * line + gap
        parts.append(
            f'<line class="grid faint" x1="{left - 180}" x2="{WIDE - 10}" y1="{y - gap / 2:.1f}" '
            f'y2="{y - gap / 2:.1f}"/>'
        )
    return drawing(WIDE, bottom + 28, title, parts)


def _whisker(one: Interval, across: object, at: float, colour: int, said: str, percent: bool) -> list[str]:
    assert callable(across)
    value, low, high = one
    x = across(value)
    parts = []
    written = signed(value, percent)
    told = f"{said}: {written}"
    end = x
    if low is not None and high is not None:
        a, b = across(low), across(high)
        end = max(end, b)
        told += f" ({signed(low, percent)} to {signed(high, percent)})"
        parts.append(
            f'<line class="line s{colour % SERIES}" x1="{a:.1f}" x2="{b:.1f}" y1="{at:.1f}" y2="{at:.1f}"/>'
        )
    parts.append(
        f'<circle class="dot s{colour % SERIES}" cx="{x:.1f}" cy="{at:.1f}" '
        f'r="4"><title>{text(told)}</title></circle>'
    )
    parts.append(f'<text class="small" x="{end + 8:.1f}" y="{at + 4:.1f}">{written}</text>')
    return parts


def flip_bars(
    rows: Sequence[tuple[str, Sequence[tuple[float, float, float | None]]]],
    series: Sequence[int],
    names: Sequence[str],
    title: str,
) -> str:
    """Negative flips to the left, positive ones to the right, a bar a model; a mark at the flips between seeds."""
    held = [value for _, bars in rows for bar in bars for value in bar if value is not None]
    if not held or not max(held):
        return ""
    left, right, line, gap, top = 190, 60, 15, 13, 30
    most = max(held) * 1.12
    middle = left + (WIDE - left - right) / 2
    scale = (WIDE - left - right) / 2 / most
    bottom = top + sum(len(bars) * line + gap for _, bars in rows)
    parts = [
        f'<line class="zero" x1="{middle:.1f}" x2="{middle:.1f}" y1="{top - 4}" y2="{bottom}"/>',
        f'<text class="tick" x="{middle - 12:.1f}" y="14" text-anchor="end">← right before, wrong now</text>',
        f'<text class="tick" x="{middle + 12:.1f}" y="14">wrong before, right now →</text>',
    ]
    y = float(top)
    for label, bars in rows:
        parts.append(
            f'<text class="row" x="{left - 14}" y="{y + len(bars) * line / 2 + 4:.1f}" text-anchor="end">'
            f"{text(short(label, 26))}<title>{text(label)}</title></text>"
        )
        for k, (lost, gained, floor) in enumerate(bars):
            at, colour = y + k * line, series[k] % SERIES
            a, b = middle - lost * scale, middle + gained * scale
            parts.append(
                f'<rect class="bar lost s{colour}" x="{a:.1f}" y="{at + 2:.1f}" width="{lost * scale:.1f}" '
                f'height="{line - 4}" '
                f'rx="2"><title>{text(label)}, {text(names[k])}: {lost:.2%} lost</title></rect>'
                f'<rect class="bar s{colour}" x="{middle:.1f}" y="{at + 2:.1f}" '
                f'width="{gained * scale:.1f}" height="{line - 4}" '
                f'rx="2"><title>{text(label)}, {text(names[k])}: {gained:.2%} gained</title></rect>'
                f'<text class="small" x="{a - 6:.1f}" y="{at + line - 4:.1f}" '
                f'text-anchor="end">{lost:.1%}</text>'
                f'<text class="small" x="{b + 6:.1f}" y="{at + line - 4:.1f}">{gained:.1%}</text>'
            )
            if floor is not None:
                x = middle - floor * scale
                parts.append(
                    f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{at:.1f}" y2="{at + line:.1f}">'
                    f"<title>between seeds of one model: {floor:.2%}</title></line>"
                )
        y += len(bars) * line + gap
        parts.append(
            f'<line class="grid faint" x1="{left - 180}" x2="{WIDE - 10}" y1="{y - gap / 2:.1f}" '
            f'y2="{y - gap / 2:.1f}"/>'
        )
    return drawing(WIDE, int(bottom + 6), title, parts)


def reliability(curves: Sequence[tuple[int, str, Sequence[Mapping[str, float]]]], title: str) -> str:
    """Accuracy over confidence, a line a model; the diagonal is a model that is right as often as it says."""
    size, left, top, bottom = 300, 42, 10, 34
    low = min((min(p["confidence"], p["accuracy"]) for _, _, curve in curves for p in curve), default=0.0)
    low = max(0.0, math.floor(low * 10) / 10)
    span = 1.0 - low or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return left + size * (x - low) / span, top + size * (1 - (y - low) / span)

    parts = []
    for tick in ticks(low, 1.0, 5):
        x, y = place(tick, tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{left + size}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{top + size}"/>')
        parts.append(
            f'<text class="tick" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.0%}</text>'
            f'<text class="tick" x="{x:.1f}" y="{top + size + 16}" text-anchor="middle">{tick:.0%}</text>'
        )
    a, b = place(low, low), place(1, 1)
    parts.append(f'<line class="reference" x1="{a[0]:.1f}" y1="{a[1]:.1f}" x2="{b[0]:.1f}" y2="{b[1]:.1f}"/>')
    for colour, name, curve in curves:
        points = [place(one["confidence"], one["accuracy"]) for one in curve]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline class="line s{colour % SERIES}" points="{path}"/>')
        parts += [
            f'<circle class="dot s{colour % SERIES}" cx="{x:.1f}" cy="{y:.1f}" r="2.8"><title>{text(name)}: '
            f"sure of {one['confidence']:.1%}, right {one['accuracy']:.1%} ({one['samples']:,} "
            "samples)</title></circle>"
            for (x, y), one in zip(points, curve, strict=True)
        ]
    return drawing(size + left + 24, size + top + bottom, title, parts)


def rank_lines(
    tasks: Sequence[str],
    models: Sequence[tuple[int, str, Sequence[float]]],
    title: str,
) -> str:
    """Places of models from task to task, 1 on top; lines that cross are orders that turn around."""
    left, right, top, step = 60, 250, 18, 34
    most = max(len(models), 1)
    across = (WIDE - left - right) / max(1, len(tasks) - 1)
    bottom = top + (most - 1) * step + 20
    parts = []
    for k, task in enumerate(tasks):
        x = left + k * across
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 6}" y2="{bottom - 8}"/>')
        room = max(6, int(across / 7))
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{bottom + 8}" text-anchor="middle">{text(short(task, room))}'
            f"<title>{text(task)}</title></text>"
        )
    for place in range(most):
        parts.append(
            f'<text class="tick" x="{left - 34}" y="{top + place * step + 4}" '
            f'text-anchor="end">{place + 1}</text>'
        )
    ends: dict[float, int] = {}
    for colour, name, ranks in models:
        points = [(left + k * across, top + (rank - 1) * step) for k, rank in enumerate(ranks)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline class="line s{colour % SERIES}" points="{path}"/>')
        parts += [
            f'<circle class="dot s{colour % SERIES}" cx="{x:.1f}" cy="{y:.1f}" r="5"><title>{text(name)} on '
            f"{text(task)}: place {rank:g}</title></circle>"
            for (x, y), rank, task in zip(points, ranks, tasks, strict=True)
        ]
        shift = 13 * ends.get(ranks[-1], 0)
        ends[ranks[-1]] = ends.get(ranks[-1], 0) + 1
        x, y = points[-1]
        parts.append(
            f'<text class="row" x="{x + 14:.1f}" '
            f'y="{y + 4 + shift:.1f}">{text(short(name))}<title>{text(name)}</title></text>'
        )
    return drawing(WIDE, int(bottom + 20), title, parts)


def spread(
    rows: Sequence[tuple[str, Sequence[tuple[int, str, Sequence[float]]]]], title: str, percent: bool
) -> str:
    """Every run's score as a dot, a line a model."""
    held = [value for _, models in rows for _, _, values in models for value in values]
    if not held:
        return ""
    low, high = min(held), max(held)
    space = (high - low or abs(high) or 1.0) * 0.06
    low, high = low - space, high + space
    left, right, line, gap, top = 190, 40, 15, 12, 8
    bottom = top + sum(len(models) * line + gap for _, models in rows)

    def across(value: float) -> float:
        return left + (WIDE - left - right) * (value - low) / (high - low)

    parts = []
    for tick in ticks(low, high):
        x = across(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>')
        shown = f"{tick:.3g}" if not percent else f"{tick:.1%}".replace(".0%", "%")
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{shown}</text>')
    y = float(top)
    for label, models in rows:
        parts.append(
            f'<text class="row" x="{left - 14}" y="{y + len(models) * line / 2 + 4:.1f}" text-anchor="end">'
            f"{text(short(label, 26))}<title>{text(label)}</title></text>"
        )
        for k, (colour, name, values) in enumerate(models):
            at = y + k * line + line / 2
            if len(values) > 1:
                parts.append(
                    f'<line class="line s{colour % SERIES}" x1="{across(min(values)):.1f}" '
                    f'x2="{across(max(values)):.1f}" '
                    f'y1="{at:.1f}" y2="{at:.1f}" opacity=".45"/>'
                )
            parts += [
                f'<circle class="dot s{colour % SERIES}" cx="{across(value):.1f}" cy="{at:.1f}" '
                f'r="3.6"><title>{text(label)}, '
                f"{text(name)}: {value:.4g}</title></circle>"
                for value in values
            ]
        y += len(models) * line + gap
        parts.append(
            f'<line class="grid faint" x1="{left - 180}" x2="{WIDE - 10}" y1="{y - gap / 2:.1f}" '
            f'y2="{y - gap / 2:.1f}"/>'
        )
    return drawing(WIDE, int(bottom + 26), title, parts)


def signed(value: float, percent: bool) -> str:
    """A difference in words: percentage points, or a number."""
    if abs(value) < 1e-12:
        return "0"
    if percent:
        return f"{100 * value:+.2f}".replace("-", "−")
    return f"{value:+.3g}".replace("-", "−")
