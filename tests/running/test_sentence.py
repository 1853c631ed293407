"""Embeddings as the modules of a sentence-transformers model make them, against SentenceTransformer.encode."""

from __future__ import annotations

import json

import numpy as np
import pytest
from evaluate.scored_models import make, sentences, write_rows, write_suite

import merganser as mg
from merganser.errors import RequestError
from merganser.evaluate import evaluate

pytestmark = pytest.mark.models
torch = pytest.importorskip("torch")
st = pytest.importorskip("sentence_transformers")
try:
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
except ImportError:
    from sentence_transformers.models import Dense, Normalize, Pooling, Transformer


def cosines(place, suite, **task):
    write_suite(suite, {"name": "t", "kind": "similarity", "data": "d.jsonl", "score": None, **task})
    return np.array(evaluate(place, suite).tasks["t"].column("similarity"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return make("encoder", tmp_path_factory.mktemp("sentence") / "encoder")


def modules(encoder, name):
    torch.manual_seed(1)
    body = Transformer(str(encoder))
    return {
        "mean": lambda: [body, Pooling(16, pooling_mode="mean")],
        "cls, normalised": lambda: [body, Pooling(16, pooling_mode="cls"), Normalize()],
        "dense": lambda: [body, Pooling(16, pooling_mode="mean"), Dense(16, 8)],
        "two without bias": lambda: [
            body,
            Pooling(16, pooling_mode="cls"),
            Dense(16, 12, bias=False, activation_function=torch.nn.Identity()),
            Dense(12, 4, activation_function=torch.nn.ReLU()),
        ],
        "last": lambda: [body, Pooling(16, pooling_mode="lasttoken")],
    }[name]()


PAIRS = list(zip(sentences(9), sentences(10)[1:], strict=True))


def live(model):
    a, b = (model.encode(list(side)).astype(np.float64) for side in zip(*PAIRS, strict=True))
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize("name", ["mean", "cls, normalised", "dense", "two without bias", "last"])
def test_embeddings_are_those_of_the_models_own_modules(name, encoder, tmp_path):
    model = st.SentenceTransformer(modules=modules(encoder, name), device="cpu")
    model.max_seq_length = 6
    model.save(str(tmp_path / "m"))
    write_rows(tmp_path / "d.jsonl", [{"text_a": a, "text_b": b} for a, b in PAIRS])
    found = cosines(tmp_path / "m", tmp_path / "s.yaml")
    np.testing.assert_allclose(found, live(model), atol=1e-5)
    assert not np.allclose(
        found, cosines(tmp_path / "m", tmp_path / "t.yaml", pooling="mean", max_length=40), atol=1e-3
    )
    merged = (
        mg.open(tmp_path / "m") * 0.5 + mg.open(tmp_path / "m") * 0.5
    )  # lazy weights have the modules too
    np.testing.assert_allclose(cosines(merged, tmp_path / "s.yaml"), live(model), atol=1e-5)


def test_a_default_prompt_and_settings_of_older_releases(encoder, tmp_path):
    prompts = {"query": "the model of ", "document": "x"}
    parts = modules(encoder, "mean")
    model = st.SentenceTransformer(modules=parts, prompts=prompts, default_prompt_name="query", device="cpu")
    model.save(str(tmp_path / "m"))
    write_rows(tmp_path / "d.jsonl", [{"text_a": a, "text_b": b} for a, b in PAIRS])
    np.testing.assert_allclose(cosines(tmp_path / "m", tmp_path / "s.yaml"), live(model), atol=1e-5)
    told = json.loads((tmp_path / "m" / "1_Pooling" / "config.json").read_text())
    told = {key: value for key, value in told.items() if key != "pooling_mode"}
    modes = {
        "pooling_mode_cls_token": True,
        "pooling_mode_mean_tokens": False,
        "pooling_mode_max_tokens": False,
    }
    (tmp_path / "m" / "1_Pooling" / "config.json").write_text(json.dumps(told | modes))
    again = st.SentenceTransformer(str(tmp_path / "m"), device="cpu")
    np.testing.assert_allclose(cosines(tmp_path / "m", tmp_path / "s.yaml"), live(again), atol=1e-5)


def test_what_is_not_run_here_is_refused_and_the_way_out_works(encoder, tmp_path):
    body = Transformer(str(encoder))
    st.SentenceTransformer(modules=[body, Pooling(16, pooling_mode="max")], device="cpu").save(
        str(tmp_path / "m")
    )
    write_rows(tmp_path / "d.jsonl", [{"text_a": a, "text_b": b} for a, b in PAIRS])
    with pytest.raises(RequestError, match="the pooling max, which is not run here"):
        cosines(tmp_path / "m", tmp_path / "s.yaml")
    assert len(cosines(tmp_path / "m", tmp_path / "s.yaml", pooling="mean")) == len(PAIRS)
