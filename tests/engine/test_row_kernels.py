"""Kernels written by hand, against NumPy: ranks within rows, products, divergences; and flags that are kept."""

from __future__ import annotations

import math

import numpy as np
import pytest
from makers import BF16, normal, read_model, write_model

import merganser as mg
from merganser.algebra.computed import by_rows
from merganser.algebra.expression import Reduce
from merganser.algebra.weights import Entry
from merganser.engine import ledger, memory
from merganser.engine.kernels.divergence import divergence
from merganser.engine.kernels.product import product
from merganser.engine.kernels.ranks import above, ranks
from merganser.engine.plan import plan_weights

CHUNK = 1 << 18
SHAPES = [(1, 1), (3, 2), (5, 7), (4, 8), (3, 65), (2, 900), (1, 9001)]


def rows_of(kind: str, rows: int, width: int) -> np.ndarray:
    rng = np.random.default_rng([rows, width])
    plain = rng.standard_normal((rows, width)).astype(np.float32)
    if kind == "differences":  # of bfloat16: many equal ones, many zeros
        base = (plain * np.float32(0.02)).astype(BF16)
        return (base + rng.standard_normal(plain.shape) * 1e-3 * (plain < 1)).astype(BF16).astype(
            np.float32
        ) - base.astype(np.float32)
    if kind == "one bin":
        return (1 + rng.integers(0, 4096, plain.shape) * 2.0**-23).astype(np.float32)
    if kind == "signs":
        return rng.choice([-1.0, 0.0, 1.0], plain.shape).astype(np.float32)
    if kind == "far apart":
        return np.exp2(rng.uniform(-140, 120, plain.shape)).astype(np.float32)
    return np.zeros_like(plain) if kind == "zeros" else plain


def counted(values: np.ndarray) -> np.ndarray:
    """Ranks by binary search among the sorted magnitudes: the first of equal ones, at odd places the last."""
    found = []
    for row in np.abs(values):
        ordered = np.sort(row)
        first, last = np.searchsorted(ordered, row, "left"), np.searchsorted(ordered, row, "right") - 1
        found.append(np.where(np.arange(len(row)) % 2, last, first))
    return np.array(found)


@pytest.mark.parametrize("kind", ["plain", "differences", "one bin", "signs", "far apart", "zeros"])
@pytest.mark.parametrize("shape", SHAPES)
def test_ranks_and_what_is_above_a_number(kind, shape):
    values = rows_of(kind, *shape)
    expected = counted(values)
    np.testing.assert_array_equal(ranks(values), expected)
    np.testing.assert_array_equal(ranks(values.astype(np.float64)), expected)
    rng = np.random.default_rng(1)
    numbers = (rng.uniform(-0.3, 1.3, shape) * shape[1]).astype(np.float32)
    numbers.reshape(-1)[::7] = rng.integers(-1, shape[1] + 2, numbers.reshape(-1)[::7].shape)
    numbers.reshape(-1)[3::50] = np.inf
    np.testing.assert_array_equal(above(values, numbers), expected + 1 > numbers)
    wide = numbers.astype(np.float64)
    np.testing.assert_array_equal(above(values.astype(np.float64), wide), expected + 1 > wide)


def test_every_number_is_decided_right_at_every_rank():
    """No rank is taken for its neighbour, wherever the bins' bounds lie."""
    values = rows_of("differences", 1, 300)
    expected = counted(values)
    for number in range(-1, 303):
        for near in (
            np.nextafter(np.float32(number), -np.inf),
            number,
            np.nextafter(np.float32(number), np.inf),
        ):
            numbers = np.full(values.shape, near, np.float32)
            np.testing.assert_array_equal(above(values, numbers), expected + 1 > numbers)


@pytest.mark.parametrize(
    ("rows", "inner", "columns"), [(1, 1, 1), (5, 3, 7), (9, 16, 33), (7, 40, 32), (64, 8, 65)]
)
def test_a_product_adds_up_in_order_wherever_it_begins(rows, inner, columns):
    rng = np.random.default_rng(0)
    left = (rng.standard_normal((rows, inner)) * rng.choice([1e-20, 1, 1e6], (rows, inner))).astype(
        np.float32
    )
    right = rng.standard_normal((inner, columns)).astype(np.float32)
    left[0, 0], right[0, 0] = -0.0, 0.0
    expected = left[:, :1] * right[:1]
    for k in range(1, inner):
        expected = expected + left[:, k : k + 1] * right[k : k + 1]
    expected = (expected * np.float32(0.37)).reshape(-1)
    for start in {0, 1, columns - 1, columns, rows * columns // 2, rows * columns - 1}:
        for count in {0, 1, columns, rows * columns - start}:
            count = min(count, rows * columns - start)
            out = np.full(count, 7, np.float32)
            product(left, right, 0.37, start, out)
            assert out.tobytes() == expected[start : start + count].tobytes()


SERIES = (1 / 30, -1 / 20, 1 / 12, -1 / 6, 1 / 2)


@pytest.mark.parametrize("width", [1, 7, 8, 9, 127, 129, 300, 4099])
@pytest.mark.parametrize("scale", [0.02, 3.0])
def test_a_divergence_of_close_rows(width, scale):
    origin = normal(5, width) * np.float32(scale)
    model = origin + normal(5, width, seed=1) * np.float32(1e-3)
    found, left = divergence(model, origin, 1e-8, 2.0**-4, SERIES)
    assert not left.any()

    def shares(rows):
        powers = np.exp(rows.astype(np.float64) - rows.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True) + 1e-8

    p, q = shares(model), shares(origin)
    expected = (p * np.log1p((p - q) / q) - (p - q)).sum(1)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-12)
    assert found.tobytes() == np.array([divergence(*pair, 1e-8, 2.0**-4, SERIES)[0][0]
        for pair in zip(model[:, None], origin[:, None], strict=True)]).tobytes()  # fmt: skip


def test_rows_that_are_not_close_or_not_finite_are_left():
    origin = normal(7, 40)
    model = origin.copy()
    model[1, 3] += 1
    model[2, 3], model[3, 3], model[4, 3] = np.nan, np.inf, -np.inf
    origin[5, 3] = model[5, 3] = -200
    _, left = divergence(model, origin, 1e-8, 2.0**-4, SERIES)
    assert left.tolist() == [False, True, True, True, True, True, False]


# flags


calls: list[int] = []


def positive(block):
    calls.append(block.size)
    return block > 0


def flagged(tmp_path, *shape, dtype=np.float32):
    """x divided by the sum of its positive entries: two steps need the flags."""
    x = normal(*shape, dtype=dtype)
    weights = mg.open(write_model(tmp_path / "m", {"x": x}))
    kept = weights["x"] * by_rows(positive, [weights["x"]], flags=True)
    return weights._with({"x": Entry(kept / Reduce("sum", (kept,)), 1.0)}), x


@pytest.mark.parametrize("dtype", [np.float32, BF16, np.float64])
@pytest.mark.parametrize(("threads", "tile"), [(1, CHUNK), (2, CHUNK // 4), (2, CHUNK)])
@pytest.mark.parametrize("room", ["kept", "made again", "long rows"])
def test_flags_are_made_once_where_there_is_room(tmp_path, monkeypatch, dtype, threads, tile, room):
    if room == "made again":
        monkeypatch.setattr(memory, "_kept", lambda plan, nbytes: (frozenset(), 0))
    if room == "long rows":
        monkeypatch.setattr("merganser.engine.sources.HELD", 100)
    weights, x = flagged(tmp_path, 600, 501, dtype=dtype)
    calls.clear()
    weights.save(tmp_path / "o", threads=threads, tile=tile, sync=False)
    found = read_model(tmp_path / "o")["x"].astype(np.float64)
    wide = x.astype(np.float64)
    wide = np.where(wide > 0, wide, 0.0)
    np.testing.assert_allclose(found, wide / wide.sum(), rtol=1e-2 if dtype == BF16 else 1e-5)
    again = x.size * (1.9 if room == "made again" else 1)
    assert again <= sum(calls) <= again + x.size * 0.15  # rows at the edge of a tile are made for both


def test_flags_that_are_kept_are_in_the_plan(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "resident_bytes", lambda: 10**8)
    weights, x = flagged(tmp_path, 3000, 1000)
    plan = plan_weights(weights)
    plenty = memory.budget(plan, 10**10, 2)
    least = plenty.needed - 3 * math.ceil(x.size / 8)  # a task more than there are threads may be open
    assert len(plenty.kept) == 1
    assert memory.budget(plan, plenty.needed, 2).kept == plenty.kept
    tight = memory.budget(plan, plenty.needed - 3, 2)
    assert (tight.kept, tight.needed) == (frozenset(), least)


def test_kept_flags_are_read_back_from_any_place():
    kept = ledger.Kept(200_001)
    flags = np.random.default_rng(0).random(200_001) < 0.5
    out = np.empty(1000, bool)
    assert not kept.read(0, out)
    kept.note(65_536, flags[65_536:131_072])
    kept.note(5, flags[5:65_536])  # not whole blocks
    assert kept.read(65_549, out) and np.array_equal(out, flags[65_549:66_549])
    assert not kept.read(65_000, out) and not kept.complete
    kept.note(0, flags[:65_536])
    kept.note(131_072, flags[131_072:])
    assert kept.complete and kept.read(199_001, out) and np.array_equal(out, flags[199_001:])
