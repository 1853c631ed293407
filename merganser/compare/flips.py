"""Samples on which one model is right and another is not: flips, and what only a merge gets right."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merganser.compare.inference import wilson
from merganser.compare.samples import Array, Rows, Samples, Task

LONGEST = 400
"""Characters of a text that an example keeps."""
Group = Sequence[int]
"""The columns of one model's runs."""


def flips(task: Task, old: Group, new: Group, confidence: float, examples: int) -> dict[str, Any] | None:
    """How answers change from the old model to the new one; None for tasks without right and wrong.

    Shares of the samples that both have judged, P045 section 3 (NFR: Yan et al., arXiv:2011.09161): negative:
    old right, new wrong. positive: old wrong, new right. inconsistent (P045's NFR_mc): new wrong and the
    outputs differ. both_wrong_differ and both_right_differ: P045's quadrants 3 and 1. kept: of what the old
    model got right, the share that the new one still does (backward trust compatibility). agreement: outputs
    that are equal, right or wrong. With several runs of a model the shares are means over all pairs of an old
    and a new run. Intervals are Wilson's.
    """
    right = task.number("right")
    a, b = right[:, list(old)], right[:, list(new)]
    rows = np.flatnonzero(np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1))
    if not len(rows):
        return None
    a, b = a[rows], b[rows]
    was, now = a.mean(axis=1), b.mean(axis=1)
    count = len(rows)
    losing, gaining = was * (1 - now), (1 - was) * now
    found: dict[str, Any] = {"samples": count}
    for name, part in (("negative", losing), ("positive", gaining)):
        share = float(part.mean())
        low, high = wilson(share, count, confidence)
        found[name] = {"count": _whole(part.sum()), "share": share, "low": low, "high": high}
    held = float((was * now).sum())
    found["both_right"] = held / count
    found["both_wrong"] = float(((1 - was) * (1 - now)).mean())
    found["kept"] = held / float(was.sum()) if was.sum() else None
    codes = output_codes(task)[rows]
    known = (codes[:, [*old, *new]] >= 0).all()
    if known:
        differ = {"inconsistent": 0.0, "both_wrong_differ": 0.0, "both_right_differ": 0.0, "agreement": 0.0}
        for i, j in itertools.product(range(len(old)), range(len(new))):
            other = codes[:, old[i]] != codes[:, new[j]]
            wrong = b[:, j] == 0
            differ["inconsistent"] += float((wrong & other).mean())
            differ["both_wrong_differ"] += float((wrong & other & (a[:, i] == 0)).mean())
            differ["both_right_differ"] += float(((a[:, i] == 1) & (b[:, j] == 1) & other).mean())
            differ["agreement"] += float((~other).mean())
        found |= {name: value / (len(old) * len(new)) for name, value in differ.items()}
    found["examples"] = {
        "negative": _examples(task, rows, losing, old[0], new[0], examples),
        "positive": _examples(task, rows, gaining, old[0], new[0], examples),
    }
    if known and task.kind == "generation":
        apart = (codes[:, old[0]] != codes[:, new[0]]) & (b[:, 0] == 0) & (a[:, 0] == 0)
        found["examples"]["both_wrong_differ"] = _examples(
            task, rows, apart.astype(np.float64), old[0], new[0], examples
        )
    return found


def seed_flips(task: Task, group: Group) -> float | None:
    """The negative flip rate between two runs of one model, mean over ordered pairs: a floor for other flips."""
    right = task.number("right")[:, list(group)]
    right = right[np.isfinite(right).all(axis=1)]
    if len(group) < 2 or not len(right):
        return None
    pairs = itertools.permutations(range(len(group)), 2)
    shares = [float((right[:, i] * (1 - right[:, j])).mean()) for i, j in pairs]
    return math.fsum(shares) / len(shares)


def graded_flips(old: Array, new: Array, better: int) -> dict[str, Any]:
    """For scores without right and wrong, D = new - old turned so that more is better (P045 section 3.2).

    better, worse: the shares with D > 0 and D < 0 (its PFR and NFR). gain, regression: the mean of |D| among
    each.
    """
    change = (new - old) * better
    up, down = change[change > 0], change[change < 0]
    return {
        "samples": len(change),
        "better": len(up) / len(change),
        "worse": len(down) / len(change),
        "gain": float(up.mean()) if len(up) else 0.0,
        "regression": float(-down.mean()) if len(down) else 0.0,
    }


def only_merged(
    task: Task,
    merged: Group,
    parents: dict[str, Group],
    base: Group | None,
    confidence: float,
    examples: int,
) -> dict[str, Any] | None:
    """Samples that are right only after a merge, and samples that the merge loses; None without right and wrong.

    only_merged: the merged model right, every parent wrong (P312's FalseFalseTrue, there for two parents;
    P036's cases beyond both parents), as a share of all samples and, `rescued`, of those on which every
    parent is wrong. lost_by_all: every parent right, the merged model wrong. lost_by_some: some parent right,
    the merged model wrong. expected: what independence predicts, n x share(the parents' pattern) x share(the
    merged model so); right answers go together, so that fewer than expected is the rule. alone: for each
    parent, how often it is right where every other parent is wrong, as a scale for what another fine-tune
    does without merging. any_parent: the share some parent gets right. Where models have several runs, run i
    is held against run i (a single run against each), and counts are means over runs.
    """
    groups = [merged, *parents.values(), *([base] if base is not None else [])]
    times = max(len(group) for group in groups)
    if any(len(group) not in (1, times) for group in groups):
        return None
    right = task.number("right")
    keep = np.isfinite(right[:, [k for group in groups for k in group]]).all(axis=1)
    rows = np.flatnonzero(keep)
    if not len(rows):
        return None
    count = len(rows)
    sums: dict[str, float] = {}
    weights: dict[str, Array] = {}

    def add(name: str, value: float) -> None:
        sums[name] = sums.get(name, 0.0) + value / times

    for run in range(times):
        m = right[rows, merged[run % len(merged)]] == 1
        p = np.stack([right[rows, group[run % len(group)]] == 1 for group in parents.values()], axis=1)
        none, every, some = ~p.any(axis=1), p.all(axis=1), p.any(axis=1)
        for name, pattern, result in (
            ("only_merged", none, m),
            ("lost_by_all", every, ~m),
            ("lost_by_some", some, ~m),
        ):
            hit = pattern & result
            weights[name] = weights.get(name, np.zeros(count)) + hit
            add(name, float(hit.sum()))
            add(f"{name} expected", float(pattern.sum()) * float(result.mean()))
        add("none", float(none.sum()))
        add("any", float(some.sum()))
        for k, parent in enumerate(parents):
            add(f"alone {parent}", float((p[:, k] & ~np.delete(p, k, axis=1).any(axis=1)).sum()))
    found: dict[str, Any] = {
        "samples": count,
        "all_parents_wrong": _whole(sums["none"]),
        "any_parent": sums["any"] / count,
        "alone": {parent: _whole(sums[f"alone {parent}"]) for parent in parents} if len(parents) > 1 else {},
    }
    shown = [("merged", merged[0]), *((name, group[0]) for name, group in parents.items())]
    if base is not None:
        shown.append(("base", base[0]))
    for name, weight in weights.items():
        low, high = wilson(sums[name] / count, count, confidence)
        chosen = _chosen(task, rows, weight, examples)
        found[name] = {
            "count": _whole(sums[name]),
            "share": sums[name] / count,
            "low": low,
            "high": high,
            "expected": sums[f"{name} expected"],
            "examples": [_example(task, row, shown) for row in chosen],
        }
    found["rescued"] = sums["only_merged"] / sums["none"] if sums["none"] else None
    return found


def output_codes(task: Task) -> NDArray[np.intp]:
    """Outputs as numbers, equal where texts are equal; -1 where there is none. [samples, runs]"""
    codes: dict[str, int] = {}
    columns = [
        [-1 if text is None else codes.setdefault(text, len(codes)) for text in one.outputs()]
        for one in task.samples
    ]
    return np.array(columns, dtype=np.intp).T


def _examples(task: Task, rows: Rows, weight: Array, old: int, new: int, most: int) -> list[dict[str, Any]]:
    return [_example(task, row, [("old", old), ("new", new)]) for row in _chosen(task, rows, weight, most)]


def _chosen(task: Task, rows: Rows, weight: Array, most: int) -> list[int]:
    """The heaviest samples, those of one weight in the order of their ids."""
    held = np.flatnonzero(weight > 0)
    best = held[np.lexsort((task.places[rows[held]], -weight[held]))][:most]
    return [int(row) for row in rows[best]]


def _example(task: Task, row: int, shown: Sequence[tuple[str, int]]) -> dict[str, Any]:
    first: Samples = task.samples[0]
    outputs = {}
    for name, run in shown:
        one = task.samples[run]
        text = one.texts["prediction"][row]
        loss = float(one.numbers["loss"][row])
        outputs[name] = {
            "output": cut(one.texts["text"][row] if text is None else text),
            "right": bool(one.numbers["right"][row] == 1),
            "loss": loss if math.isfinite(loss) else None,
        }
    found: dict[str, Any] = {"id": cut(first.ids[row])}
    if task.given is not None:
        found["given"] = task.given[row]
    return found | {"answer": cut(first.texts["answer"][row]), "outputs": outputs}


def cut(text: str | None) -> str | None:
    return text if text is None or len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _whole(number: float) -> int | float:
    return int(number) if float(number).is_integer() else float(number)
