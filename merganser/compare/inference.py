"""Tests, intervals and powers for paired samples. Every function is a formula of its arguments alone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist

import numpy as np

from merganser.compare.samples import Array

NORMAL = NormalDist()
CHUNK = 1 << 17
"""Drawn sample numbers held at a time: about 3 MB, so that they stay in the processor's caches."""


def resamples(count: int, times: int, seed: int, name: str) -> Iterator[Array]:
    """Bootstrap resamples of `count` samples as how often each was drawn: arrays [some, count], `times` rows in all.

    The draws depend on `seed`, `name` (of the task) and `count` only, so that all models meet the same
    resamples and another task changes nothing. Efron & Tibshirani, An Introduction to the Bootstrap (1993),
    chapter 6.
    """
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    random = np.random.default_rng([seed, int.from_bytes(digest[:8], "little"), count])
    step = max(1, CHUNK // count)
    for start in range(0, times, step):
        rows = min(step, times - start)
        drawn = random.integers(0, count, size=(rows, count))
        drawn += np.arange(rows)[:, None] * count
        yield np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)


def percentile_interval(draws: Array, confidence: float) -> tuple[float | None, float | None]:
    """The percentile interval: the (1 - confidence) / 2 quantiles of the draws at both ends, linear between draws.

    Not BCa: for means of paired differences the two agree to the second order in everything but skewness, and
    the percentile interval turns around when the two models change places. None where no draw is a number.
    """
    kept = draws[np.isfinite(draws)]
    if not len(kept):
        return None, None
    tail = (1 - confidence) / 2
    low, high = np.quantile(kept, [tail, 1 - tail])
    return float(low), float(high)


def bootstrap_p(draws: Array) -> float | None:
    """Two-sided: twice the smaller share of draws on one side of 0, counted with one draw more on each side."""
    kept = draws[np.isfinite(draws)]
    if not len(kept):
        return None
    side = min(int((kept <= 0).sum()), int((kept >= 0).sum()))
    return min(1.0, 2 * (side + 1) / (len(kept) + 1))


def mcnemar(lost: int, gained: int) -> tuple[float, float]:
    """The exact two-sided p value of McNemar's test, and its mid-p.

    Of m = lost + gained samples that only one model gets right, min(lost, gained) is Binomial(m, 1/2) if both
    models are equally good: p = min(1, 2 P(X <= min)); mid-p takes off P(X = min), half of it where lost =
    gained. McNemar 1947; mid-p: Fagerland, Lydersen & Laake, BMC Medical Research Methodology 13:91 (2013).
    With m = 0 both are 1.
    """
    m, k = lost + gained, min(lost, gained)
    if m == 0:
        return 1.0, 1.0
    logs = np.zeros(k + 1)
    steps = np.arange(1, k + 1, dtype=np.float64)
    logs[1:] = np.cumsum(np.log((m - steps + 1) / steps))
    terms = np.exp(logs - m * math.log(2))
    tail, point = math.fsum(terms), float(terms[-1])
    if lost == gained:
        return 1.0, 1.0 - point / 2
    return min(1.0, 2 * tail), min(1.0, 2 * tail - point)


def student_t(difference: Array) -> tuple[float, float] | None:
    """The paired t test: t = mean / (sd / sqrt n) and its two-sided p value with n - 1 degrees; None for n < 2."""
    n = len(difference)
    if n < 2:
        return None
    mean, sd = float(difference.mean()), float(difference.std(ddof=1))
    if sd <= 1e-12 * max(1.0, abs(mean)):
        return (0.0, 1.0) if abs(mean) <= 1e-12 else (math.copysign(math.inf, mean), 0.0)
    t = mean / (sd / math.sqrt(n))
    return t, student_tails(t, n - 1)


def student_tails(t: float, degrees: float) -> float:
    """P(|T| >= |t|) of Student's distribution: I_x(degrees / 2, 1 / 2) at x = degrees / (degrees + t^2)."""
    if math.isinf(t):
        return 0.0
    return incomplete_beta(degrees / (degrees + t * t), degrees / 2, 0.5)


def incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by its continued fraction (DLMF 8.17.22), Lentz's way."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1.0 - incomplete_beta(1 - x, b, a)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d = 1 / (1 + even * d)
        c = 1 + even / c
        value *= c * d
        d = 1 / (1 + odd * d)
        c = 1 + odd / c
        step = c * d
        value *= step
        if abs(step - 1) < 1e-15:
            break
    return min(1.0, front * value / a)


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment: the k-th smallest of m values times m - k + 1, never falling, at most 1 (1979)."""
    known = sorted((value, k) for k, value in enumerate(values) if value is not None)
    adjusted: list[float | None] = [None] * len(values)
    reached = 0.0
    for rank, (value, k) in enumerate(known):
        reached = max(reached, min(1.0, (len(known) - rank) * value))
        adjusted[k] = reached
    return adjusted


def detectable_share(
    count: int, discordance: float, *, power: float = 0.8, level: float = 0.05
) -> float | None:
    """The smallest difference of two accuracies that McNemar's test finds with this power, from n samples.

    Connor's sample size (Biometrics 43:207, 1987), n = (z_a sqrt(q) + z_b sqrt(q - d^2))^2 / d^2 with q the
    share of samples that only one model gets right and d the difference, solved for d. Models that differ by
    d disagree on d at least, so q = max(discordance, d). None where not even d = 1 would be found.
    """
    if count < 1:
        return None
    za, zb = NORMAL.inv_cdf(1 - level / 2), NORMAL.inv_cdf(power)

    def short(d: float) -> float:
        q = max(discordance, d)
        return za * math.sqrt(q) + zb * math.sqrt(max(0.0, q - d * d)) - d * math.sqrt(count)

    if short(1.0) > 0:
        return None
    low, high = 0.0, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if short(middle) > 0 else (low, middle)
    return high


def detectable_mean(deviation: float, *, power: float = 0.8, level: float = 0.05) -> float:
    """The same for a mean whose standard error is `deviation`: (z_{1 - level / 2} + z_power) times it."""
    return (NORMAL.inv_cdf(1 - level / 2) + NORMAL.inv_cdf(power)) * deviation


def wilson(share: float, count: int, confidence: float) -> tuple[float, float]:
    """Wilson's score interval for a share of `count` samples (1927): it holds for shares near 0 and 1."""
    z = NORMAL.inv_cdf(0.5 + confidence / 2)
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def kendall(rows: Sequence[Sequence[float]]) -> Array:
    """Kendall's tau-b between each two rows [rows, rows]; NaN where one of the two is constant or holds NaN.

    (concordant - discordant) / sqrt((pairs - ties in x) (pairs - ties in y)) (Kendall 1945).
    """
    values = np.asarray(rows, dtype=np.float64)
    first, second = np.triu_indices(values.shape[1], 1)
    signs = np.sign(values[:, first] - values[:, second])
    untied = np.where(np.isfinite(values).all(axis=1), (signs != 0).sum(axis=1), 0).astype(np.float64)
    agreed = np.nan_to_num(signs) @ np.nan_to_num(signs).T
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.outer(untied, untied) > 0, agreed / np.sqrt(np.outer(untied, untied)), np.nan)


def welch(a: Sequence[float], b: Sequence[float]) -> dict[str, float | None] | None:
    """Is the difference of two groups of runs larger than the runs' own spread? b's mean less a's.

    Two groups of two runs or more: Welch's t test. One run against a group: the run is taken to spread as the
    group does, t = difference / (sd sqrt(1 + 1 / n)) with n - 1 degrees. None for two single runs. `ratio` is
    |difference| over the standard deviation of one run (of both groups, pooled).
    """
    na, nb = len(a), len(b)
    if na < 2 and nb < 2:
        return None
    mean = math.fsum(b) / nb - math.fsum(a) / na
    va, vb = (float(np.var(group, ddof=1)) if len(group) > 1 else None for group in (a, b))
    degrees: float
    if va is not None and vb is not None:
        error = va / na + vb / nb
        pooled = ((na - 1) * va + (nb - 1) * vb) / (na + nb - 2)
        parts = (va / na) ** 2 / (na - 1) + (vb / nb) ** 2 / (nb - 1)
        degrees = error * error / parts if parts > 0 else float(na + nb - 2)
    else:
        pooled = va if va is not None else vb if vb is not None else 0.0
        error, degrees = pooled * (1 / na + 1 / nb), float(max(na, nb) - 1)
    found: dict[str, float | None] = {"difference": mean, "sd": math.sqrt(pooled), "degrees": degrees}
    if pooled <= 0:
        return found | {"ratio": None, "p": None}
    return found | {
        "ratio": abs(mean) / math.sqrt(pooled),
        "p": student_tails(mean / math.sqrt(error), degrees),
    }
