"""A policy for tensors that do not fit keeps the two stored copies of a tied matrix together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from makers import normal, read_model, write_model

from merganser.errors import RequestError
from merganser.recipe import build, load

CONFIG = {"model_type": "toy", "tie_word_embeddings": True}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def tied(place: Path, rows: int, seed: int) -> Path:
    matrix = normal(rows, 4, seed=seed)
    return write_model(place, {EMBEDDING: matrix, HEAD: matrix.copy(), "w": normal(3, 3, seed=seed)}, CONFIG)


def merged(place: Path, mismatch: object) -> dict[str, np.ndarray]:
    models = [{"model": str(place / name), "parameters": {"weight": 0.5}} for name in "ab"]
    weights, fields = build(load({"method": "linear", "models": models, "mismatch": mismatch}))
    weights.save(place / "out", **fields)
    return read_model(place / "out")


@pytest.fixture
def siblings(tmp_path: Path) -> Path:
    tied(tmp_path / "a", 5, 1)
    tied(tmp_path / "b", 7, 2)
    return tmp_path


def test_two_words_for_one_matrix_are_refused_and_one_word_works(siblings: Path) -> None:
    with pytest.raises(RequestError, match="one matrix") as caught:
        merged(siblings, {EMBEDDING: "base", HEAD: "crop", "*": "error"})
    assert "give both the same word" in str(caught.value)
    out = merged(siblings, {EMBEDDING: "crop", HEAD: "crop", "*": "error"})
    due = (normal(5, 4, seed=1) + normal(7, 4, seed=2)[:5]) / 2
    np.testing.assert_allclose(out[EMBEDDING], due, rtol=1e-6)
    np.testing.assert_array_equal(out[HEAD], out[EMBEDDING])


@pytest.mark.parametrize("word", ["base", "skip"])
def test_both_copies_are_kept_together(siblings: Path, word: str) -> None:
    out = merged(siblings, {"*_tokens.weight": word, "lm_head*": word, "*": "error"})
    np.testing.assert_array_equal(out[HEAD], out[EMBEDDING])
    np.testing.assert_array_equal(out[EMBEDDING], normal(5, 4, seed=1))
    np.testing.assert_allclose(out["w"], (normal(3, 3, seed=1) + normal(3, 3, seed=2)) / 2, rtol=1e-6)
