"""Averages of parts, and how their order agrees with true scores."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from toy_models import near, toys, written

import merganser as mg
from merganser.errors import RequestError
from merganser.search import CallableFitness, rank_mixtures, read_sets
from merganser.search.mixtures import PartSet, _agreement, every_set


@pytest.fixture
def models(tmp_path: Path) -> dict:
    toys(tmp_path)
    return {name: mg.open(tmp_path / name, name=name) for name in ("a", "b", "c")}


def test_every_set_is_averaged(models: dict) -> None:
    found = rank_mixtures(models, near(0.0, 2.5))
    by_name = {one.mixture.name: (one.average.fitness, one.mean) for one in found.rows}
    assert set(by_name) == {"a", "b", "c", "a+b", "a+c", "b+c", "a+b+c"}
    # a (1, 0), b (0, 1), c (-1, 4)
    assert by_name["a+c"] == pytest.approx((-0.25, (-7.25 - 3.25) / 2))
    assert by_name["b+c"] == pytest.approx((-0.25, (-2.25 - 3.25) / 2))
    assert by_name["a+b+c"] == pytest.approx((-((2.5 - 5 / 3) ** 2), (-7.25 - 2.25 - 3.25) / 3), rel=1e-5)
    assert [one.mixture.name for one in found.rows][:2] == ["a+c", "b+c"]
    assert not found.agreement


def test_shares_and_true_scores(models: dict, tmp_path: Path) -> None:
    sets = [
        {"parts": ["a", "c"], "weights": [3, 1], "true": 3, "name": "mostly a"},
        {"parts": ["b"], "true": 1},
        {"parts": ["a", "b"], "true": 2},
        {"parts": ["c"], "true": 0},
    ]
    path = written(tmp_path, {"sets": sets}, "sets.yaml")
    found = rank_mixtures(models, near(0.5, 1.0), read_sets(path, list(models)), seed=1)
    assert [one.mixture.name for one in found.rows] == ["mostly a", "b", "a+b", "c"]
    assert [one.average.fitness for one in found.rows] == pytest.approx([0.0, -0.25, -0.25, -11.25])
    proxy, rival = found.agreement
    values, true = [0.0, -0.25, -0.25, -11.25], [3, 1, 2, 0]
    assert proxy.spearman == pytest.approx(stats.spearmanr(values, true).statistic)
    assert proxy.kendall == pytest.approx(stats.kendalltau(values, true).statistic)
    assert proxy.count == rival.count == 4
    assert proxy.low is proxy.high is None, "four sets are too few for an interval"
    again = rank_mixtures(models, near(0.5, 1.0), read_sets(path, list(models)), seed=1)
    assert again.as_json() == found.as_json()


def test_what_one_mixture_lacks_takes_nothing_from_the_others(models: dict, tmp_path: Path) -> None:
    """c alone has no score: then no mean of parts with c has one, and every average but its own keeps its score."""

    def fitness(weights) -> float:
        x, y = (float(weights.compute(name)[0]) for name in ("net.0.x", "net.1.y"))
        return math.nan if (x, y) == (-1.0, 4.0) else x + 2 * y

    sets = [{"parts": list(parts), "true": k} for k, parts in enumerate(("c", "a", "b", "ab", "ac"))]
    path = written(tmp_path, {"sets": sets}, "sets.yaml")
    found = rank_mixtures(models, CallableFitness(fitness, "x + 2 y"), read_sets(path, list(models)))
    told = {one["name"]: one for one in found.as_json()["sets"]}
    assert list(told) == ["a+c", "b", "a+b", "a", "c"]
    assert told["c"]["score"] is told["c"]["mean_of_parts"] is told["a+c"]["mean_of_parts"] is None
    assert "undefined" in told["c"]["failed"] and "failed" not in told["a+c"]
    average, mean = found.agreement
    assert average.count == 4 and average.spearman == pytest.approx(
        stats.spearmanr([1, 2, 1.5, 4], [1, 2, 3, 4]).statistic
    )
    assert mean.count == 3 and mean.spearman == pytest.approx(
        stats.spearmanr([1, 2, 1.5], [1, 2, 3]).statistic
    )


def test_rank_correlations_are_scipys() -> None:
    draws = np.random.default_rng(0)
    x, y = draws.integers(0, 4, 20).astype(float), draws.standard_normal(20)
    found = _agreement("proxy", x, y, 0)
    assert found.spearman == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found.kendall == pytest.approx(stats.kendalltau(x, y).statistic)
    assert found.low is not None
    assert -1 <= found.low < found.spearman < found.high <= 1
    nothing = _agreement("proxy", np.ones(5), y[:5], 0)
    assert nothing.spearman is nothing.kendall is nothing.low is None


@pytest.mark.parametrize("count", [3, 4, 7])
def test_there_is_no_interval_where_it_says_nothing(count: int) -> None:
    """Few sets, and any number in perfect order or in its reverse, give rank correlations but no interval."""
    true = np.arange(count, dtype=float) ** 2
    for values, rho in ((true + 1, 1.0), (-true, -1.0)):
        found = _agreement("proxy", values, true, 0)
        assert found.spearman == pytest.approx(rho)
        assert found.kendall == pytest.approx(rho)
        assert found.low is found.high is None


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({"sets": []}, "expected {sets"),
        ({"sets": [{"parts": ["d"]}]}, r"sets\[0\].parts: no model is called 'd'"),
        ({"sets": [{"parts": ["a", "a"]}]}, "expected different parts"),
        ({"sets": [{"parts": ["a"], "weights": [0]}]}, "expected 1 numbers above 0"),
        ({"sets": [{"parts": ["a"], "ture": 1}]}, "ture: unknown key; did you mean 'true'"),
        ({"sets": [{"parts": ["a"], "true": "x"}]}, "true: expected a number"),
    ],
)
def test_wrong_sets_are_told(tmp_path: Path, document: object, told: str) -> None:
    with pytest.raises(RequestError, match=told):
        read_sets(written(tmp_path, document, "sets.yaml"), ["a", "b"])


def test_wrong_requests_are_told(models: dict) -> None:
    with pytest.raises(RequestError, match="at least two models"):
        rank_mixtures({"a": models["a"]}, near(0, 0))
    with pytest.raises(RequestError, match="9 parts have 511 sets"):
        every_set([f"p{k}" for k in range(9)])
    assert len(every_set([f"p{k}" for k in range(8)])) == 255
    assert PartSet("a", ("a",), (1.0,)) in every_set(["a", "b"])
