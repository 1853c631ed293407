"""Tests and intervals against scipy, exact enumeration and simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import special, stats

from merganser.compare import inference


@pytest.mark.parametrize(
    ("lost", "gained"), [(0, 0), (0, 1), (5, 0), (3, 9), (9, 3), (7, 7), (1, 30), (400, 470)]
)
def test_mcnemar_is_the_binomial_test(lost: int, gained: int) -> None:
    p, mid = inference.mcnemar(lost, gained)
    m, k = lost + gained, min(lost, gained)
    if m == 0:
        assert (p, mid) == (1.0, 1.0)
        return
    assert p == pytest.approx(stats.binomtest(lost, m).pvalue, rel=1e-10)
    point = stats.binom.pmf(k, m, 0.5)
    by_hand = 1 - point / 2 if lost == gained else 2 * stats.binom.cdf(k - 1, m, 0.5) + point
    assert mid == pytest.approx(by_hand, rel=1e-9)


def test_mcnemar_by_counting_coins() -> None:
    """3 against 9 of 12: the share of the 4,096 sequences that are at least as uneven."""
    uneven = sum(abs(2 * sum(coins) - 12) >= 6 for coins in itertools.product((0, 1), repeat=12))
    assert inference.mcnemar(3, 9)[0] == pytest.approx(uneven / 4096)


@pytest.mark.parametrize("degrees", [1, 2, 5.5, 30, 4000])
@pytest.mark.parametrize("t", [0.0, 0.3, -2.5, 9.0, 60.0])
def test_student_s_tails(t: float, degrees: float) -> None:
    assert inference.student_tails(t, degrees) == pytest.approx(2 * stats.t.sf(abs(t), degrees), rel=1e-9)


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.5), (2.0, 7.0), (100.0, 0.5), (1.0, 1.0)])
def test_the_incomplete_beta_function(a: float, b: float) -> None:
    for x in (0.0, 1e-6, 0.1, 0.5, 0.93, 1.0):
        assert inference.incomplete_beta(x, a, b) == pytest.approx(
            special.betainc(a, b, x), rel=1e-11, abs=1e-300
        )


def test_the_paired_t_test() -> None:
    random = np.random.default_rng(0)
    x, y = random.standard_normal((2, 37))
    found = inference.student_t(y - x)
    expected = stats.ttest_rel(y, x)
    assert found == (pytest.approx(expected.statistic), pytest.approx(expected.pvalue))
    assert inference.student_t(np.zeros(5)) == (0.0, 1.0)
    assert inference.student_t(np.full(5, 0.25)) == (math.inf, 0.0)
    assert inference.student_t(np.ones(1)) is None


def test_holm_by_hand() -> None:
    assert inference.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert inference.holm([0.6, None, 0.7]) == [1.0, None, 1.0]
    assert inference.holm([]) == []


@pytest.mark.parametrize(
    ("x", "y"),
    [([1, 2, 3, 4], [1, 3, 2, 4]), ([1, 1, 2, 3], [2, 1, 1, 3]), ([3, 2, 1], [1, 2, 3]), ([1, 2], [5, 4])],
)
def test_kendall_is_scipy_s_tau_b(x: list[float], y: list[float]) -> None:
    assert inference.kendall([x, y])[0, 1] == pytest.approx(stats.kendalltau(x, y).statistic)


def test_kendall_of_constants_is_nothing() -> None:
    found = inference.kendall([[1, 1, 1], [1, 2, 3], [1, 2, math.nan]])
    assert np.isnan(found).tolist() == [[True, True, True], [True, False, True], [True, True, True]]


def test_wilson_by_scipy() -> None:
    for k, n in ((0, 10), (3, 40), (40, 40)):
        expected = stats.binomtest(k, n).proportion_ci(method="wilson")
        assert inference.wilson(k / n, n, 0.95) == pytest.approx((expected.low, expected.high))


def test_welch_is_scipy_s_and_a_single_run_borrows_the_spread() -> None:
    a, b = [0.70, 0.72, 0.69], [0.75, 0.73, 0.78, 0.74]
    found = inference.welch(a, b)
    expected = stats.ttest_ind(b, a, equal_var=False)
    assert found is not None
    assert found["p"] == pytest.approx(expected.pvalue)
    assert found["degrees"] == pytest.approx(expected.df)
    one = inference.welch(a, [0.75])
    sd = np.std(a, ddof=1)
    t = (0.75 - np.mean(a)) / (sd * math.sqrt(1 + 1 / 3))
    assert one is not None
    assert one["p"] == pytest.approx(2 * stats.t.sf(t, 2))
    assert one["ratio"] == pytest.approx((0.75 - np.mean(a)) / sd)
    assert inference.welch([1.0], [2.0]) is None
    still = inference.welch([1.0, 1.0], [2.0, 2.0])
    assert still is not None
    assert still["p"] is None


@pytest.mark.parametrize(("count", "discordance"), [(200, 0.3), (2000, 0.1), (500, 0.08)])
def test_the_detectable_difference_is_found_four_times_in_five(count: int, discordance: float) -> None:
    """Simulated with the asymptotic McNemar test, which Connor's formula is for."""
    d = inference.detectable_share(count, discordance)
    assert d is not None
    q = max(discordance, d)
    random = np.random.default_rng(1)
    gained, lost, _ = random.multinomial(count, [(q + d) / 2, (q - d) / 2, 1 - q], size=20_000).T
    with np.errstate(invalid="ignore"):
        z = np.abs(gained - lost) / np.sqrt(gained + lost)
    assert (z > stats.norm.ppf(0.975)).mean() == pytest.approx(0.8, abs=0.05)


def test_detectable_differences_at_the_edges() -> None:
    assert inference.detectable_share(0, 0.1) is None
    assert inference.detectable_share(3, 0.0) is None
    alike = inference.detectable_share(1000, 0.0)
    assert alike is not None
    assert 0.005 < alike < 0.01
    assert inference.detectable_mean(0.5) == pytest.approx(
        0.5 * (stats.norm.ppf(0.975) + stats.norm.ppf(0.8))
    )


def test_resamples_draw_n_of_n_and_repeat_themselves() -> None:
    counts = np.concatenate(list(inference.resamples(50, 4000, 0, "task")))
    assert counts.shape == (4000, 50)
    assert (counts.sum(axis=1) == 50).all()
    assert counts.mean(axis=0) == pytest.approx(1.0, abs=0.1)
    assert counts.var() == pytest.approx(1 - 1 / 50, rel=0.03)
    again = np.concatenate(list(inference.resamples(50, 4000, 0, "task")))
    assert np.array_equal(counts, again)
    for other in (("task", 1), ("another", 0)):
        assert not np.array_equal(
            counts, np.concatenate(list(inference.resamples(50, 4000, other[1], other[0])))
        )


def test_resamples_hold_little_at_a_time() -> None:
    sizes = [len(part) for part in inference.resamples(70_000, 12, 0, "task")]
    assert sum(sizes) == 12
    assert max(sizes) * 70_000 <= inference.CHUNK


@pytest.mark.parametrize(("count", "lowest"), [(60, 0.915), (400, 0.93)])
def test_intervals_cover_the_true_difference(count: int, lowest: float) -> None:
    """Accuracies 0.70 and 0.76 on samples of unequal difficulty; 95 % intervals of 600 draws of the samples."""
    random = np.random.default_rng(7)
    held, draws = 0, np.concatenate(list(inference.resamples(count, 1000, 0, "cover"))) / count
    times = 600
    for _ in range(times):
        ease = random.choice([0.9, 0.5], count)
        # Mean chances 0.7 and 0.7 + 0.06.
        a = random.random(count) < ease
        b = random.random(count) < np.minimum(1, ease + 0.06)
        low, high = inference.percentile_interval(draws @ (b.astype(float) - a), 0.95)
        assert low is not None
        assert high is not None
        held += low <= 0.06 <= high
    assert lowest < held / times < 0.98


def test_bootstrap_p_and_intervals_of_nothing() -> None:
    assert inference.percentile_interval(np.full(10, np.nan), 0.95) == (None, None)
    assert inference.bootstrap_p(np.full(10, np.nan)) is None
    assert inference.bootstrap_p(np.zeros(99)) == 1.0
    assert inference.bootstrap_p(np.ones(99)) == pytest.approx(0.02)
