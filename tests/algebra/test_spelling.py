"""Words of Python and NumPy on lazy values: each does what it says, or is a TypeError that names how it is spelled."""

from __future__ import annotations

import math
import operator

import numpy as np
import pytest
from makers import normal

import merganser as mg
from merganser.errors import AlgebraError, MerganserError, SpellingError

X, Y = normal(4, 5, seed=1), normal(4, 5, seed=2)


@pytest.fixture
def pair(opened):
    return opened("m", x=X, y=Y)


@pytest.fixture
def two(opened):
    return opened("a", w=X), opened("b", w=Y)


def value(weights, expression):
    (name,) = [n for n in weights if n == "x"]
    return weights.map(lambda n, e: expression if n == name else e).compute(name)


REFUSED = {
    "bool(x)": "a & b",
    "not x": "~a",
    "x and y": "a & b",
    "x or y": r"a \| b",
    "0 < x < 1": r"\(x > 0\) & \(x < 1\)",
    "1 if x > 0 else 0": "mg.where",
    "max(x, y)": "mg.maximum",
    "min(x, y)": "mg.minimum",
    "max([y, x], key=lambda e: e)": "mg.maximum",
    "sorted([x, y])": "before it is computed",
    "x in [y]": "before it is computed",
    "[y].index(x)": "before it is computed",
    "any([x, y])": r"a \| b",
    "all(x == e for e in (y, x))": "before it is computed",
    "float(x)": "mg.compute_scalars",
    "int(x)": "mg.compute_scalars",
    "complex(x)": "mg.compute_scalars",
    "math.sqrt(x)": "mg.sqrt",
    "math.floor(x)": "mg.compute_scalars",
    "math.isnan(x)": "mg.compute_scalars",
    "round(x)": "mg.cast",
    "round(x, 2)": "mg.cast",
    "len(x)": "x.shape",
    "[1, 2][x]": "mg.compute_scalars",
    "np.array(x)": "mg.compute",
    "np.asarray([x, y])": "mg.compute",
    "np.float32(x)": "mg.compute",
    "np.exp(x)": "mg.compute",
    "np.square(x)": r"x \* x",
    "np.power(x, 2)": r"x \* x",
    "np.where(x > 0, x, y)": "mg.where",
    "np.clip(x, -1, 1)": "mg.clip",
    "np.sum(x)": "mg.total",
    "np.linalg.norm(x)": "mg.norm",
    "np.dot(x, y)": "mg.dot",
    "np.max(x)": "mg.largest",
    "np.mean(x)": "mg.total",
    "np.round(x)": "mg.cast",
    "np.add.reduce(x)": "mg.compute",
    "np.maximum(x, y, out=np.zeros((4, 5)))": "mg.compute",
    "np.add(x, np.ones((4, 5)))": "mg.open",
    "x + np.ones((4, 5))": "mg.open",
    "np.ones((4, 5)) * x": "mg.open",
    "x + weights": "by its name",
    "x + '3'": "by its name",
    "x + None": "by its name",
    "mg.norm(x) + '1'": "by its name",
    "bool(mg.norm(x) > 1.0)": "mg.where",
    "float(mg.norm(x))": "mg.compute_scalars",
    "bool(weights)": r"len\(weights\)",
    "not weights": r"len\(weights\)",
    "weights or other": "is None",
    "weights == other": "a is b",
    "weights != other": "merganser diff",
    "weights in [other]": "a is b",
    "x in weights": "'name' in weights",
    "weights in other": "'name' in weights",
    "weights > 0": r"weights.map\(lambda name, x: x > 0",
    "weights == 0": r"weights.map\(lambda name, x: x > 0",
    "0 <= weights": r"weights.map",
    "max(weights, other)": r"mg.maximum\(a, b\)",
    "sorted([weights, other])": r"mg.maximum\(a, b\)",
    "float(weights)": "mg.norm",
    "math.sqrt(weights)": "mg.norm",
    "round(weights)": "mg.cast",
    "np.array(weights)": "mg.compute",
    "np.sqrt(weights)": "mg.compute",
    "np.maximum(weights, other)": "mg.compute",
    "np.where(weights, 1, 2)": "mg.where",
    "np.sum(weights)": "mg.total",
    "np.ones(3) * weights": "mg.compute",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_would_be_wrong_in_silence_is_a_type_error_that_says_how_it_is_spelled(pair, opened, words):
    names = {"x": pair["x"], "y": pair["y"], "weights": pair, "other": opened("other", x=Y, y=X)}
    with pytest.raises(SpellingError, match=REFUSED[words]) as error:
        eval(words, {"np": np, "math": math, "mg": mg} | names)
    assert isinstance(error.value, TypeError)
    assert isinstance(error.value, MerganserError)


DONE = {
    "np.maximum(x, y)": np.maximum(X, Y),
    "np.minimum(x, 0.1)": np.minimum(X, np.float32(0.1)),
    "np.add(x, y)": X + Y,
    "np.subtract(1, x)": 1 - X,
    "np.multiply(2, x)": 2 * X,
    "np.float32(2) * x": 2 * X,
    "np.float64(2) - x": 2 - X,
    "x * np.int64(3)": 3 * X,
    "x / np.array(4.0)": X / 4,
    "np.divide(x, y)": X / Y,
    "np.negative(x)": -X,
    "np.abs(x)": np.abs(X),
    "abs(x)": np.abs(X),
    "np.sqrt(np.abs(x))": np.sqrt(np.abs(X)),
    "mg.sqrt(abs(x))": np.sqrt(np.abs(X)),
    "np.sign(x)": np.sign(X),
    "sum([x, y, x])": X + Y + X,
    "mg.minimum(x, y)": np.minimum(X, Y),
    "mg.maximum(x, 0.25)": np.maximum(X, np.float32(0.25)),
    "mg.where((x > 0) & (x < 1), x, 0.0)": np.where((X > 0) & (X < 1), X, 0),
    "mg.where((x > 1) | (y > 1), x, 0.0)": np.where((X > 1) | (Y > 1), X, 0),
    "mg.where(~(x > 0), x, 0.0)": np.where(X > 0, 0, X),
    "mg.where(np.logical_and(x > 0, y > 0), x, y)": np.where((X > 0) & (Y > 0), X, Y),
    "mg.where(True & (x > 0), x, y)": np.where(X > 0, X, Y),
    "mg.where(x == x, y, x)": Y,
    "mg.where(x != y, y, x)": Y,
    "mg.where(x == 0.0, y, x)": X,
    "mg.where(np.equal(x, x), y, x)": Y,
    "mg.where(np.float32(0) < x, x, y)": np.where(X > 0, X, Y),
}


@pytest.mark.parametrize("words", DONE)
def test_what_has_one_meaning_means_it(pair, words):
    made = eval(words, {"np": np, "math": math, "mg": mg, "x": pair["x"], "y": pair["y"]})
    np.testing.assert_allclose(value(pair, made), DONE[words], rtol=1e-6, atol=0)


def test_arithmetic_of_weights_takes_numpys_numbers_and_functions(two):
    a, b = two
    for made, due, degree in (
        (np.float32(0.5) * a + b * np.float64(0.5), 0.5 * X + 0.5 * Y, 1),
        (np.add(a, b), X + Y, 2),
        (np.subtract(a, b), X - Y, 0),
        (np.multiply(2, a), 2 * X, 2),
        (np.negative(a), -X, -1),
        (abs(a), np.abs(X), 1),
        (np.abs(a - b), np.abs(X - Y), 0),
        (sum([a, b]), X + Y, 2),
        (mg.minimum(a, b), np.minimum(X, Y), 1),
        (mg.maximum(a, b), np.maximum(X, Y), 1),
        (mg.maximum(a, 0.25), np.maximum(X, np.float32(0.25)), 1),
        (mg.sqrt(abs(a)), np.sqrt(np.abs(X)), 1),
    ):
        assert made.degree == pytest.approx(degree)
        np.testing.assert_allclose(made.compute("w"), due, rtol=1e-6)
    with pytest.raises(AlgebraError, match="different degree"):
        mg.maximum(a, a - b)
    for ask in (lambda: mg.minimum(a, a["w"]), lambda: mg.minimum(a["w"], a)):
        with pytest.raises(MerganserError, match="two weights, two tensors"):
            ask()


def test_a_mask_as_the_message_spells_it(two):
    a, b = two
    mask = a.map(lambda name, x: x > 0, degree=1)
    np.testing.assert_array_equal(mg.where(mask, a, b).compute("w"), np.where(X > 0, X, Y))
    np.testing.assert_array_equal(mg.where(mask, a, 0.0).compute("w"), np.where(X > 0, X, 0))
    assert mg.where(mask, 0.0, a - b).degree == 0
    for wrong in (lambda: mg.where(mask, a["w"], b), lambda: mg.where(a["w"] > 0, a, b)):
        with pytest.raises(MerganserError, match=r"weights\[name\]"):
            wrong()


def test_the_remedies_for_numbers_and_arrays_work(pair):
    x = pair["x"]
    (norm,) = mg.compute_scalars({"x": [mg.norm(x)]}, pair.checkpoints)["x"]
    assert norm == pytest.approx(np.linalg.norm(X.astype(np.float64)))
    np.testing.assert_array_equal(mg.compute(pair, "x"), X)
    assert x.shape == (4, 5) and x.size == 20


def test_identity_still_holds_together_sets_mappings_and_lists(pair, opened):
    other = opened("other", x=Y, y=X)
    x, y = pair["x"], pair["y"]
    assert {pair, other, pair} == {other, pair} and {x: 1, y: 2}[y] == 2 and len({x, y, x}) == 2
    assert pair in [other, pair][1:] and [pair, other].index(pair) == 0 and x in [x]
    assert pair == pair
    assert (pair == None) is False and (pair != None) is True  # noqa: E711
    assert (x == None) is False and (x == "x") is False and (pair == "x") is False  # noqa: E711


def test_a_number_too_large_is_refused(pair):
    for word in (operator.add, operator.mul, operator.lt):
        with pytest.raises(AlgebraError, match="too large"):
            word(pair["x"], 10**400)
