"""What pages are made of: the sheet with its style, cards, tables. No scripts, no requests, light and dark."""

from __future__ import annotations

from collections.abc import Sequence

from merganser.compare.plots import text

STYLE = """
:root{color-scheme:light dark;--back:#fbfbf9;--card:#fff;--text:#1d2327;--soft:#5c6770;--edge:#dfe3e6;--cool:#1f6f8b;
--warm:#c2562f;--over:#fff;--good:#2e7d4f;--bad:#b3382c;--c0:#1f6f8b;--c1:#c2562f;--c2:#5d8c2c;--c3:#7a4fa3;--c4:#b8860b;
--c5:#c2185b;--c6:#00897b;--c7:#6d6d6d}
@media (prefers-color-scheme:dark){:root{--back:#14181b;--card:#1c2226;--text:#e8ecee;--soft:#9aa6ae;--edge:#333c42;
--cool:#56b4d3;--warm:#ec8a63;--over:#10161a;--good:#6fcf97;--bad:#f1837a;--c0:#56b4d3;--c1:#ec8a63;--c2:#9ccc65;
--c3:#b794e0;--c4:#e6c15a;--c5:#f48fb1;--c6:#4db6ac;--c7:#b0b0b0}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--text);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1180px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:26px;margin:0 0 4px}
h2{font-size:18px;margin:34px 0 10px}h3{font-size:14px;margin:0 0 8px;color:var(--soft)}
p{margin:6px 0}.soft{color:var(--soft)}code{font:13px ui-monospace,Menlo,Consolas,monospace;overflow-wrap:anywhere}
.verdict{display:inline-block;padding:3px 12px;border-radius:14px;font-weight:600;border:1.5px solid}
.verdict.good{color:var(--good)}.verdict.bad{color:var(--bad)}.verdict.open{color:var(--soft)}
.cards{display:grid;gap:16px;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr))}
.card{background:var(--card);border:1px solid var(--edge);border-radius:10px;padding:14px 16px;overflow-x:auto}
.card.advice{border-left:4px solid var(--cool)}.card.advice b{display:block;margin-bottom:2px}
svg{max-width:100%;height:auto;display:block}
table{border-collapse:collapse;font-size:13px;width:100%}
th,td{padding:4px 10px;border-bottom:1px solid var(--edge);text-align:right;white-space:nowrap}
th:first-child,td:first-child,td.word,th.word{text-align:left}
td.name,td.long{text-align:left;white-space:normal;overflow-wrap:anywhere;min-width:200px}
th{color:var(--soft);font-weight:600}
.tick,.small,.cell{font:12px system-ui,sans-serif;fill:var(--soft)}.small{font-size:10.5px}.cell{fill:var(--text)}
.cell.over{fill:var(--over)}rect.cool{fill:var(--cool)}rect.warm{fill:var(--warm)}rect.none{fill:var(--edge);opacity:.4}
.grid{stroke:var(--edge)}.reference,.mark{stroke:var(--soft);stroke-dasharray:4 3}
.mark{stroke:var(--text);stroke-dasharray:none;stroke-width:1.5}
.line{fill:none;stroke-width:2}
.legend{margin-top:6px;font-size:12.5px;color:var(--soft)}.key{margin-right:14px;display:inline-block}
.key::before{content:"";display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:5px;background:var(--c)}
.bar,.dot{fill:var(--c)}.line{stroke:var(--c)}
""" + "".join(f".s{k}{{--c:var(--c{k})}}" for k in range(8))


def sheet(title: str, parts: Sequence[str], style: str = "") -> str:
    """A whole page that asks for nothing: the policy in its head forbids every request and every script."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE}{style}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


class Cell(str):
    """A table's cell that is escaped already, with its class."""


def cell(value: object, kind: str) -> Cell:
    """A cell of this class with this text, escaped."""
    return Cell(f'<td class="{kind}">{text(value)}</td>')


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[int] = ()) -> str:
    """A table without the columns that are empty in every row; `words` are the columns of text.

    Every row has a cell for each heading: else numbers would stand under another's, and it is a `ValueError`.
    """
    if uneven := [len(row) for row in rows if len(row) != len(heads)]:
        raise ValueError(f"a row of {uneven[0]} cells under the {len(heads)} headings {list(heads)}")
    kept = [k for k in range(len(heads)) if any(row[k] for row in rows)]
    top = "".join(
        f'<th class="word">{text(head)}</th>' if k in words else f"<th>{text(head)}</th>"
        for k in kept
        for head in (heads[k],)
    )
    body = "".join(
        "<tr>"
        + "".join(c if isinstance(c := row[k], Cell) else f"<td>{text(c)}</td>" for k in kept)
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def card(inner: str, *, space: bool = False) -> str:
    """A framed part of the page."""
    style = ' style="margin-top:16px"' if space else ""
    return f'<div class="card"{style}>{inner}</div>'


def figure(title: str, drawn: str) -> str:
    """A plot with its heading, framed."""
    return f'<div class="card"><h3>{text(title)}</h3>{drawn}</div>'
