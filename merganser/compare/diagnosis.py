"""The whole diagnosis: measured, judged, advised, as one JSON document."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import TYPE_CHECKING, Any

from merganser.algebra import Weights
from merganser.algebra.agreement import contradictions
from merganser.compare import verdict
from merganser.compare.advice import advise
from merganser.compare.lineup import KINDS, Lineup, line_up
from merganser.compare.measures import (
    BASE,
    Measured,
    Pair,
    centred,
    measure,
    of_all,
    of_model,
    of_pair,
    strength,
)
from merganser.compare.rank import ranks_of

if TYPE_CHECKING:
    from merganser._progress import Progress


def diagnose(
    models: Sequence[Weights],
    base: Weights | None = None,
    *,
    rank: str = "sample",
    threads: int = 0,
    memory: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Say what checkpoints have to do with one another and what that means for merging them.

    Tensors are compared that have one name (or one line in the family's file) and one shape. With x and y two models'
    tensors, t and u their differences from the base, all sums taken over the tensors of a group:

    - cosine: <x, y> / (|x| |y|). distance: |x - y| / sqrt(|x|^2 + |y|^2), 0 for equal and 1 for orthogonal tensors.
    - correspondence: by matrix, the cosine less that with y's rows moved on by half their number; of a group the median
      over its matrices. It is what rows in the same place have in common beyond what rows in other places have.
      noise: its standard deviation where matrices are independent, from their sizes.
    - vector_cosine: <t, u> / (|t| |u|). sign_conflicts: share of the entries that both changed in which t and u have
      opposite signs; weighted_conflicts: the same with |t u| as weights; large_conflicts: among the entries that are in
      the largest 10 % of both. overlap: the Jaccard index of the largest 1 % and 10 % by magnitude, in each tensor;
      overlap_by_chance: what two random sets of that size have.
    - relative_change: |t| / |base|. cancelled: 1 - |sum t|_1 / sum |t|_1 over all task vectors; disputed: the share of
      changed entries in which two task vectors have opposite signs.
    - contradictions: keys of config.json by which the tensors of two models mean different things.
    - rank: see `merganser.compare.rank`; `rank` is "sample", "all" or "none".

    Without `base` there are no task vectors; `centred` then has, for three models or more, the cosines of their
    differences from the mean. Adapters and saved task vectors are taken as task vectors themselves.

    Everything is streamed within `memory` bytes. Raises `RequestError` for checkpoints that cannot be put side by side.
    Papers: P311 (distance and singular vectors between independent models), P267 (sign conflicts).
    """
    lineup = line_up(models, base)
    found = measure(lineup, threads=threads, memory=memory, progress=progress)
    ranks, large = ranks_of(lineup, found.places, rank, threads=threads, memory=memory, progress=progress)
    chosen = range(len(found.places))
    whole = _group(lineup, found, chosen)
    comparable = {pair: _comparable(lineup, found, pair) for pair in _pairs(lineup)}
    for row, pair in zip(whole["pairs"], _pairs(lineup), strict=True):
        row["comparable"] = comparable[pair]
        row["verdict"], row["reason"] = _judge(lineup, row, comparable[pair])
    document: dict[str, Any] = {
        "models": [_describe(lineup, k) for k in range(len(lineup.models))],
        "base": None if base is None else _describe(lineup, BASE),
        "changes": lineup.changes,
        "contradictions": _contradictions(lineup),
        "compared": {
            "tensors": len(found.places),
            "elements": sum(place.size for place in found.places),
            "matched_by": lineup.grouped_by,
            "left_out": list(lineup.left_out),
            "not_finite": found.not_finite,
        },
        "verdict": verdict.of_all(
            [row["verdict"] for row in whole["pairs"] if row["a"] != _label(lineup, BASE)]
        )
        if len(lineup.models) > 1
        else whole["pairs"][0]["verdict"],
        "whole": whole,
        "by_kind": _by(lineup, found, "kind"),
        "by_layer": _by(lineup, found, "layer"),
        "by_part": _by(lineup, found, "kind", "layer"),
        "tensors": [
            {"tensor": place.name, "shape": list(place.shape)} | _group(lineup, found, [k])
            for k, place in enumerate(found.places)
        ],
        "centred": None if base is not None or lineup.changes else centred(found, chosen, len(lineup.models)),
        "strength": strength(found, chosen, len(lineup.models)) if len(lineup.models) > 1 else None,
        "rank": [asdict(one) | {"share": one.effective / one.full} for one in ranks],
        "rank_left_out": large,
    }
    document["advice"] = advise(document)
    return document


def mean_of(rows: Iterable[dict[str, Any]], *keys: str) -> float | None:
    """The mean of a measure over those rows that have it; several keys lead inwards."""
    values = []
    for row in rows:
        value: Any = row
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            values.append(float(value))
    return fmean(values) if values else None


def between_models(document: dict[str, Any], group: dict[str, Any]) -> list[dict[str, Any]]:
    """The pairs of a group without those of the base; all of them where one model stands beside its base."""
    if len(document["models"]) < 2 or document["base"] is None:
        return list(group["pairs"])
    return [row for row in group["pairs"] if row["a"] != document["base"]["name"]]


def _label(lineup: Lineup, model: int) -> str | None:
    if model == BASE:
        return None if lineup.base is None else lineup.base_label
    return lineup.labels[model]


def _describe(lineup: Lineup, model: int) -> dict[str, Any]:
    weights = lineup.base if model == BASE else lineup.models[model]
    assert weights is not None
    return {
        "name": _label(lineup, model),
        "path": weights.checkpoints[0].where if weights.checkpoints else None,
        "tensors": len(weights),
        "parameters": lineup.parameters(model),
    }


def _contradictions(lineup: Lineup) -> list[dict[str, Any]]:
    """Keys by which configs give the tensors of two checkpoints another meaning; `broken` ones leave no merge."""
    found = []
    for a, b in _pairs(lineup):
        first, second = (lineup.base if k == BASE else lineup.models[k] for k in (a, b))
        assert first is not None
        assert second is not None
        found += [
            {"a": _label(lineup, a), "b": _label(lineup, b)} | asdict(one)
            for one in contradictions(first, second)
        ]
    return found


def _pairs(lineup: Lineup) -> list[Pair]:
    members = [*([BASE] if lineup.base is not None else []), *range(len(lineup.models))]
    return list(itertools.combinations(members, 2))


def _comparable(lineup: Lineup, found: Measured, pair: Pair) -> float:
    """The share of the larger model's numbers that lie in tensors which both have."""
    shared = sum(place.size for place in found.places if _has(found, place, pair))
    return shared / max(1, *(lineup.parameters(model) for model in pair))


def _has(found: Measured, place: Any, pair: Pair) -> bool:
    return all(place.base is not None if model == BASE else model in place.names for model in pair)


def _judge(lineup: Lineup, row: dict[str, Any], comparable: float = 1.0) -> tuple[str, str]:
    if lineup.changes:
        return verdict.OPEN, "changes do not show what they start from"
    return verdict.of_numbers(row if "distance" in row else {}, comparable)


def _group(lineup: Lineup, found: Measured, chosen: Sequence[int]) -> dict[str, Any]:
    pairs = []
    for a, b in _pairs(lineup):
        row: dict[str, Any] = {"a": _label(lineup, a), "b": _label(lineup, b)} | of_pair(
            found, chosen, (a, b)
        )
        row["verdict"], row["reason"] = _judge(lineup, row)
        pairs.append(row)
    models = [
        {"model": _label(lineup, k)} | of_model(found, chosen, k)
        for k in ([BASE] if lineup.base is not None else []) + list(range(len(lineup.models)))
    ]
    together = of_all(found, chosen) if len(lineup.models) > 1 else {}
    return {"pairs": pairs, "models": models, "together": together}


def _by(lineup: Lineup, found: Measured, *keys: str) -> list[dict[str, Any]]:
    groups: dict[tuple[Any, ...], list[int]] = {}
    for k, place in enumerate(found.places):
        key = tuple(getattr(place, name) for name in keys)
        if None not in key:
            groups.setdefault(key, []).append(k)
    return [
        dict(zip(keys, key, strict=True))
        | {"tensors": len(chosen), "elements": sum(found.places[k].size for k in chosen)}
        | _group(lineup, found, chosen)
        for key, chosen in sorted(groups.items(), key=lambda item: _order(item[0]))
    ]


def _order(key: tuple[Any, ...]) -> list[int]:
    return [KINDS.index(part) if isinstance(part, str) else part for part in key]
