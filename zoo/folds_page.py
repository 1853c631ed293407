"""The section of docs/zoo.md on PocketNet's folds, out of what zoo/folds.py keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.figures import Figure
from zoo.folds import BEST, DRAWS, ENSEMBLE, GREEDY, POINTS, SINGLES, kept
from zoo.packages import LIGANDS, POCKETNET

TITLE = "## PocketNet's five folds: a case that nobody here trained"
ABOUT = (
    "PocketNet {version} (MIT) scores the points of a protein's surface: does a ligand bind here? Its package brings "
    "the five models of a cross-validation. They have a common start (`merganser diagnose`: {verdict}) that is not "
    "published, so only methods that need neither a base nor statistics can merge them. Scored on {structures}, out of "
    "Biopython's tests; a point binds where it is within 3 Å of the ligand. The structures may be among the data "
    "that some folds were trained on, and {count} structures cannot rank methods."
)
SCORES = (
    "AUC in %, and binary cross-entropy in nats a point (the mean of the structures). The share of binding points, "
    "said of every point, has a loss of {entropy:.4f}: the folds expect more binding points than our 3 Å make. The "
    "greedy soup and the best single are chosen on the other structures than the one that is scored (folds of the "
    "soup, and the single: {chosen})."
)
COMPARED = (
    "Differences of the AUC in points, the mean of {count} structures ± half of its 95 % interval (Student's t over "
    "structures). In brackets the 95 % interval of {draws:,} bootstrap draws of residues, each with all of its points "
    "and the same for all models: it takes these structures as given, and is rather too narrow, since neighbouring "
    "residues are alike too. *Above*: in how many structures the difference is above 0."
)
CLAIM = (
    "The greedy soup less the best single, both chosen: {gap}, above in {above} of {count}. Model soups "
    "(arXiv:2203.05482) reports it above."
)
LINES = (
    "The straight line between two folds (P311, P312): the loss at {points} points, and the barrier, which is the "
    "largest excess of the loss over the straight line between its ends. *AUC lost*: the same of the AUC, in points. "
    "Folds 0 and 1 were trained with rotated structures, says the package, the others without."
)
CONTROL = (
    "The control is two models of ProteinMPNN from independent starts (`merganser diagnose`: {verdict}) on the same "
    "structures: nats a residue. Of the residues {first:.1f} and {last:.1f} % are right at the ends, {middle:.1f} % in "
    "the middle."
)


def section(root: Path) -> list[str]:
    """Its lines."""
    found = kept(root)
    if found is None:
        return [TITLE, "", "Not scored yet: `make zoo-report` (of the full cut) does it.", ""]
    return lines_of(found)


def lines_of(found: Mapping[str, Any]) -> list[str]:
    """Of figures as `zoo.folds.measure` gives them; `control` may be missing."""
    structures = list(found["structures"])
    told = [f"{name} ({LIGANDS[name].told})" if name in LIGANDS else name for name in structures]
    about = ABOUT.format(
        version=POCKETNET.version, verdict=found["verdict"], structures=_list(told), count=len(told)
    )
    return [TITLE, "", about, "", *_scores(found), *_differences(found), *_lines(found)]


def _scores(found: Mapping[str, Any]) -> list[str]:
    structures = list(found["structures"])
    chosen = "; ".join(
        f"{held}: {_list(list(map(str, one[GREEDY])))}, and {one[BEST]}"
        for held, one in found["chosen"].items()
    )
    shares = [one["near"] / one["points"] for one in found["structures"].values()]
    entropy = _mean([-p * math.log(p) - (1 - p) * math.log(1 - p) for p in shares])
    lines = [
        SCORES.format(chosen=chosen, entropy=entropy),
        "",
        "| | " + " | ".join(structures) + " | mean | loss |",
        "|---|" + "--:|" * (len(structures) + 2),
    ]
    singles = [name for name in found["scores"] if name not in found["differences"]]
    rows = dict(found["scores"])
    rows[SINGLES] = {
        s: {what: _mean([rows[name][s][what] for name in singles]) for what in ("auc", "loss")}
        for s in structures
    }
    for name in (*singles, SINGLES, *found["differences"]):
        aucs = [rows[name][s]["auc"] for s in structures]
        losses = [rows[name][s]["loss"] for s in structures]
        cells = " | ".join(f"{100 * value:.2f}" for value in (*aucs, _mean(aucs)))
        lines.append(f"| {_shown(name)} | {cells} | {_mean(losses):.4f} |")
    return [*lines, ""]


def _differences(found: Mapping[str, Any]) -> list[str]:
    count = len(found["structures"])
    lines = [
        COMPARED.format(count=count, draws=DRAWS),
        "",
        f"| | less the {SINGLES} | above | less the {ENSEMBLE} | above |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, against in found["differences"].items():
        cells = []
        for other in (SINGLES, ENSEMBLE):
            if other not in against:
                cells += ["", ""]
                continue
            values, (low, high) = against[other]["by structure"], against[other]["interval"]
            shown = Figure.of(values).show(100, 2, signed=True)
            cells += [
                f"{shown} [{100 * low:+.2f}, {100 * high:+.2f}]",
                f"{sum(v > 0 for v in values)} of {count}",
            ]
        lines.append(f"| {_shown(name)} | {' | '.join(cells)} |")
    scores = found["scores"]
    gaps = [scores[GREEDY][s]["auc"] - scores[BEST][s]["auc"] for s in found["structures"]]
    shown = Figure.of(gaps).show(100, 2, signed=True)
    return [*lines, "", CLAIM.format(gap=shown, above=sum(gap > 0 for gap in gaps), count=count), ""]


def _lines(found: Mapping[str, Any]) -> list[str]:
    shares = found["lines"][0]["shares"]
    lines = [
        LINES.format(points=POINTS),
        "",
        "| | " + " | ".join(f"{share:g}" for share in shares) + " | barrier | AUC lost |",
        "|---|" + "--:|" * (len(shares) + 2),
    ]
    for one in found["lines"]:
        losses = " | ".join(f"{value:.4f}" for value in one["losses"])
        a, b = one["pair"]
        lines.append(f"| fold {a} to {b} | {losses} | {one['barrier']:.4f} | {100 * one['auc lost']:.2f} |")
    control = found.get("control")
    if control is not None:
        losses = " | ".join(f"{value:.3f}" for value in control["losses"])
        lines.append(f"| ProteinMPNN, the control | {losses} | {control['barrier']:.3f} | |")
        right = [100 * value for value in control["right"]]
        words = CONTROL.format(
            verdict=control["verdict"], first=right[0], last=right[-1], middle=right[len(right) // 2]
        )
        lines += ["", words]
    return [*lines, ""]


def _shown(name: str) -> str:
    if name in (SINGLES, ENSEMBLE):
        return f"**{name}**"
    if name == "linear":
        return "linear (the uniform soup)"
    return f"{name}, chosen" if name in (GREEDY, BEST) else name


def _list(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
