"""What a saved task vector is, it stays on disk; and numbers of all kinds are numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from makers import normal, write_model

import merganser as mg
from merganser.errors import AlgebraError, MerganserError, VerificationError
from merganser.recipe import build, load


@pytest.fixture
def pair(opened):
    return opened("base", w=normal(6, 4), v=normal(5)), opened(
        "model", w=normal(6, 4, seed=1), v=normal(5, seed=1)
    )


def test_a_saved_vector_is_a_vector_when_it_is_opened_again(pair, tmp_path):
    base, model = pair
    (model - base).save(tmp_path / "vector", degree=0, sync=False)
    vector = mg.open(tmp_path / "vector")
    assert vector.degree == 0.0
    (base + vector).save(tmp_path / "out", sync=False)
    assert np.allclose(mg.compute(mg.open(tmp_path / "out"), "w"), mg.compute(model, "w"), atol=1e-6)
    with pytest.raises(MerganserError, match="sums to 0 of a model"):
        mg.explain(vector)
    recipe = {"method": "linear", "models": [{"model": str(tmp_path / "vector")}]}
    with pytest.raises(MerganserError):
        weights, fields = build(load(recipe))
        mg.explain(weights, **fields)
    assert mg.open(base.origin.path, degree=0).degree == 0.0


def test_an_edited_manifest_and_a_weights_file_beside_it_are_noticed(pair, tmp_path):
    base, _ = pair
    base.save(tmp_path / "out", sync=False)
    mg.verify(tmp_path / "out")
    path = tmp_path / "out" / "merganser.json"
    whole = path.read_text()
    path.write_text(json.dumps(json.loads(whole) | {"seed": 7}))
    with pytest.raises(VerificationError, match="the manifest was edited"):
        mg.verify(tmp_path / "out")
    path.write_text(whole)
    mg.verify(tmp_path / "out")
    (tmp_path / "out" / "more.safetensors").write_bytes(b"x")
    with pytest.raises(VerificationError, match=r"more\.safetensors"):
        mg.verify(tmp_path / "out")


@pytest.mark.parametrize("half", [0.5, np.float32(0.5), np.float64(0.5)])
def test_numbers_of_any_kind_on_either_side(pair, half):
    base, model = pair
    expected = 0.5 * mg.compute(base, "w") + 0.5 * mg.compute(model, "w")
    for made in (
        half * base + half * model,
        base * half + model * half,
        base / (1 / half) + model / (1 / half),
    ):
        assert np.allclose(mg.compute(made, "w"), expected, atol=1e-6)
        assert made.degree == 1.0
    assert np.allclose(mg.compute(1 - base, "w"), 1 - mg.compute(base, "w"))
    assert np.allclose(mg.compute(2 / base, "w"), 2 / mg.compute(base, "w"), rtol=1e-5)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("a", "a coefficient is a number"),
        ([1], "a coefficient is a number"),
        (float("nan"), "finite number"),
        ({"*.mpl.*": 1.0, "*": 0.0}, "no tensor matches"),
        ({"w": "x", "*": 0.0}, "finite number"),
    ],
)
def test_what_is_no_coefficient_is_an_error_of_the_algebra(pair, value, message):
    with pytest.raises(AlgebraError, match=message):
        pair[0] * value


def test_tied_tensors_that_are_both_stored_stay_equal_under_random_drops(tmp_path):

    config = {"model_type": "toy", "tie_word_embeddings": True}
    models = []
    for seed in range(2):
        embedding = normal(50, 8, seed=seed)
        tensors = {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding}
        models.append(mg.open(write_model(tmp_path / f"m{seed}", tensors, config)))
    base, model = models
    merged = base + mg.random_drop(model - base, 0.5, seed=3)
    assert np.array_equal(
        mg.compute(merged, "lm_head.weight"), mg.compute(merged, "model.embed_tokens.weight")
    )
    assert not np.array_equal(mg.compute(merged, "lm_head.weight"), mg.compute(model, "lm_head.weight"))
