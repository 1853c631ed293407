"""Every elementwise operation and reduction against NumPy, on tensors with and without an F64 parent."""

from __future__ import annotations

import math

import numpy as np
import pytest
from makers import normal, random_bits, write_model

import merganser as mg
from merganser.algebra import apply
from merganser.algebra.operations import OPERATIONS

REFERENCE = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "neg": np.negative,
    "abs": np.abs,
    "sqrt": np.sqrt,
    "sign": np.sign,
    "minimum": np.minimum,
    "maximum": np.maximum,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "and": np.logical_and,
    "or": np.logical_or,
    "not": np.logical_not,
    "where": lambda c, a, b: np.where(c != 0, a, b),
}
ARITY = {"neg": 1, "abs": 1, "sqrt": 1, "sign": 1, "not": 1, "where": 3}
CORNERS = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-40, -1e-40, 3e38, -3e38, 0.5]


def tensors(kind):
    """Three tensors in which every pair of corner values meets."""
    x, y = (g.ravel() for g in np.meshgrid(CORNERS, CORNERS))
    rng = np.random.default_rng(1)
    z = np.concatenate([rng.permutation(x), rng.standard_normal(500)])
    x, y = np.concatenate([x, rng.standard_normal(500)]), np.concatenate([y, rng.standard_normal(500)])
    return [v.astype(kind) for v in (x, y, z)]


def test_the_reference_covers_every_elementwise_operation():
    assert set(REFERENCE) == {name for name, operation in OPERATIONS.items() if not operation.host_only}


@pytest.mark.parametrize("name", REFERENCE)
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_operation_on_tensors(name, kind, opened):
    arrays = tensors(kind)[: ARITY.get(name, 2)]
    models = [opened(f"m{k}", w=array) for k, array in enumerate(arrays)]
    found = mg.compute(models[0].map(lambda n, _: apply(name, *(m[n] for m in models))), "w")
    with np.errstate(all="ignore"):
        wanted = REFERENCE[name](*arrays).astype(kind)
    np.testing.assert_array_equal(found, wanted)
    if name in ("add", "sub", "mul", "div", "neg", "abs", "where", "sqrt"):
        number = ~np.isnan(wanted)
        assert np.array_equal(np.signbit(found[number]), np.signbit(wanted[number]))


@pytest.mark.parametrize("name", [n for n in REFERENCE if n not in ("and", "or", "not", "where")])
def test_operation_on_numbers(name):
    """Scalars are computed in Python; corners agree with NumPy too (minimum and maximum of NaN aside)."""
    for x in CORNERS:
        for y in CORNERS:
            if name in ("minimum", "maximum") and (math.isnan(x) or math.isnan(y)):
                continue
            arguments = [x, y][: ARITY.get(name, 2)]
            with np.errstate(all="ignore"):
                wanted = float(REFERENCE[name](*map(np.float64, arguments)))
            found = float(OPERATIONS[name].on_numbers(*arguments))
            assert found == wanted or (math.isnan(found) and math.isnan(wanted)), (name, arguments)


def test_numbers_beside_tensors_are_rounded_to_the_arithmetic(opened):
    w = normal(1000)
    assert np.array_equal(mg.compute(opened("m", w=w) * 0.1, "w"), w * np.float32(0.1))
    wide = w.astype(np.float64)
    assert np.array_equal(mg.compute(opened("wide", w=wide) * 0.1, "w"), wide * 0.1)


def test_one_wide_parent_makes_the_whole_formula_wide(opened):
    a, b = normal(1000, seed=1), normal(1000, seed=2, dtype=np.float64)
    found = mg.compute(opened("a", w=a) * 0.5 + opened("b", w=b) * 0.5, "w")
    assert found.dtype == np.float64 and np.array_equal(found, a.astype(np.float64) * 0.5 + b * 0.5)


def test_no_multiplication_and_addition_are_fused(opened):
    """a * b + c rounds twice: the result is NumPy's, not that of a fused instruction."""
    a, b, c = (normal(70_001, seed=k) for k in range(3))
    c = -(a * b) + c * np.float32(1e-7)
    models = [opened(f"m{k}", w=v) for k, v in enumerate((a, b, c))]
    found = mg.compute(models[0].map(lambda n, e: e * models[1][n] + models[2][n]), "w")
    assert np.array_equal(found, a * b + c)


@pytest.mark.parametrize(
    "shape", [(), (1,), (255,), (256,), (257,), (65_535,), (65_537,), (0,), (3, 0), (2, 3, 4)]
)
def test_every_size_of_tensor(shape, opened):
    w = normal(*shape)
    w = np.asarray(w, np.float32).reshape(shape)
    model = opened("m", w=w)
    found = mg.compute(model * 2.0, "w")
    assert found.shape == shape and np.array_equal(found, w * np.float32(2))
    np.testing.assert_allclose(mg.compute(mg.total(model), "w"), math.fsum(w.ravel().tolist()), atol=1e-9)
    wanted = np.abs(w).max() if w.size else 0.0
    assert mg.compute(mg.largest(model), "w") == wanted


# reductions


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("size", [100, 65_536, 1_200_007])
def test_sums_are_close_to_the_exact_sum(kind, size, opened):
    """Additions in f64: the error is at most log2-many units of the sum of magnitudes; 1e-13 of it is asked for."""
    w = (np.random.default_rng(size).standard_normal(size) * 1e3).astype(kind)
    model = opened("m", w=w)
    exact = w.astype(np.float64)
    scale = math.fsum(np.abs(exact).tolist())
    assert abs(mg.compute(mg.total(model), "w") - math.fsum(exact.tolist())) <= 1e-13 * scale
    assert abs(mg.compute(mg.l1_norm(model), "w") - scale) <= 1e-13 * scale
    squares = math.fsum((w * w).astype(np.float64).tolist())
    assert abs(mg.compute(mg.norm(model), "w") ** 2 - squares) <= 1e-12 * squares
    assert mg.compute(mg.largest(model), "w") == np.abs(exact).max()


def test_dot_and_cosine(opened):
    a, b = normal(100_000, seed=1), normal(100_000, seed=2)
    x, y = opened("a", w=a), opened("b", w=b)
    exact = math.fsum((a * b).astype(np.float64).tolist())
    assert abs(mg.compute(mg.dot(x, y), "w") - exact) <= 1e-9


def test_sums_do_not_depend_on_threads(opened):
    w = normal(2_000_003, scale=1e4)
    model = opened("m", w=w)
    targets = {"w": [mg.total(model["w"]), mg.norm(model["w"])]}
    found = {str(mg.compute_scalars(targets, model.checkpoints, threads=n)) for n in (1, 2, 3, 5)}
    assert len(found) == 1


def test_sums_of_what_is_not_finite(opened):
    w = normal(1000)
    w[3] = np.inf
    assert mg.compute(mg.total(opened("a", w=w)), "w") == np.inf
    w[4] = -np.inf
    assert np.isnan(mg.compute(mg.total(opened("b", w=w)), "w"))
    w[5] = np.nan
    assert np.isnan(mg.compute(mg.total(opened("c", w=w)), "w"))
    assert np.isnan(mg.compute(mg.largest(opened("d", w=w)), "w"))


def test_a_reduction_inside_a_reduction(opened):
    """norm(x / norm(x)) takes two passes and is 1."""
    w = normal(100_000)
    model = opened("m", w=w)
    unit = model.map(lambda _, e: e / mg.norm(e))
    assert abs(mg.compute(mg.norm(unit), "w") - 1) < 1e-6
    wanted = w / np.float32(np.sqrt(np.sum(w.astype(np.float64) ** 2)))
    np.testing.assert_allclose(mg.compute(unit, "w"), wanted, rtol=2e-7)


def test_slerp_is_the_textbook_formula(opened):
    a, b = normal(40, 50, seed=1).astype(np.float64), normal(40, 50, seed=2).astype(np.float64)
    found = mg.compute(mg.slerp(opened("a", w=a), opened("b", w=b), 0.3), "w")
    theta = np.arccos(np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b)))
    wanted = np.sin(0.7 * theta) / np.sin(theta) * a + np.sin(0.3 * theta) / np.sin(theta) * b
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-14)


def test_slerp_of_collinear_opposite_and_zero_tensors_is_straight(opened):
    a = normal(100).astype(np.float64)
    for b in (a * 2, -a, np.zeros(100)):
        found = mg.compute(mg.slerp(opened("a", w=a), opened("b", w=b), 0.25), "w")
        np.testing.assert_allclose(found, 0.75 * a + 0.25 * b, rtol=1e-14)


def test_compute_keeps_integers_as_stored(tmp_path):
    ids = random_bits(np.dtype(np.int64), (3, 4))
    model = mg.open(write_model(tmp_path / "m", {"ids": ids}))
    assert np.array_equal(mg.compute(model, "ids"), ids) and mg.compute(model, "ids").dtype == np.int64
