"""Rearranged tensors against NumPy: bits, dtypes, any tile, any number of threads, and inside formulas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import BF16, normal, read_model, write_model

import merganser as mg
from merganser.algebra.expression import Draw
from merganser.algebra.rearranged import Array, Mixed, joined, product, reshaped, spread, taken
from merganser.algebra.weights import Entry
from merganser.engine import sources
from merganser.errors import AlgebraError

CHUNK = 1 << 18


def saved(weights, path, **options):
    weights.save(path, sync=False, partial=True, degree=1.0, **options)
    return read_model(path)


def one(weights, expression, name="x"):
    return weights._with({name: Entry(expression, 1.0)})


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_taken_is_numpy_indexing(tmp_path_factory, data):
    shape = tuple(data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=3)))
    array = normal(int(np.prod(shape)), dtype=BF16).reshape(shape)
    path = tmp_path_factory.mktemp("m")
    weights = mg.open(write_model(path / "a", {"x": array}))
    indices, expected = [], array.copy()
    for dim, size in enumerate(shape):
        if data.draw(st.booleans()):
            index = np.array(data.draw(st.lists(st.integers(-1, size - 1), min_size=1, max_size=9)))
            expected = np.take(expected, np.maximum(index, 0), axis=dim)
            expected[(slice(None),) * dim + (index < 0,)] = 0
            indices.append(index)
        else:
            indices.append(None)
    found = saved(one(weights, taken(weights["x"], indices)), path / "out")["x"]
    assert found.dtype == BF16
    assert found.tobytes() == np.ascontiguousarray(expected).tobytes()


def test_large_rows_columns_and_tiles_give_the_same_bytes(tmp_path):
    rng = np.random.default_rng(0)
    array = normal(900 * 1100, dtype=BF16).reshape(900, 1100)
    weights = mg.open(write_model(tmp_path / "a", {"x": array}))
    rows, columns = rng.permutation(900)[:700], rng.integers(0, 1100, 1300)
    made = one(weights, taken(weights["x"], [rows, columns]))
    expected = array[rows][:, columns].tobytes()
    for k, (threads, tile) in enumerate([(1, 0), (2, CHUNK), (3, 4 * CHUNK)]):
        assert saved(made, tmp_path / f"o{k}", threads=threads, tile=tile)["x"].tobytes() == expected


def test_rows_longer_than_what_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "HELD", 1000)
    array = normal(12 * 3001, dtype=BF16).reshape(12, 3001)
    weights = mg.open(write_model(tmp_path / "a", {"x": array}))
    index = np.array([11, -1, 0, 0, 5])
    found = saved(one(weights, taken(weights["x"], [index, None])), tmp_path / "o")["x"]
    expected = array[index].copy()
    expected[1] = 0
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("held", [0, 50, 1 << 20])
def test_rows_that_are_not_there_beside_rows_that_are(tmp_path, monkeypatch, held):
    monkeypatch.setattr(sources, "HELD", held)
    array = normal(12 * 5, dtype=BF16).reshape(12, 5)
    weights = mg.open(write_model(tmp_path / "a", {"x": array}))
    rows, columns = np.array([-1, 0, 1, -1, -1, 11, 0]), np.array([4, -1, 0])
    for k, indices in enumerate([[rows, columns], [rows, None]]):
        found = saved(one(weights, taken(weights["x"], indices)), tmp_path / f"o{k}")["x"]
        expected = array[rows] if indices[1] is None else array[rows][:, columns]
        expected = expected.copy()
        expected[rows < 0] = 0
        if indices[1] is not None:
            expected[:, columns < 0] = 0
        assert found.tobytes() == np.ascontiguousarray(expected).tobytes()


def test_taking_from_a_formula_is_the_formula_of_what_is_taken(tmp_path):
    a, b = normal(50 * 7, dtype=BF16).reshape(50, 7), normal(50 * 7, seed=1, dtype=BF16).reshape(50, 7)
    x, y = (mg.open(write_model(tmp_path / n, {"x": v})) for n, v in (("a", a), ("b", b)))
    formula = x + 0.5 * mg.trim(y - x, 0.3)
    whole = saved(formula, tmp_path / "whole")["x"]
    index = np.array([3, 3, 49, 0])
    part = formula._with({"x": Entry(taken(formula["x"], [index, None]), 1.0)})
    assert np.array_equal(saved(part, tmp_path / "part")["x"], whole[index])
    filled = formula._with({"x": Entry(taken(formula["x"], [np.array([3, -1]), None]), 1.0)})
    assert np.array_equal(saved(filled, tmp_path / "filled")["x"], [whole[3], np.zeros(7)])


def test_random_draws_belong_to_the_element_wherever_it_goes(tmp_path):
    x = mg.open(write_model(tmp_path / "a", {"x": np.zeros((40, 6), np.float32)}))
    draw = Draw(("key",), (40, 6))
    all_of_it = mg.compute(one(x, x["x"] + draw), "x")
    index = np.array([39, 2])
    assert np.array_equal(mg.compute(one(x, taken(x["x"] + draw, [index, None])), "x"), all_of_it[index])


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_joined_parts_of_one_dtype_keep_their_bits_and_others_are_computed(tmp_path, dim):
    shapes = [[4, 5, 6], [4, 5, 6]]
    shapes[1][dim] = 3
    a, b = (
        normal(120, dtype=BF16).reshape(4, 5, 6),
        normal(int(np.prod(shapes[1])), seed=1, dtype=BF16).reshape(shapes[1]),
    )
    x = mg.open(write_model(tmp_path / "a", {"x": a, "y": b, "z": b.astype(np.float32)}))
    same = saved(one(x, joined([x["x"], x["y"]], dim)), tmp_path / "o")["x"]
    assert same.dtype == BF16
    assert same.tobytes() == np.ascontiguousarray(np.concatenate([a, b], axis=dim)).tobytes()
    mixed = mg.compute(one(x, joined([x["x"], x["z"]], dim)), "x")
    assert np.array_equal(mixed, np.concatenate([a.astype(np.float32), b.astype(np.float32)], axis=dim))


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_spread_repeats_a_vector(tmp_path, dim):
    shape = (3, 4, 5)
    vector = normal(shape[dim])
    x = mg.open(write_model(tmp_path / "a", {"x": np.ones(shape, np.float32), "v": vector}))
    found = mg.compute(one(x, x["x"] * spread(x["v"], shape, dim)), "x")
    assert np.array_equal(found, np.ones(shape) * vector.reshape([-1 if k == dim else 1 for k in range(3)]))
    with pytest.raises(AlgebraError, match="along dimension"):
        spread(x["x"], shape, dim)


def test_mixed_rows_are_weighted_sums(tmp_path):
    array = normal(30 * 8, dtype=BF16).reshape(30, 8)
    x = mg.open(write_model(tmp_path / "a", {"x": array}))
    rows = np.array([[1, 2, 3], [29, -1, -1], [-1, -1, -1]])
    weights = np.array([[0.5, 0.25, 0.25], [1, 9, 9], [1, 1, 1]], np.float32)
    found = mg.compute(one(x, Mixed(x["x"], rows, weights)), "x")
    wide = array.astype(np.float64)
    assert np.allclose(found[0], 0.5 * wide[1] + 0.25 * wide[2] + 0.25 * wide[3], rtol=1e-6)
    assert np.array_equal(found[1], array[29].astype(np.float32))
    assert not found[2].any()


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("rows", [3, 130])
def test_product_is_a_matrix_along_a_dimension_whatever_the_tile(tmp_path, dim, rows):
    shape = [70, 9, 11]
    array, matrix = normal(70 * 9 * 11).reshape(shape), normal(rows * shape[dim], seed=2).reshape(rows, -1)
    x = mg.open(write_model(tmp_path / "a", {"x": array, "m": matrix}))
    expected = np.moveaxis(
        np.tensordot(matrix.astype(np.float64), array.astype(np.float64), (1, dim)), 0, dim
    )
    for other in (matrix, x["m"]):
        found = mg.compute(one(x, product(x["x"], other, dim)), "x")
        assert np.allclose(found, expected, atol=1e-5)
    with pytest.raises(AlgebraError, match="along dimension"):
        product(x["x"], np.ones((2, 2)), dim)


def test_products_have_the_same_bytes_for_any_tile_and_threads(tmp_path):
    array, matrix = normal(1500 * 700).reshape(1500, 700), normal(700 * 700, seed=2).reshape(700, 700)
    x = mg.open(write_model(tmp_path / "a", {"x": array}))
    for dim, node in (
        (1, product(x["x"], matrix, 1)),
        (0, product(reshaped(x["x"], (700, 1500)), matrix, 0)),
    ):
        made = [
            saved(one(x, node), tmp_path / f"o{dim}{k}", threads=threads, tile=tile)["x"].tobytes()
            for k, (threads, tile) in enumerate([(1, 0), (2, 2 * CHUNK), (3, CHUNK)])
        ]
        assert made[0] == made[1] == made[2]


def test_arrays_are_part_of_what_a_run_is_known_by(tmp_path):
    x = mg.open(write_model(tmp_path / "a", {"x": np.ones(4, np.float32)}))
    from merganser.engine.plan import plan_weights

    prints = [
        plan_weights(one(x, x["x"] * Array(np.full(4, value, np.float32))), partial=True).fingerprint()
        for value in (1.0, 2.0, 1.0)
    ]
    assert prints[0] == prints[2] != prints[1]


def test_integers_are_taken_bit_for_bit_and_never_computed_with(tmp_path):
    x = mg.open(write_model(tmp_path / "a", {"x": np.ones(2, np.float32), "ids": np.arange(6)[None]}))
    node = taken(x["ids"], [None, np.array([5, 0])])
    assert node.carried
    out = saved(x._with({"x": x.entry("x"), "ids": Entry(node, 1.0)}), tmp_path / "o")
    assert out["ids"].dtype == np.int64
    assert out["ids"].tolist() == [[5, 0]]
    assert mg.compute(x._with({"ids": Entry(node, 1.0)}), "ids").tolist() == [[5, 0]]
    with pytest.raises(AlgebraError, match="never computed with"):
        node + 1


def test_parents_read_in_parts_are_digested_too(tmp_path):
    from merganser.checkpoint.digest import digest_tensor
    from merganser.lineage import read_manifest

    array = normal(600, dtype=BF16).reshape(60, 10)
    x = mg.open(write_model(tmp_path / "a", {"x": array}))
    saved(one(x, taken(x["x"], [np.array([1]), None])), tmp_path / "o")
    parent = read_manifest(tmp_path / "o")["parents"][0]
    assert parent["tensors_read"] == 1
    changed = array.copy()
    changed[50] += 1  # a row that the result does not hold
    y = mg.open(write_model(tmp_path / "b", {"x": changed}), name="a")
    saved(one(y, taken(y["x"], [np.array([1]), None])), tmp_path / "p")
    assert read_manifest(tmp_path / "p")["parents"][0]["digest"] != parent["digest"]
    assert digest_tensor(x["x"].tensor) != digest_tensor(y["x"].tensor)


def test_an_index_out_of_range_is_an_error(tmp_path):
    x = mg.open(write_model(tmp_path / "a", {"x": np.ones((2, 3), np.float32)}))
    with pytest.raises(AlgebraError, match="index 3"):
        taken(x["x"], [None, np.array([3])])
