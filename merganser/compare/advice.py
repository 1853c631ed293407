"""Advice on merging, each piece from a measured number, with its limit, its reason and its source.

Advice is not a result: only a score on held-out data says whether a merge is good.
"""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

from merganser.compare import verdict
from merganser.errors import listing

ALIKE = 0.5
"""Mean cosine of task vectors from which they are called alike."""
APART = 0.1
"""Mean cosine up to which they are called nearly orthogonal; below -APART, opposed."""
DISPUTED = 0.35
"""Share of conflicts among common large entries from which interference is called strong. Random signs give 0.5."""
CROWDED = 2.0
"""Times the chance overlap of the largest 10 % from which vectors are said to change the same entries."""
UNEVEN = 2.0
"""Ratio of the largest to the smallest task vector's norm from which they are called uneven."""
FEW = 0.1
"""Share of all directions that an effective rank takes up to which a change is called low-rank."""
LONG = 0.5
"""Norm of a change relative to the base's from which it is called large."""


def advise(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Pieces of advice, the weightiest first: `about`, `advice`, `because` (with numbers), `methods`, `papers`."""
    count = len(document["models"])
    base = document["base"]["name"] if document["base"] else None
    rows = document["whole"]["pairs"]
    pairs = [row for row in rows if row["a"] != base or base is None]
    found: list[dict[str, Any]] = []
    found += _contradicting(document)
    found += _starts(pairs)
    found += _bases([row for row in rows if base is not None and row["a"] == base])
    mergeable = not any(row["verdict"] in (verdict.UNRELATED, verdict.INDEPENDENT) for row in (pairs or rows))
    if mergeable and count > 1:
        if document["changes"] or any("vector_cosine" in row for row in pairs):
            found += _directions(document, pairs)
            found += _interference(document, pairs)
            found += _lengths(document)
        elif all(row["verdict"] == verdict.SAME for row in pairs):
            found.append(
                _piece(
                    "the same weights",
                    "Keep one of them: every merge of them is the same model again.",
                    f"{_names(pairs)}: {pairs[0]['reason']}",
                )
            )
        elif all(row["verdict"] in (verdict.SHARED, verdict.SAME) for row in pairs):
            found += _without_base(pairs)
    found += _directions_used(document)
    if document["compared"]["not_finite"]:
        found.append(
            _piece(
                "NaN or Inf",
                "Do not merge these checkpoints before their tensors are repaired.",
                f"{len(document['compared']['not_finite'])} tensors hold values that are not finite, "
                f"{document['compared']['not_finite'][0]} among them; they were left out here",
            )
        )
    return found


def _contradicting(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Configs by which the same numbers mean other things."""
    rows = document.get("contradictions") or []
    if not rows:
        return []
    told = [f"{row['key']} is {row['first']} in {row['a']} and {row['second']} in {row['b']}" for row in rows]
    broken = any(row["broken"] for row in rows)
    return [
        _piece(
            "contradicting configs",
            "Do not merge these checkpoints: their tensors do not mean the same."
            if broken
            else "Their tensors do not mean quite the same; if that is meant, a recipe says so with allow.",
            f"config.json: {listing(told)}",
        )
    ]


def _starts(pairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    if unrelated := [row for row in pairs if row["verdict"] == verdict.UNRELATED]:
        row = unrelated[0]
        found.append(
            _piece(
                "different models",
                "Do not merge tensor by tensor. Distil one into the other, or route between them.",
                f"{_names(unrelated)}: {row['reason']}",
                papers=["P174", "P031", "P415"],
            )
        )
    if independent := [row for row in pairs if row["verdict"] == verdict.INDEPENDENT]:
        most = max(row["correspondence"] for row in independent)
        found.append(
            _piece(
                "independent starts",
                "Do not average. Use them as an ensemble or distil them into one; where one model is needed, "
                "bring one to the other's order with the step align first and score the line between them: it "
                "helps plain wide nets, and left transformers and ProteinMPNN near chance (docs/alignment.md).",
                f"{_names(independent)}: correspondence of matrices at most {most:.3f}, where a shared start gives "
                f"{verdict.SHARED_FROM:g} and more; units in the same place do not do the same thing",
                methods=["align"],
                papers=["P311", "P063", "P174", "arXiv:2209.04836"],
            )
        )
    if weak := [row for row in pairs if row["verdict"] == verdict.WEAK]:
        least = min(row["correspondence"] for row in weak)
        found.append(
            _piece(
                "weak correspondence",
                "Expect a barrier between them: score the midpoint before anything else, and stay near one of the "
                "models (slerp or linear with a small share) where it is poor.",
                f"{_names(weak)}: correspondence {least:.3f}, between independent models "
                f"({verdict.INDEPENDENT_TO:g} and less) and a shared base ({verdict.SHARED_FROM:g} and more)",
                methods=["slerp", "linear"],
                papers=["P311", "P312"],
            )
        )
    return found


def _bases(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    wrong = [row for row in rows if row["verdict"] in (verdict.INDEPENDENT, verdict.UNRELATED)]
    if not wrong:
        return []
    return [
        _piece(
            "the base",
            "Look for another base: differences from this one are not task vectors.",
            "; ".join(f"{row['b']} from {row['a']}: {row['verdict']} ({row['reason']})" for row in wrong),
            papers=["P069"],
        )
    ]


def _without_base(pairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    distance = fmean(row["distance"] for row in pairs)
    return [
        _piece(
            "no base given",
            "Average with equal weights as a first candidate; with --base the task vectors themselves can be seen.",
            f"mean distance {distance:.3f} (1 is that of orthogonal models). A shared start is what averaging needs; "
            "how much of the changes agree cannot be seen without it",
            methods=["linear"],
            papers=["P109", "P111", "P059"],
        )
    ]


def _directions(document: dict[str, Any], pairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    cosines = [row["vector_cosine"] for row in pairs if row.get("vector_cosine") is not None]
    if not cosines:
        return []
    count, mean, scale = len(document["models"]), fmean(cosines), document["strength"]
    low, middle, high = (round(value, 3) + 0.0 for value in (min(cosines), mean, max(cosines)))
    spread = f"mean cosine of task vectors {middle:.3f} ({low:.3f} to {high:.3f})"
    if mean >= ALIKE:
        return [
            _piece(
                "alike",
                f"Average: linear with equal weights, that is task_arithmetic with weight {1 / count:.2f} each. "
                "Adding them in full would overshoot along what they share.",
                f"{spread}, {ALIKE:g} or more: they did much the same",
                methods=["linear", "task_arithmetic", "model_stock"],
                papers=["P109", "P111", "arXiv:2403.19522"],
            )
        ]
    lengths = (
        "; at this weight the sum is as long as one task vector is on average, by their measured products"
    )
    start = f"weight {scale:.2f} each" if scale is not None else "a weight below 1"
    if mean <= -APART:
        return [
            _piece(
                "opposed",
                f"Merge with care: {start} at most, and compare with leaving a model out.",
                f"{spread}, -{APART:g} or less: they undo part of each other",
                methods=["task_arithmetic", "ties"],
                papers=["P267", "P457"],
            )
        ]
    word = "nearly orthogonal" if mean <= APART else "partly shared"
    return [
        _piece(
            word,
            f"Add them: task_arithmetic with {start} as a start, then tune the weight on held-out data; "
            f"a plain average is weight {1 / count:.2f}.",
            f"{spread}, {'up to' if mean <= APART else 'above'} {APART:g}{lengths if scale is not None else ''}",
            methods=["task_arithmetic"],
            papers=["arXiv:2212.04089", "P069", "P185", "P457"],
        )
    ]


def _interference(document: dict[str, Any], pairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = [row for row in pairs if row.get("large_conflicts") is not None]
    if not rows:
        return []
    conflicts = fmean(row["large_conflicts"] for row in rows)
    lifts = [
        row["overlap"]["10%"] / row["overlap_by_chance"]["10%"]
        for row in rows
        if row["overlap"]["10%"] is not None and row["overlap_by_chance"]["10%"]
    ]
    lift = fmean(lifts) if lifts else math.nan
    cancelled = document["whole"]["together"].get("cancelled")
    lost = "" if cancelled is None else f"; {cancelled:.0%} of all magnitude cancels when they are added"
    measured = (
        f"of the entries among the largest 10 % of both, {conflicts:.0%} have opposite signs (random signs: 50 %), and "
        f"they meet there {lift:.1f} times as often as by chance{lost}"
    )
    if lift >= CROWDED and conflicts >= DISPUTED:
        return [
            _piece(
                "interference",
                "Settle or weigh conflicts before adding: ties with density 0.2 as a start, pcb, consensus, della.",
                f"{measured}; limits {CROWDED:g} times and {DISPUTED:.0%}",
                methods=["ties", "pcb", "consensus", "della"],
                papers=["P267", "P076", "arXiv:2405.07813", "arXiv:2406.11617"],
            )
        ]
    if lift >= CROWDED:
        return [
            _piece(
                "the same entries",
                "Signs need no settling; average where they agree, or shorten what adds up too far.",
                f"{measured}; fewer than {DISPUTED:.0%} conflicts",
                methods=["linear", "ties"],
                papers=["P267", "P109"],
            )
        ]
    return [
        _piece(
            "little interference",
            "Plain addition loses little; dropping small entries (breadcrumbs, dare_linear) is no must.",
            f"{measured}; below {CROWDED:g} times",
            methods=["task_arithmetic", "breadcrumbs", "dare_linear"],
            papers=["P070", "P267"],
        )
    ]


def _lengths(document: dict[str, Any]) -> list[dict[str, Any]]:
    rows = [row for row in document["whole"]["models"] if row.get("change")]
    if len(rows) < 2:
        return []
    least, most = (pick(rows, key=lambda row: row["change"]) for pick in (min, max))
    found = []
    if most["change"] / least["change"] >= UNEVEN:
        mean = fmean(row["change"] for row in rows)
        weights = ", ".join(f"{row['model']} {mean / row['change']:.2f}" for row in rows[:8])
        more = " ..." if len(rows) > 8 else ""
        found.append(
            _piece(
                "uneven norms",
                f"Weight them, or the longest decides: relative weights of equal lengths are {weights}{more}.",
                f"norms from {least['change']:.4g} ({least['model']}) to {most['change']:.4g} ({most['model']}), "
                f"{most['change'] / least['change']:.1f} to 1; limit {UNEVEN:g}",
                methods=["task_arithmetic", "linear"],
                papers=["P457", "P094", "P185"],
            )
        )
    long = [row for row in rows if (row.get("relative_change") or 0.0) >= LONG]
    if long:
        found.append(
            _piece(
                "large changes",
                "Expect less of merging: score points on the way from the base (wise_ft), or earlier checkpoints.",
                "change relative to the base: "
                + ", ".join(f"{row['model']} {row['relative_change']:.0%}" for row in long)
                + f"; limit {LONG:.0%}",
                methods=["wise_ft"],
                papers=["P069", "arXiv:2109.01903"],
            )
        )
    return found


def _directions_used(document: dict[str, Any]) -> list[dict[str, Any]]:
    ranks = [one for one in document["rank"] if one["effective"] > 0]
    if not ranks or not (document["base"] or document["changes"]):
        return []
    share = fmean(one["share"] for one in ranks)
    if share > FEW:
        return []
    return [
        _piece(
            "few directions",
            "The changes are of low rank: a low-rank adapter holds most of them, and methods that merge singular "
            "vectors (tsv_m, iso_c) have something to work with.",
            f"effective rank {share:.1%} of the possible on average over {len(ranks)} matrices; limit {FEW:.0%}",
            methods=["tsv_m", "iso_c"],
            papers=["arXiv:2412.00081", "arXiv:2502.04959"],
        )
    ]


def _piece(
    about: str,
    advice: str,
    because: str,
    *,
    methods: list[str] | None = None,
    papers: list[str] | None = None,
) -> dict[str, Any]:
    return {
        "about": about,
        "advice": advice,
        "because": because,
        "methods": methods or [],
        "papers": papers or [],
    }


def _names(rows: list[dict[str, Any]]) -> str:
    shown = ", ".join(f"{row['a']} and {row['b']}" for row in rows[:3])
    return shown + (f" and {len(rows) - 3} more pairs" if len(rows) > 3 else "")
