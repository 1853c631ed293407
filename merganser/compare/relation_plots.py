"""Plots of a relation: losses on a line, and layers against layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from merganser.compare.plots import Point, drawing, legend, strokes, text, ticks


def curves(
    series: Sequence[tuple[str, Sequence[Point]]], title: str, chord: tuple[Point, Point] | None = None
) -> str:
    """Values over shares from 0 to 1; `chord` is the straight line between the ends, dashed."""
    width, height, left, right, top, bottom = 560, 230, 64, 14, 12, 40
    ys = [y for _, points in series for _, y in points]
    if not ys:
        return ""
    low, high = min(ys), max(ys)
    spare = (high - low) * 0.06 or max(abs(high), 1.0) * 0.05
    low, high = low - spare, high + spare

    def across(x: float) -> float:
        return left + (width - left - right) * x

    def up(y: float) -> float:
        return top + (height - top - bottom) * (1 - (y - low) / (high - low))

    parts = []
    for y in ticks(low, high, 8):
        parts.append(
            f'<line class="grid" x1="{left}" x2="{width - right}" y1="{up(y):.1f}" y2="{up(y):.1f}"/>'
            f'<text class="tick" x="{left - 8}" y="{up(y) + 4:.1f}" text-anchor="end">{y:.4g}</text>'
        )
    for k in range(5):
        anchor = "start" if k == 0 else "end" if k == 4 else "middle"
        parts.append(
            f'<text class="tick" x="{across(k / 4):.1f}" y="{height - 22}" text-anchor="{anchor}">{k / 4:g}</text>'
        )
    parts.append(
        f'<text class="tick" x="{across(0.5):.1f}" y="{height - 5}" text-anchor="middle">share of the second</text>'
    )
    if chord is not None:
        (x0, y0), (x1, y1) = chord
        parts.append(
            f'<line class="reference" x1="{across(x0):.1f}" y1="{up(y0):.1f}" x2="{across(x1):.1f}" y2="{up(y1):.1f}"/>'
        )
    parts += strokes(series, across, up)
    return drawing(width, height, title, parts) + legend([name for name, _ in series])


def layers(values: Sequence[Sequence[float | None]], rows: str, columns: str, title: str) -> str:
    """A matrix of numbers from 0 to 1, layers of one model down, of the other across; numbers where there is room."""
    down, along = len(values), len(values[0])
    cell = max(12, min(44, 440 // max(down, along)))
    left, top = 58, 34
    parts = [
        f'<text class="tick" x="{left + cell * along / 2:g}" y="12" text-anchor="middle">{text(columns)}</text>',
        (
            f'<text class="tick" transform="translate(12 {top + cell * down / 2:g}) rotate(-90)" '
            f'text-anchor="middle">{text(rows)}</text>'
        ),
    ]
    every = max(1, math.ceil(max(down, along) / 16))
    for k in range(0, along, every):
        parts.append(
            f'<text class="tick" x="{left + cell * (k + 0.5):g}" y="{top - 6}" text-anchor="middle">{k}</text>'
        )
    for i in range(down):
        if i % every == 0:
            parts.append(
                f'<text class="tick" x="{left - 6}" y="{top + cell * (i + 0.5) + 4:g}" text-anchor="end">{i}</text>'
            )
        for j in range(along):
            value = values[i][j]
            x, y = left + cell * j, top + cell * i
            if value is None or not math.isfinite(value):
                parts.append(f'<rect class="none" x="{x}" y="{y}" width="{cell - 1}" height="{cell - 1}"/>')
                continue
            shown = min(1.0, max(0.0, value))
            parts.append(
                f'<rect class="cool" x="{x}" y="{y}" width="{cell - 1}" height="{cell - 1}" rx="2" '
                f'fill-opacity="{0.05 + 0.95 * shown:.3f}"><title>layers {i} and {j}: {value:.4f}</title></rect>'
            )
            if cell >= 30:
                over = " over" if shown > 0.55 else ""
                parts.append(
                    f'<text class="cell small{over}" x="{x + cell / 2:g}" y="{y + cell / 2 + 4:g}" '
                    f'text-anchor="middle">{value:.2f}</text>'
                )
    return drawing(left + cell * along + 8, top + cell * down + 8, title, parts)
