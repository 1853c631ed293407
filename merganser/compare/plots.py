"""Small plots as SVG text, coloured by the page's style sheet. No scripts, nothing from outside."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from html import escape

Point = tuple[float, float]
_HIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
SERIES = 8
"""Colours that the style sheet has; more series begin anew."""


def text(value: object) -> str:
    """Text for a page: markup escaped, and characters that hide or turn the text around shown as their code."""
    return escape(visible(str(value)), quote=True)


def visible(value: str) -> str:
    """Text whose characters that hide or turn it around are shown as their code."""
    return _HIDDEN.sub(lambda match: match[0].encode("unicode_escape").decode(), value)


def heatmap(labels: Sequence[str], values: Sequence[Sequence[float | None]], title: str) -> str:
    """A square of numbers from -1 to 1, the stronger the colour the further from 0."""
    cell, left, top = 46, 40, 26
    count = len(labels)
    parts = []
    for i, label in enumerate(labels):
        middle = cell * i + cell / 2
        parts.append(
            f'<text class="tick" x="{left + middle:g}" y="{top - 8}" text-anchor="middle">{text(label)}</text>'
        )
        parts.append(
            f'<text class="tick" x="{left - 8}" y="{top + middle + 4:g}" text-anchor="end">{text(label)}</text>'
        )
        for j in range(count):
            value = values[i][j]
            x, y = left + cell * j, top + cell * i
            if value is None or not math.isfinite(value):
                parts.append(f'<rect class="none" x="{x}" y="{y}" width="{cell - 2}" height="{cell - 2}"/>')
                continue
            strength = min(1.0, abs(value))
            side = "cool" if value >= 0 else "warm"
            over = " over" if strength > 0.6 else ""
            parts.append(
                f'<rect class="{side}" x="{x}" y="{y}" width="{cell - 2}" height="{cell - 2}" rx="3" '
                f'fill-opacity="{0.06 + 0.94 * strength:.3f}"><title>{text(labels[i])} and {text(labels[j])}: '
                f"{value:.4f}</title></rect>"
                f'<text class="cell{over}" x="{x + cell / 2 - 1:g}" y="{y + cell / 2 + 4:g}" text-anchor="middle">'
                f"{round(value, 2) + 0.0:.2f}</text>"
            )
    return drawing(left + cell * count + 4, top + cell * count + 4, title, parts)


def strokes(
    series: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    across: Callable[[float], float],
    up: Callable[[float], float],
) -> list[str]:
    """A line with dots for each series of points, told by name on hovering."""
    parts = []
    for k, (name, line) in enumerate(series):
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in line)
        parts.append(f'<polyline class="line s{k % SERIES}" points="{path}"/>')
        parts += [
            f'<circle class="dot s{k % SERIES}" cx="{across(x):.1f}" cy="{up(y):.1f}" r="3">'
            f"<title>{text(name)}, {x:.3g}: {y:.4g}</title></circle>"
            for x, y in line
        ]
    return parts


def lines(series: Sequence[tuple[str, Sequence[Point]]], title: str, reference: float | None = None) -> str:
    """Lines over whole numbers (layers), with a legend below; a dashed line at the reference."""
    points = [point for _, line in series for point in line]
    if not points:
        return ""
    width, height, left, right, top, bottom = 560, 220, 60, 10, 10, 28
    ys = [y for _, y in points] + ([reference] if reference is not None else [])
    low, high = min(0.0, *ys), max(ys)
    high = high if high > low else low + 1.0
    first, last = min(x for x, _ in points), max(x for x, _ in points)

    def across(x: float) -> float:
        return left + (width - left - right) * ((x - first) / (last - first) if last > first else 0.5)

    def up(y: float) -> float:
        return top + (height - top - bottom) * (1 - (y - low) / (high - low))

    parts = []
    for k in range(5):
        y = low + (high - low) * k / 4
        parts.append(
            f'<line class="grid" x1="{left}" x2="{width - right}" y1="{up(y):.1f}" y2="{up(y):.1f}"/>'
        )
        parts.append(
            f'<text class="tick" x="{left - 6}" y="{up(y) + 4:.1f}" text-anchor="end">{y:.2g}</text>'
        )
    step = max(1, math.ceil((last - first) / 12))
    for x in range(int(first), int(last) + 1, step):
        parts.append(
            f'<text class="tick" x="{across(x):.1f}" y="{height - 8}" text-anchor="middle">{x}</text>'
        )
    if reference is not None:
        parts.append(
            f'<line class="reference" x1="{left}" x2="{width - right}" '
            f'y1="{up(reference):.1f}" y2="{up(reference):.1f}"/>'
        )
    parts += strokes(series, across, up)
    return drawing(width, height, title, parts) + legend([name for name, _ in series])


def bars(
    rows: Sequence[tuple[str, Sequence[float | None], Sequence[float]]],
    series: Sequence[str],
    title: str,
) -> str:
    """Horizontal bars of shares, one group a row, one colour a series.

    A row is its label, its values, and a mark across each bar.
    """
    rows = [row for row in rows if any(value is not None for value in row[1])]
    held = [value for _, values, marks in rows for value in (*values, *marks) if value is not None]
    if not held:
        return ""
    width, left, bar, gap = 560, 110, 13, 12
    high = max(held) or 1.0
    scale = (width - left - 60) / high
    parts, y = [], 6.0
    for label, values, marks in rows:
        middle = y + bar * len(values) / 2 + 4
        parts.append(
            f'<text class="tick" x="{left - 8}" y="{middle:g}" text-anchor="end">{text(label)}</text>'
        )
        for k, value in enumerate(values):
            if value is not None:
                past = left + max(value, marks[k]) * scale + 5
                parts.append(
                    f'<rect class="bar s{k % SERIES}" x="{left}" y="{y:g}" width="{max(1.0, value * scale):.1f}" '
                    f'height="{bar - 2}" rx="2"><title>{text(label)}, {text(series[k])}: {value:.4f}</title></rect>'
                    f'<text class="small" x="{past:.1f}" y="{y + bar - 3:g}">{value:.1%}</text>'
                )
            x = left + marks[k] * scale
            parts.append(
                f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 1:g}" y2="{y + bar - 1:g}"/>'
            )
            y += bar
        y += gap
    return drawing(width, int(y), title, parts) + legend(series)


def ticks(low: float, high: float, most: int = 9) -> list[float]:
    """Round numbers from low to high: multiples of 1, 2 or 5 times a power of ten, at most `most` steps apart."""
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(power * k for k in (1, 2, 5, 10, 20) if (high - low) / (power * k) <= most)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def legend(names: Sequence[str]) -> str:
    """Names beside their colours."""
    if len(names) < 2:
        return ""
    keys = "".join(f'<span class="key s{k % SERIES}">{text(name)}</span>' for k, name in enumerate(names))
    return f'<div class="legend">{keys}</div>'


def drawing(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    """An SVG of this size with its title for readers who cannot see it."""
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{text(title)}">{"".join(parts)}</svg>'
    )
