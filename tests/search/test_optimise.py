"""Optimisers on functions whose best point is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from merganser.errors import RequestError
from merganser.search import optimise
from merganser.search.space import Dimension

BEST = (0.2, 0.7, 0.45)
SPACE = [Dimension(f"d{k}") for k in range(3)]


def bowl(point: tuple[float, ...]) -> float:
    return -sum(scale * (x - best) ** 2 for x, best, scale in zip(point, BEST, (1, 10, 100), strict=False))


def test_cma_finds_the_bottom_of_a_bowl() -> None:
    point, value, count = optimise(SPACE, bowl, by="cma", evaluations=400, seed=3)
    assert count == 400
    assert value > -1e-6
    assert point == pytest.approx(BEST, abs=1e-3)


def test_cma_takes_one_number_and_leaves_numpys_generator_alone() -> None:
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    point, _, _ = optimise(SPACE[:1], bowl, by="cma", evaluations=80, seed=0)
    assert point == pytest.approx(BEST[:1], abs=1e-3)
    assert (np.random.get_state()[1] == before).all()


def test_cma_goes_on_where_it_sees_no_differences() -> None:
    seen = []
    _, value, count = optimise(
        SPACE, lambda point: seen.append(point) or 1.0, by="cma", evaluations=900, seed=0
    )
    assert (value, count) == (1.0, 900)
    assert len(set(seen)) > 800


def test_cma_survives_failures() -> None:
    point, value, _ = optimise(
        SPACE, lambda p: -math.inf if p[0] > 0.5 else bowl(p), by="cma", evaluations=300, seed=1
    )
    assert value > -1e-4
    assert point[0] <= 0.5


def test_random_is_worse_than_cma_and_better_than_nothing() -> None:
    _, value, _ = optimise(SPACE, bowl, by="random", evaluations=400, seed=3)
    assert -1.0 < value < optimise(SPACE, bowl, by="cma", evaluations=400, seed=3)[1]


@pytest.mark.parametrize("by", ["random", "cma"])
def test_a_seed_is_a_sequence(by: str) -> None:
    def points(seed: int) -> list[tuple[float, ...]]:
        found: list[tuple[float, ...]] = []
        optimise(SPACE, lambda p: found.append(p) or bowl(p), by=by, evaluations=40, seed=seed)
        return found

    assert points(1) == points(1)
    assert points(1) != points(2)
    assert all(0 <= x <= 1 for point in points(1) for x in point)


def test_a_grid_has_every_point_once_and_both_ends() -> None:
    space = [Dimension("a"), Dimension("b", choices=("x", "y", "z")), Dimension("c", points=4)]
    seen = []
    _, _, count = optimise(space, lambda point: seen.append(point) or 0.0, by="grid", evaluations=36)
    assert count == len(set(seen)) == 36  # 3 x 3 x 4: as many for the free one as fit
    assert {point[0] for point in seen} == {0.0, 0.5, 1.0}
    assert {space[1].value(point[1]) for point in seen} == {"x", "y", "z"}
    assert {point[2] for point in seen} == {0.0, 1 / 3, 2 / 3, 1.0}
    best, _, _ = optimise(SPACE, bowl, by="grid", evaluations=11**3)
    assert best == pytest.approx((0.2, 0.7, 0.45), abs=0.051)


def test_of_equal_points_the_first_counts() -> None:
    seen = []
    point, _, _ = optimise(SPACE, lambda p: seen.append(p) or 2.0, by="random", evaluations=9, seed=0)
    assert point == seen[0]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"by": "cmaes"}, "unknown optimiser 'cmaes'"),
        ({"evaluations": 0}, "at least one evaluation, not 0"),
        ({"seed": -1}, "seed is a whole number"),
        ({"by": "grid", "evaluations": 7}, "has 8 points at least, more than the 7"),
    ],
)
def test_wrong_requests_are_told(settings: dict, told: str) -> None:
    with pytest.raises(RequestError, match=told):
        optimise(SPACE, bowl, **settings)
