"""Where what `relate` measured is of too few rows to say much: which measure, and how far it can be off.

One rule: a warning where a value of 95 % of all draws of rows may be more than about 0.1 off, or where as much comes by
chance.

CKA. The plain estimator is biased towards 1 where rows are fewer than features, and two sizes cannot be compared
(Murphy, Zylberberg and Fyshe 2024, arXiv:2405.01012); the unbiased HSIC_1 that is used here is not, so features do not
matter, but it varies. Unrelated spaces give 0 with a standard deviation of sqrt(2)/n whatever their widths: HSIC_1 is
then a degenerate U-statistic of variance 2/(n(n-1)) E[k^2] E[l^2], and HSIC_1(X, X) estimates E[k^2]. Where one
direction carries the states, CKA is the square of a correlation r, whose standard deviation is 2 r (1 - r^2)/sqrt(n) by
the delta method, 0.77/sqrt(n) at most: 95 % within 1.51/sqrt(n), which is 0.1 at 228 rows.

Shares of right answers of m rows: 95 % within 0.98/sqrt(m), 0.1 at 96 rows. Neighbours shared by chance: about
10/(2m - 10), below 0.1 from 55 rows. Half of the rows are scored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Row = dict[str, Any]
ROWS = 200
"""Fewer are told. 95 % of CKAs are then within 0.11, of shares of right answers (half of the rows) within 0.1."""
WORST_SPREAD = 1.96 * 4 / (3 * math.sqrt(3))
"""1.96 max over r of 2 r (1 - r^2), at r^2 = 1/3."""


def warnings(document: Row, rows: int, scored: Mapping[str, int]) -> list[Row]:
    """What of a relation rests on too few rows, as rows of what and why.

    rows: of the spaces. scored: by task, the samples that losses and shares of right answers are of.
    """
    found = [
        {
            "what": "line",
            "of": task,
            "why": f"{scored[task]} samples: shares of right answers are known to about "
            f"{0.98 / math.sqrt(scored[task]):.2f} (95 %), and barriers no better; "
            f"{ROWS // 2} samples or more tell more",
        }
        for task in dict.fromkeys(row["task"] for row in document["lines"] if row["right"] is not None)
        if scored[task] < ROWS // 2
    ]
    if document["cka"] and rows < ROWS:
        found.append(
            {
                "what": "cka",
                "of": "",
                "why": f"{rows} rows: where few directions carry the states, CKA is known to about "
                f"{WORST_SPREAD / math.sqrt(rows):.2f} (95 %), and unrelated layers give up to "
                f"{2 * math.sqrt(2) / rows:.2f} by chance; {ROWS} rows or more tell more",
            }
        )
    relative = document["relative"]
    if relative and relative["scored_rows"] < ROWS // 2:
        count = relative["scored_rows"]
        shares = f", and shares of right answers are known to about {0.98 / math.sqrt(count):.2f} (95 %)"
        found.append(
            {
                "what": "relative",
                "of": "",
                "why": f"{count} rows are compared: by chance 10 nearest neighbours share {_chance(count):.2f}"
                f"{shares if relative['stitched'] else ''}; {ROWS} rows or more, of which half are compared, tell more",
            }
        )
    if relative and relative["stitched"]:
        train = rows // 2
        wide = [row for row in document["models"] if row.get("width", 0) > train]
        if wide and any(row["absolute"] is not None for row in relative["stitched"]):
            width = max(row["width"] for row in wide)
            found.append(
                {
                    "what": "stitched, absolute",
                    "of": "",
                    "why": f"heads of the absolute form have {width} features and {train} rows to be trained on, "
                    "so they can fit any labels; read the relative form, or give more rows",
                }
            )
    if document["transfer"] and rows < ROWS:
        found.append(
            {
                "what": "transfer",
                "of": "",
                "why": f"{rows} rows: a draw of Hopkins' statistic is {max(1, rows // 20)} of them; "
                f"{ROWS} rows or more tell more",
            }
        )
    return found


def _chance(rows: int, neighbours: int = 10) -> float:
    """The overlap of two random sets of neighbours among so many rows: |A and B| is k^2/n, |A or B| the rest."""
    count = min(neighbours, rows - 1)
    common = count * count / rows
    return common / (2 * count - common)
