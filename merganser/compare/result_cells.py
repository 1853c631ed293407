"""Cells, names and numbers of the page of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from merganser.compare.parts import Cell, cell
from merganser.compare.plots import SERIES, legend, text
from merganser.compare.result_plots import Interval, short, signed
from merganser.compare.scores import SHARES
from merganser.errors import listing

Row = dict[str, Any]
MOST_DRAWN = 40
"""Tasks in a plot, and rows of a table; --json has all."""
MOST_SHOWN = 200
"""Characters of a text on the page."""


def words(value: object) -> Cell:
    """A cell of words that may break, cut to a bounded length."""
    return cell("" if value is None else cut(str(value)), "said")


def given(value: str | None) -> Cell | str:
    """A cell of what models were given; nothing where no suite says it."""
    return "" if value is None else cell(value, "said given")


def listed(tasks: Sequence[str]) -> str:
    """Names of tasks, the first few."""
    return listing([short(task, 24) for task in tasks], 6)


def model(name: str, colours: dict[str, int], most: int = 40) -> Cell:
    """A model's name in its colour."""
    return Cell(
        f'<td class="said"><span class="dotted s{colours[name] % SERIES}" title="{text(name)}">'
        f"{text(short(name, most))}</span></td>"
    )


def legend_of(names: Sequence[str], colours: dict[str, int]) -> str:
    """Names beside their colours, which are those of all models."""
    if len(names) == 1:
        return ""
    if [colours[name] for name in names] == list(range(len(names))):
        return legend([short(name, 40) for name in names])
    keys = "".join(
        f'<span class="key s{colours[name] % SERIES}">{text(short(name, 40))}</span>' for name in names
    )
    return f'<div class="legend">{keys}</div>'


def difference(row: Row | None, measure: str, better: str, *, holm: bool) -> list[str]:
    """Cells of a difference: itself, its interval, p (and Holm-adjusted), what is detectable."""
    if row is None or row["difference"] is None:
        return [""] * (5 if holm else 4)
    kind = tone(row, better)
    written = signed(row["difference"], measure in SHARES)
    found: list[str] = [Cell(f'<td class="{kind}">{written}</td>') if kind else written]
    found += [limits(row, measure), p_value(row["p"])]
    if holm:
        found.append(p_value(row["p_holm"]))
    return [*found, size(row["detectable"], measure)]


def tone(row: Row, better: str) -> str:
    """Good or bad where the interval leaves out 0 (and the adjusted p agrees, where there is one)."""
    if row["low"] is None or row["high"] is None or row["low"] <= 0 <= row["high"]:
        return ""
    adjusted = row.get("p_holm", row["p"])
    if adjusted is None or adjusted >= 0.05:
        return ""
    return "good" if (row["difference"] > 0) == (better == "higher") else "bad"


def interval(row: Row | None) -> Interval | None:
    """What a forest plot draws."""
    if row is None or row["difference"] is None:
        return None
    return row["difference"], row["low"], row["high"]


def limits(row: Row, measure: str) -> str:
    """The ends of an interval."""
    if row["low"] is None:
        return ""
    return f"{signed(row['low'], measure in SHARES)} to {signed(row['high'], measure in SHARES)}"


def score(value: float | None, measure: str) -> str:
    """A score, in percent where it is a share."""
    if value is None:
        return "undefined"
    return f"{value:.2%}" if measure in SHARES else f"{value:.4g}"


def size(value: float | None, measure: str) -> str:
    """A difference without its sign."""
    if value is None:
        return ""
    return f"{100 * value:.2f}" if measure in SHARES else f"{value:.3g}"


def p_value(value: float | None) -> str:
    """A p value."""
    if value is None:
        return ""
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def counted(row: Row) -> str:
    """A count with its share."""
    return f"{count(row['count'])} ({row['share']:.1%})"


def count(value: float) -> str:
    """A count, or a mean of counts."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def share(value: float | None) -> str:
    """A share in percent."""
    return "" if value is None else f"{value:.1%}"


def number(value: float | None) -> str:
    """Any number."""
    return "" if value is None else f"{value:.4g}"


def loss(value: float | None) -> str:
    """A loss in nats."""
    return "" if value is None else f"{value:.3f}"


def cut(value: object) -> str:
    """A text of a bounded length."""
    said = str(value)
    return said if len(said) <= MOST_SHOWN else said[: MOST_SHOWN - 1] + "…"


def more(count: int, most: int) -> str:
    """How many are not shown."""
    return f'<p class="soft">and {count - most} more; --json has all</p>' if count > most else ""


def tight(content: str) -> str:
    """A table with narrow cells."""
    return content.replace("<table>", '<table class="tight">', 1)
