"""The words methods are written in.

Each works on one expression or, name by name, on `Weights`. Words that only make sense for vectors
(differences of checkpoints) refuse weights of another degree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce as fold
from typing import Any, TypeVar, overload

import numpy as np

from merganser.algebra.computed import by_rows
from merganser.algebra.expression import Draw, Expression, Number, Reduce, Round, apply
from merganser.algebra.selection import Coefficient, coefficients
from merganser.algebra.weights import DEGREE_TOLERANCE, Weights, combine_all, combine_named
from merganser.checkpoint import DType, parse_dtype
from merganser.errors import AlgebraError, RequestError

T = TypeVar("T", Expression, Weights)

# Reductions: one number per tensor --------------------------------------------------------------------------


def total(x: T) -> T:
    """Sum of the elements, accumulated in f64 in a fixed order."""
    return _each(x, lambda e: Reduce("sum", (e,)), degree=1.0)


def norm(x: T) -> T:
    """Euclidean norm: sqrt(sum(x**2))."""
    return _each(x, lambda e: apply("sqrt", Reduce("sum", (e * e,))), degree=1.0)


def l1_norm(x: T) -> T:
    """Sum of magnitudes."""
    return _each(x, lambda e: Reduce("sum", (abs(e),)), degree=1.0)


def largest(x: T) -> T:
    """Largest magnitude."""
    return _each(x, lambda e: Reduce("max", (e,)), degree=1.0)


def dot(x: T, y: T) -> T:
    """Sum of the elementwise product."""
    return _pair(x, y, lambda a, b: Reduce("sum", (a * b,)), degree=1.0)


def kth_magnitude(x: T, rank: int) -> T:
    """The exact `rank`-th largest magnitude (rank 1 is the largest; ranks past the end give the smallest)."""
    if rank < 1:
        raise RequestError(f"rank must be at least 1, not {rank}")
    return _each(x, lambda e: Reduce("kth_magnitude", (e,), min(rank, max(e.size, 1))), degree=1.0)


# Elementwise ------------------------------------------------------------------------------------------------


def sign(x: T) -> T:
    """-1, 0 or 1."""
    return _each(x, lambda e: apply("sign", e))


def absolute(x: T) -> T:
    """Magnitude."""
    return _each(x, abs)


def sqrt(x: T) -> T:
    """Square root; NaN for negative numbers."""
    return _each(x, lambda e: apply("sqrt", e))


@overload
def minimum(a: Weights, b: Weights | Number) -> Weights: ...
@overload
def minimum(a: Expression, b: Expression | Number) -> Expression: ...
def minimum(a: Expression | Weights, b: Expression | Weights | Number) -> Expression | Weights:
    """The smaller of two, entry by entry. Two weights need one degree."""
    return _chosen("minimum", a, b)


@overload
def maximum(a: Weights, b: Weights | Number) -> Weights: ...
@overload
def maximum(a: Expression, b: Expression | Number) -> Expression: ...
def maximum(a: Expression | Weights, b: Expression | Weights | Number) -> Expression | Weights:
    """The larger of two, entry by entry. Two weights need one degree."""
    return _chosen("maximum", a, b)


def _chosen(word: str, a: Expression | Weights, b: Expression | Weights | Number) -> Expression | Weights:
    if isinstance(a, Weights) and isinstance(b, Weights):
        return combine_all([a, b], lambda x, y: apply(word, x, y), degree=_common_degree([a, b]))
    if isinstance(a, Expression) and not isinstance(b, Weights):
        return apply(word, a, b)
    if isinstance(a, Weights) and not isinstance(b, Weights | Expression):
        number = b
        return a.map(lambda _, x: apply(word, x, number))
    raise RequestError(
        f"mg.{word} takes two weights, two tensors, or one of these and after it a number; of weights take one tensor "
        "by its name, weights[name]"
    )


@overload
def where(condition: Expression, a: Expression | Number, b: Expression | Number) -> Expression: ...
@overload
def where(condition: Weights, a: Weights | Number, b: Weights | Number) -> Weights: ...
def where(
    condition: Expression | Weights, a: Expression | Weights | Number, b: Expression | Weights | Number
) -> Expression | Weights:
    """`a` where the condition holds, else `b`.

    Of weights that are chosen from the result has the degree, which is one; of two numbers it is the condition's.
    """
    if isinstance(condition, Expression) and not isinstance(a, Weights) and not isinstance(b, Weights):
        return apply("where", condition, a, b)
    choices = (a, b)
    if not isinstance(condition, Weights) or any(isinstance(one, Expression) for one in choices):
        raise RequestError(
            "mg.where chooses from weights by weights, and from tensors by a tensor; of weights take one tensor by its "
            "name, weights[name]"
        )
    chosen = [one for one in choices if isinstance(one, Weights)]

    def one_tensor(test: Expression, *tensors: Expression) -> Expression:
        given = iter(tensors)
        return apply("where", test, *(next(given) if isinstance(one, Weights) else one for one in choices))

    degree = _common_degree(chosen) if chosen else condition.degree
    return combine_all([condition, *chosen], one_tensor, degree=degree)


def clip(x: T, low: float, high: float) -> T:
    """Each element moved into [low, high]. NaN stays NaN."""
    if not low <= high:
        raise RequestError(f"clip: low ({low}) must not be above high ({high})")
    return _each(x, lambda e: apply("where", e < low, low, apply("where", e > high, high, e)))


def cast(x: T, dtype: str | DType) -> T:
    """Each element rounded to `dtype` (to nearest, ties to even); later arithmetic sees the rounded value."""
    to = parse_dtype(dtype)
    if not to.is_float:
        raise RequestError(f"cast: {to} is not a float dtype")
    return _each(x, lambda e: Round(to, e))


# Several weights --------------------------------------------------------------------------------------------


def weighted_sum(parts: Sequence[T], weights: Sequence[Coefficient] | Coefficient = 1.0) -> T:
    """`w1 * x1 + w2 * x2 + ...`, from left to right."""
    numbers = per_part(parts, weights)
    scaled = [_scaled(part, w) for part, w in zip(parts, numbers, strict=True)]
    return fold(lambda a, b: a + b, scaled)


def mean(*parts: T) -> T:
    """The plain average of several weights."""
    if not parts:
        raise RequestError("mean of nothing")
    return weighted_sum(parts) / len(parts)


def slerp(
    a: T, b: T, t: Coefficient, *, collinear: float = 0.9995, tiny: float = 0.0, zero: str = "linear"
) -> T:
    """Spherical interpolation of whole tensors: t = 0 gives `a`, t = 1 gives `b`.

    With theta the angle between the flattened tensors: sin((1-t) theta)/sin(theta) a + sin(t
    theta)/sin(theta) b. Where |cos(theta)| > `collinear` it is (1-t) a + t b. A norm of at most `tiny` counts
    as zero; a zero tensor has no direction, and is interpolated linearly (`zero` "linear") or taken to stand
    at a right angle ("orthogonal").
    """
    if zero not in ("linear", "orthogonal"):
        raise RequestError(f"slerp: zero must be 'linear' or 'orthogonal', not {zero!r}")

    def one(x: Expression, y: Expression, t: float) -> Expression:
        first, second = (apply("sqrt", Reduce("sum", (e * e,))) for e in (x, y))
        lengths = [apply("where", length > tiny, length, 1.0) for length in (first, second)]
        cosine = Reduce("sum", (x * y,)) / (lengths[0] * lengths[1])
        cosine = apply("maximum", apply("minimum", cosine, 1.0), -1.0)
        straight = abs(cosine) > collinear
        if zero == "linear":
            straight = apply("or", straight, apply("or", first <= tiny, second <= tiny))
        theta = apply("acos", apply("where", straight, 0.0, cosine))
        sine = apply("sin", theta)
        near = apply("where", straight, 1.0 - t, apply("sin", theta * (1.0 - t)) / sine)
        far = apply("where", straight, t, apply("sin", theta * t) / sine)
        return near * x + far * y

    if isinstance(a, Weights) and isinstance(b, Weights):
        shares = coefficients(t, a)
        _common_degree([a, b])
        return combine_named([a, b], lambda name, x, y: one(x, y, shares[name]))
    if not isinstance(t, int | float) or isinstance(a, Weights) or isinstance(b, Weights):
        raise RequestError("slerp: two tensors have one t, a number")
    return one(a, b, float(t))


# Task vectors -----------------------------------------------------------------------------------------------


def trim(x: T, density: Coefficient, *, scope: str = "tensor") -> T:
    """Keep the entries of largest magnitude, zero the rest.

    Of n entries the int(density * n) largest are kept (at least one), and all that equal the smallest of
    them. `scope` is "tensor" (n counts one tensor) or "model" (one threshold over all tensors: n counts them
    all). density is in [0, 1]; 1 keeps everything and 0 nothing. NaN is kept, so that it does not vanish
    unseen.
    """
    if scope not in ("tensor", "model"):
        raise RequestError(f"trim: scope must be 'tensor' or 'model', not {scope!r}")
    if isinstance(x, Weights):
        _need_vector(x, "trim")
        shares = coefficients(density, x)
        for name, share in shares.items():
            _check_share(share, f"density (tensor {name!r})")
        if scope == "model":
            return _trim_model(x, shares)
        return x.map(lambda name, e: _trim_tensor(e, shares[name]))
    if not isinstance(density, int | float):
        raise RequestError("trim: one tensor has one density, a number")
    _check_share(density, "density")
    return _trim_tensor(x, float(density))


def _trim_tensor(e: Expression, density: float) -> Expression:
    if density >= 1.0:
        return e
    if density <= 0.0:
        return e * 0.0
    threshold = Reduce("kth_magnitude", (e,), keep_count(e.size, density))
    return apply("where", abs(e) < threshold, 0.0, e)


def _trim_model(x: Weights, shares: dict[str, float]) -> Weights:
    if len(set(shares.values())) != 1:
        raise RequestError("trim: whole-model scope has one threshold, so one density for all tensors")
    density = next(iter(shares.values()))
    if density >= 1.0:
        return x
    if density <= 0.0:
        return x.map(lambda _, e: e * 0.0)
    parts = tuple(x[name] for name in x if not x.entry(name).carried)
    threshold = Reduce("kth_magnitude", parts, keep_count(sum(e.size for e in parts), density))
    return x.map(lambda _, e: apply("where", abs(e) < threshold, 0.0, e))


def trim_band(
    x: T, density: Coefficient, outliers: Coefficient, *, at_least: int = 1, scope: str = "tensor"
) -> T:
    """Drop the share `outliers` of largest magnitude, keep the next int(density * n), zero the rest.

    Where density + outliers > 1, fewer outliers are dropped so that the density is reached. Entries equal to
    either threshold are kept, and at least `at_least` entries. density is in [0, 1]; 1 keeps everything,
    outliers too, and 0 nothing. outliers is in [0, 1]. `scope` is "tensor" (n counts one tensor) or "row" (n
    counts each row, the last dimension).
    """
    if scope not in ("tensor", "row"):
        raise RequestError(f"trim_band: scope must be 'tensor' or 'row', not {scope!r}")
    if isinstance(x, Weights):
        _need_vector(x, "trim_band")
        shares, tops = coefficients(density, x), coefficients(outliers, x)
        for name in x:
            _check_share(shares[name], f"density (tensor {name!r})")
            _check_share(tops[name], f"outliers (tensor {name!r})")
        return x.map(lambda name, e: _band(e, shares[name], tops[name], at_least, scope))
    if not isinstance(density, int | float) or not isinstance(outliers, int | float):
        raise RequestError("trim_band: one tensor has one density and one share of outliers")
    _check_share(density, "density")
    _check_share(outliers, "outliers")
    return _band(x, float(density), float(outliers), at_least, scope)


def _band(e: Expression, density: float, outliers: float, at_least: int, scope: str) -> Expression:
    if density >= 1.0:
        return e
    count = e.size if scope == "tensor" else e.shape[-1] if e.shape else 1
    keep = max(min(at_least, count), int(density * count))
    if density <= 0.0 or keep == 0:
        return e * 0.0
    top = min(int(outliers * count), count - keep)
    if scope == "row":
        return by_rows(_band_of_rows, (e,), keep, top)
    low = Reduce("kth_magnitude", (e,), top + keep)
    kept = apply("where", abs(e) < low, 0.0, e)
    if top == 0:
        return kept
    high = Reduce("kth_magnitude", (e,), top + 1)
    return apply("where", abs(e) > high, 0.0, kept)


def _band_of_rows(values: np.ndarray[Any, Any], keep: int, top: int) -> np.ndarray[Any, Any]:
    magnitudes = np.abs(values)
    last = values.shape[1] - 1
    low, high = last + 1 - top - keep, last - top
    ranked = np.partition(magnitudes, sorted({low, high}), axis=1)
    outside = magnitudes < ranked[:, low : low + 1]
    if top:
        outside |= magnitudes > ranked[:, high : high + 1]
    return np.where(outside, np.zeros((), values.dtype), values)


def match_l1(kept: T, original: T) -> T:
    """`kept`, each tensor scaled to the sum of magnitudes of `original` (where both are >= 1e-7)."""
    return _pair(kept, original, _match_l1, degree=None)


def _match_l1(kept: Expression, original: Expression) -> Expression:
    before, after = Reduce("sum", (abs(original),)), Reduce("sum", (abs(kept),))
    return kept * apply("where", apply("and", before >= 1e-7, after >= 1e-7), before / after, 1.0)


def random_drop(
    x: T, density: Coefficient, *, seed: int, method: str = "drop", rescale: str = "share", tensor: str = ""
) -> T:
    """Keep each entry with probability `density`, independently, and rescale what is left.

    `rescale` is "share" (divide by density, so that the expectation is unchanged: DARE), "l1" (so that the
    sum of magnitudes is unchanged) or "none". The draw of an entry depends on (seed, method, label of x,
    tensor name, index) only. density is in [0, 1]; 1 keeps everything and 0 nothing.
    """
    if rescale not in ("share", "l1", "none"):
        raise RequestError(f"random_drop: rescale must be 'share', 'l1' or 'none', not {rescale!r}")
    if isinstance(x, Weights):
        _need_vector(x, "random_drop")
        shares = coefficients(density, x)
        for name, share in shares.items():
            _check_share(share, f"density (tensor {name!r})")
        label = x.label
        tied = x.aliases  # a head that is stored beside the embedding it shares must lose the same entries
        return x.map(
            lambda name, e: _drop(e, shares[name], (str(seed), method, label, tied.get(name, name)), rescale)
        )
    if not isinstance(density, int | float):
        raise RequestError("random_drop: one tensor has one density, a number")
    _check_share(density, "density")
    return _drop(x, float(density), (str(seed), method, "", tensor), rescale)


def _drop(e: Expression, density: float, key: tuple[str, ...], rescale: str) -> Expression:
    if density >= 1.0:
        return e
    if density <= 0.0:
        return e * 0.0
    kept = apply("where", apply("ge", Draw(key, e.shape), density), 0.0, e)
    if rescale == "share":
        return kept / density
    return _match_l1(kept, e) if rescale == "l1" else kept


def elect_sign(
    vectors: Sequence[T], weights: Sequence[Coefficient] | Coefficient = 1.0, *, tie: float = 0.0
) -> T:
    """The sign of the weighted sum of the vectors, entry by entry: -1, 0 or 1; exact ties become `tie`.

    P267, step 2: gamma = sgn(sum over models of the trimmed vectors), where tie = 0. mergekit counts ties as
    +1.
    """
    for vector in vectors:
        _need_vector(vector, "elect_sign")
    mass = weighted_sum(vectors, weights)
    if tie == 0.0:
        return _each(mass, lambda e: apply("sign", e), degree=1.0)
    return _each(mass, lambda e: apply("where", apply("eq", e, 0.0), tie, apply("sign", e)), degree=1.0)


def disjoint_mean(
    vectors: Sequence[T],
    elected: T,
    weights: Sequence[Coefficient] | Coefficient = 1.0,
    *,
    divisor: str = "weights",
    signs: Sequence[Coefficient] | Coefficient = 1.0,
) -> T:
    """The weighted mean, entry by entry, of those vectors whose entry is not zero and has the elected sign.

    It is sum(w x) over the agreeing, divided by their sum(w) (`divisor` "weights"), sum(|w|) ("magnitudes"),
    their number ("count") or nothing ("none"); a divisor of zero counts as one, so entries with nobody in
    agreement are 0. Agreement is that of x * s with the elected sign, where s is the vector's of `signs`: a
    negative one turns it round.
    """
    if divisor not in ("weights", "magnitudes", "count", "none"):
        raise RequestError(
            f"disjoint_mean: divisor must be 'weights', 'magnitudes', 'count' or 'none', not {divisor!r}"
        )
    numbers, turns = per_part(vectors, weights), per_part(vectors, signs)
    sums: list[T] = []
    shares: list[T] = []
    for vector, number, turn in zip(vectors, numbers, turns, strict=True):
        _need_vector(vector, "disjoint_mean")
        turned = _scaled(vector, _numbers(turn, vector, lambda n: (n > 0) - (n < 0)))
        out = _pair(turned, elected, lambda x, s: apply("le", x * s, 0.0), degree=1.0)
        kept = _pair(out, vector, lambda o, x: apply("where", o, 0.0, x), degree=0.0)
        sums.append(_scaled(kept, number))
        present = _each(out, lambda o: apply("where", o, 0.0, 1.0), degree=1.0)
        if divisor == "magnitudes":
            present = _scaled(present, _numbers(number, vector, abs))
        elif divisor == "weights":
            present = _scaled(present, number)
        shares.append(present)
    mixed: T = fold(lambda a, b: a + b, sums)
    if divisor == "none":
        return mixed
    share: T = fold(lambda a, b: a + b, shares)
    safe = _each(share, lambda e: apply("where", apply("eq", e, 0.0), 1.0, e), degree=1.0)
    return _pair(mixed, safe, lambda a, b: a / b, degree=0.0)


def _numbers(value: Coefficient, x: Expression | Weights, function: Callable[[float], float]) -> Coefficient:
    """`function` of a coefficient."""
    if isinstance(value, int | float):
        return float(function(value))
    if not isinstance(x, Weights):
        raise RequestError("one tensor has one weight, a number")
    numbers = {name: float(function(number)) for name, number in coefficients(value, x).items()}
    return numbers.__getitem__


# Helpers ----------------------------------------------------------------------------------------------------


def keep_count(size: int, density: float) -> int:
    """How many of `size` entries a density keeps: int(density * size), at least one."""
    return max(1, min(size, int(density * size)))


def per_part(parts: Sequence[T], weights: Sequence[Coefficient] | Coefficient) -> list[Coefficient]:
    """One coefficient per part from one for all or a list of as many."""
    if isinstance(weights, Sequence):
        if len(weights) != len(parts):
            raise RequestError(f"{len(weights)} weights for {len(parts)} models")
        return list(weights)
    return [weights] * len(parts)


def _is_one(weight: Coefficient) -> bool:
    return isinstance(weight, int | float) and weight == 1.0


def _scaled(part: T, weight: Coefficient) -> T:
    return part if _is_one(weight) else _times(part, weight)


def _times(part: T, weight: Coefficient) -> T:
    if isinstance(part, Weights):
        return part * weight
    if not isinstance(weight, int | float):
        raise RequestError("one tensor has one weight, a number")
    return part * weight


def _check_share(share: float, what: str) -> None:
    if not 0.0 <= share <= 1.0:
        raise RequestError(f"{what} must be in [0, 1], not {share}")


def _each(x: T, function, degree: float | None = None) -> T:  # type: ignore[no-untyped-def]
    if isinstance(x, Weights):
        return x.map(lambda _, e: function(e), degree=degree)
    return function(x)  # type: ignore[no-any-return]


def _pair(x: T, y: T, function, degree: float | None) -> T:  # type: ignore[no-untyped-def]
    if isinstance(x, Weights) and isinstance(y, Weights):
        if degree is None:
            degree = _common_degree([x, y])
        return combine_all([x, y], function, degree=degree)
    return function(x, y)  # type: ignore[no-any-return]


def _common_degree(parts: Sequence[Weights]) -> float:
    degrees = [part.degree for part in parts]
    if max(degrees) - min(degrees) > DEGREE_TOLERANCE:
        pairs = ", ".join(f"{part.label!r} {degree:g}" for part, degree in zip(parts, degrees, strict=True))
        raise AlgebraError(f"weights of different degree cannot be interpolated: {pairs}")
    return degrees[0]


def _need_vector(x: Expression | Weights, word: str) -> None:
    if not isinstance(x, Weights):
        return
    for name in x:
        entry = x.entry(name)
        if not entry.carried and abs(entry.degree) > DEGREE_TOLERANCE:
            raise AlgebraError(
                f"{word} works on task vectors (degree 0), but {x.label!r} has degree {entry.degree:g}; "
                "subtract the base first"
            )


__all__ = [
    "absolute",
    "cast",
    "clip",
    "disjoint_mean",
    "dot",
    "elect_sign",
    "keep_count",
    "kth_magnitude",
    "l1_norm",
    "largest",
    "match_l1",
    "maximum",
    "mean",
    "minimum",
    "norm",
    "random_drop",
    "sign",
    "slerp",
    "sqrt",
    "total",
    "trim",
    "trim_band",
    "weighted_sum",
    "where",
]
