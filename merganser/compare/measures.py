"""What is measured on every tensor, and how it adds up over a group of tensors.

Two passes over the checkpoints. The first takes, of each model, squares and (of its task vector) magnitudes, changed
entries and the thresholds of its largest entries; the second, of each pair, products, signs and common large entries.
All of it is sums, so that a group's cosine is that of its tensors laid end to end.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser._facade import compute_scalars
from merganser.algebra import Expression, apply, kth_magnitude, total
from merganser.algebra.rearranged import taken
from merganser.algebra.vocabulary import keep_count
from merganser.compare.lineup import Lineup, Place

if TYPE_CHECKING:
    from merganser._progress import Progress

TOPS = {"1%": 0.01, "10%": 0.1}
"""Shares of a tensor's entries that count as its largest ones."""
Sums = Mapping[str, float]
Pair = tuple[int, int]
BASE = -1


@dataclass
class Measured:
    """The sums by tensor: of each model (-1 the base), of each pair, of all task vectors together."""

    places: list[Place] = field(default_factory=list)
    models: list[dict[int, Sums]] = field(default_factory=list)
    pairs: list[dict[Pair, Sums]] = field(default_factory=list)
    together: list[Sums] = field(default_factory=list)
    not_finite: list[str] = field(default_factory=list)


def measure(
    lineup: Lineup, *, threads: int = 0, memory: int | None = None, progress: Progress | None = None
) -> Measured:
    """Read the checkpoints and add up. Tensors that hold NaN or Inf are named and left out."""
    checkpoints = [c for one in (*lineup.models, lineup.base) if one is not None for c in one.checkpoints]
    singles: dict[str, dict[str, Expression]] = {}
    for k, place in enumerate(lineup.places):
        for model in _members(place):
            singles[f"{k} {model}"] = _single(lineup, place, model)

    def run(targets: dict[str, dict[str, Expression]]) -> dict[str, Sums]:
        values = compute_scalars(
            {name: list(one.values()) for name, one in targets.items()},
            checkpoints,
            threads=threads,
            memory=memory,
            progress=progress,
        )
        return {name: dict(zip(one, values[name], strict=True)) for name, one in targets.items()}

    found = Measured()
    kept = []
    first = run(singles)
    doubles: dict[str, dict[str, Expression]] = {}
    for k, place in enumerate(lineup.places):
        sums = {model: first[f"{k} {model}"] for model in _members(place)}
        if not all(math.isfinite(value) for one in sums.values() for value in one.values()):
            found.not_finite.append(place.name)
            continue
        kept.append(k)
        found.places.append(place)
        found.models.append(sums)
        for a, b in _pairs(place):
            doubles[f"{k} {a} {b}"] = _double(lineup, place, a, b, sums)
        if (everyone := _all_vectors(lineup, place)) is not None:
            doubles[f"{k} all"] = _all(everyone)
    second = run(doubles)
    for k in kept:
        pairs = _pairs(lineup.places[k])
        found.pairs.append({(a, b): second[f"{k} {a} {b}"] for a, b in pairs})
        found.together.append(second.get(f"{k} all", {}))
    return found


def _members(place: Place) -> list[int]:
    return [*([BASE] if place.base is not None else []), *sorted(place.names)]


def _pairs(place: Place) -> list[Pair]:
    """Every two that have the tensor, the base with each model among them."""
    return list(itertools.combinations(_members(place), 2))


def _all_vectors(lineup: Lineup, place: Place) -> list[Expression] | None:
    if len(place.names) < max(2, len(lineup.models)):
        return None
    vectors = [lineup.vector(place, model) for model in sorted(place.names)]
    return [v for v in vectors if v is not None] if vectors[0] is not None else None


def _single(lineup: Lineup, place: Place, model: int) -> dict[str, Expression]:
    x = lineup.expression(place, model)
    sums = {"square": total(x * x)}
    vector = lineup.vector(place, model) if model != BASE else None
    if vector is not None:
        sums |= {
            "change": total(vector * vector),
            "magnitude": total(abs(vector)),
            "changed": total(abs(apply("sign", vector))),
        }
        for label, share in TOPS.items():
            sums[f"threshold {label}"] = kth_magnitude(vector, keep_count(place.size, share))
    return sums


def _double(lineup: Lineup, place: Place, a: int, b: int, sums: Mapping[int, Sums]) -> dict[str, Expression]:
    x, y = lineup.expression(place, a), lineup.expression(place, b)
    found = {"product": total(x * y), "distance": total((x - y) * (x - y))}
    if place.matrix:
        found["rolled"] = total(x * _rolled(y))
    u, v = (lineup.vector(place, one) if a != BASE else None for one in (a, b))
    if u is None or v is None:
        return found
    signs = apply("sign", u) * apply("sign", v)
    found |= {
        "vector product": total(u * v),
        "magnitudes": total(abs(u * v)),
        "signs": total(signs),
        "both changed": total(abs(signs)),
    }
    for label in TOPS:
        p, q = (_top(w, sums[one][f"threshold {label}"]) for w, one in ((u, a), (v, b)))
        found[f"both {label}"] = total(p * q)
        found[f"either {label}"] = total(apply("maximum", p, q))
        found[f"signs {label}"] = total(p * q * signs)
    return found


def _top(vector: Expression, threshold: float) -> Expression:
    """1 for the largest entries. Where even the smallest of them is zero, for those that changed."""
    kept = abs(vector) >= threshold if threshold > 0 else abs(vector) > 0.0
    return apply("where", kept, 1.0, 0.0)


def _rolled(x: Expression) -> Expression:
    """The rows moved on by half their number: entries that do not belong together, with the same columns."""
    rows = x.shape[0]
    order = (np.arange(rows, dtype=np.int64) + rows // 2) % rows
    return taken(x, [order, *[None] * (len(x.shape) - 1)])


def _all(vectors: Sequence[Expression]) -> dict[str, Expression]:
    summed = reduce(lambda p, q: p + q, vectors)
    signs: list[Expression] = [apply("sign", v) for v in vectors]
    balance = apply("abs", reduce(lambda p, q: p + q, signs))
    moved = [apply("abs", s) for s in signs]
    changed = reduce(lambda p, q: p + q, moved)
    return {
        "sum magnitude": total(abs(summed)),
        "disputed": total(apply("where", balance < changed, 1.0, 0.0)),
        "changed by any": total(apply("where", changed > 0.0, 1.0, 0.0)),
    }


# Adding up ------------------------------------------------------------------------------------------------------------


def of_pair(found: Measured, chosen: Iterable[int], pair: Pair) -> dict[str, Any]:
    """The measures of one pair over some tensors; None where a number has no meaning."""
    a, b = pair
    rows = [
        (found.pairs[k][pair], found.models[k], found.places[k]) for k in chosen if pair in found.pairs[k]
    ]
    if not rows:
        return {}

    def add(key: str) -> float:
        return math.fsum(one.get(key, 0.0) for one, _, _ in rows)

    first, second = (math.fsum(models[k]["square"] for _, models, _ in rows) for k in pair)
    excesses = [
        (one["product"] - one["rolled"]) / norms
        for one, models, _ in rows
        if "rolled" in one and (norms := math.sqrt(models[a]["square"] * models[b]["square"]))
    ]
    sizes = [place.size for one, _, place in rows if "rolled" in one]
    result: dict[str, Any] = {
        "tensors": len(rows),
        "elements": sum(place.size for _, _, place in rows),
        "cosine": _cosine(add("product"), first, second),
        "correspondence": median(excesses) if excesses else None,
        "matrices": len(excesses),
        "noise": _noise(sizes) if excesses else None,
        "distance": math.sqrt(add("distance") / (first + second)) if first + second else 0.0,
    }
    with_vectors = [row for row in rows if "vector product" in row[0]]
    if not with_vectors:
        return result
    changes = [math.fsum(models[k]["change"] for _, models, _ in with_vectors) for k in pair]
    product, magnitudes, both = add("vector product"), add("magnitudes"), add("both changed")
    result |= {
        "vector_cosine": _cosine(product, *changes),
        "sign_conflicts": (both - add("signs")) / (2 * both) if both else None,
        "weighted_conflicts": (magnitudes - product) / (2 * magnitudes) if magnitudes else None,
        "overlap": {},
        "overlap_by_chance": {},
        "large_conflicts": None,
    }
    for label in TOPS:
        both, either = add(f"both {label}"), add(f"either {label}")
        result["overlap"][label] = both / either if either else None
        chance = math.fsum(
            (one[f"both {label}"] + one[f"either {label}"]) ** 2 / (4 * place.size)
            for one, _, place in with_vectors
        )
        result["overlap_by_chance"][label] = chance / (both + either - chance) if either else None
        result["large_conflicts"] = (both - add(f"signs {label}")) / (2 * both) if both else None
    return result


def of_model(found: Measured, chosen: Iterable[int], model: int) -> dict[str, Any]:
    """Norms of one model over some tensors."""
    rows = [(found.models[k], found.places[k]) for k in chosen if model in found.models[k]]
    if not rows:
        return {}
    result: dict[str, Any] = {"norm": math.sqrt(math.fsum(models[model]["square"] for models, _ in rows))}
    changed = [(models, place) for models, place in rows if "change" in models[model]]
    if changed:
        norm = math.sqrt(math.fsum(models[model]["change"] for models, _ in changed))
        base = math.sqrt(math.fsum(models[BASE]["square"] for models, _ in changed if BASE in models))
        size = sum(place.size for _, place in changed)
        result |= {
            "change": norm,
            "relative_change": norm / base if base else None,
            "changed": math.fsum(models[model]["changed"] for models, _ in changed) / size,
        }
    return result


def of_all(found: Measured, chosen: Iterable[int]) -> dict[str, Any]:
    """What all task vectors do together over some tensors."""
    rows = [(found.together[k], found.models[k]) for k in chosen if found.together[k]]
    if not rows:
        return {}
    apart = math.fsum(m["magnitude"] for _, models in rows for k, m in models.items() if k != BASE)
    summed = math.fsum(one["sum magnitude"] for one, _ in rows)
    changed = math.fsum(one["changed by any"] for one, _ in rows)
    return {
        "cancelled": 1 - summed / apart if apart else None,
        "disputed": math.fsum(one["disputed"] for one, _ in rows) / changed if changed else None,
    }


def strength(found: Measured, chosen: Sequence[int], count: int) -> float | None:
    """The scale at which the sum of the task vectors is as long as they are on average: 1/n to 1/sqrt(n) to 1."""
    rows = [k for k in chosen if all("change" in found.models[k].get(m, {}) for m in range(count))]
    squares = [math.fsum(found.models[k][m]["change"] for k in rows) for m in range(count)]
    products = [
        math.fsum(found.pairs[k][pair]["vector product"] for k in rows)
        for pair in itertools.combinations(range(count), 2)
    ]
    whole = math.fsum(squares) + 2 * math.fsum(products)
    if not rows or whole <= 0 or min(squares) <= 0:
        return None
    return math.fsum(math.sqrt(s) for s in squares) / count / math.sqrt(whole)


def centred(found: Measured, chosen: Iterable[int], count: int) -> list[list[float | None]] | None:
    """Cosines of the differences from the mean of all models, from the distances between them.

    Mutually orthogonal changes of one length have -1/(n-1) here; of two models it is -1 always, hence None.
    """
    rows = [k for k in chosen if all(m in found.models[k] for m in range(count))]
    if count < 3 or not rows:
        return None
    squared = np.zeros((count, count))
    for a, b in itertools.combinations(range(count), 2):
        squared[a, b] = squared[b, a] = math.fsum(found.pairs[k][a, b]["distance"] for k in rows)
    centre = np.eye(count) - 1 / count
    gram = -0.5 * centre @ squared @ centre
    lengths = np.sqrt(np.maximum(np.diag(gram), 0))
    return [
        [
            float(gram[a, b] / (lengths[a] * lengths[b])) if lengths[a] and lengths[b] else None
            for b in range(count)
        ]
        for a in range(count)
    ]


def _noise(sizes: Sequence[int]) -> float:
    """The standard deviation of the median correspondence of independent matrices of these sizes, about.

    That of one is sqrt(2/n); the median of m normal numbers has 1.25/sqrt(m) of theirs.
    """
    return math.sqrt(2 / median(sizes)) * min(1.0, 1.25 / math.sqrt(len(sizes)))


def _cosine(product: float, first: float, second: float) -> float | None:
    norms = math.sqrt(first) * math.sqrt(second)
    return max(-1.0, min(1.0, product / norms)) if norms else None
