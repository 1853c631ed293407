"""Fisher information against torch.autograd, row by row, on the module as transformers opens it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from small_models import LABELS, TEXTS, make, rows_of, stored_name, write_pictures, write_texts

import merganser as mg
from merganser.observe import observe
from merganser.running import Head

pytestmark = pytest.mark.models


def squared(model, loss):
    """Squared gradients by place, f64."""
    model.zero_grad()
    loss.backward(retain_graph=True)
    return {
        place: np.zeros(tuple(p.shape)) if p.grad is None else p.grad.double().numpy() ** 2
        for place, p in model.named_parameters()
    }


def added(parts):
    total = {}
    for weight, part in parts:
        for place, value in part.items():
            total[place] = total.get(place, 0.0) + weight * value
    return total


def same(out, expected, rows, name=lambda place: place):
    found = mg.open(out)
    assert {name(place) for place in expected} == set(found)
    for place, value in expected.items():
        value = value / rows
        np.testing.assert_allclose(
            found.compute(name(place)), value, rtol=2e-4, atol=1e-6 * max(value.max(), 1e-12)
        )


@pytest.mark.parametrize("mode", ["true", "empirical"])
def test_a_classifier(mode, tmp_path):
    model = make("bert_classifier", tmp_path / "model")
    data = write_texts(tmp_path / "data.jsonl")
    report = observe(tmp_path / "model", data, tmp_path / "out", collect="fisher", fisher=mode)
    parts = []
    for row, label in zip(rows_of("bert", tmp_path / "model", data), LABELS, strict=True):
        scores = model(**row).logits[0].log_softmax(0)
        for k in range(3) if mode == "true" else [label]:
            weight = float(scores[k].detach().exp()) if mode == "true" else 1.0
            parts.append((weight, squared(model, -scores[k])))
    same(tmp_path / "out/fisher", added(parts), len(LABELS))
    assert report.no_gradient == []


def test_sampled_labels_are_drawn_from_the_predictions_and_follow_the_seed(tmp_path):
    def certain(model):
        model.classifier.weight.mul_(0)
        model.classifier.bias[:] = model.classifier.bias.new_tensor([0.5, 0.3, 0.2]).log()

    model = make("bert_classifier", tmp_path / "model", change=certain)
    data = write_texts(tmp_path / "data.jsonl", ["a layer"] * 60, [0] * 60)
    row = rows_of("bert", tmp_path / "model", data)[0]
    scores = model(**row).logits[0].log_softmax(0)
    possible = np.stack([squared(model, -scores[k])["classifier.bias"] for k in range(3)], 1)
    counts = []
    for seed in (0, 1):
        out = tmp_path / f"out{seed}"
        observe(tmp_path / "model", data, out, collect="fisher", fisher="sampled", seed=seed)
        found = mg.open(out / "fisher").compute("classifier.bias").astype(float)
        drawn = np.linalg.solve(possible, found * 60)
        np.testing.assert_allclose(drawn, drawn.round(), atol=1e-3)  # every row has one label
        counts.append(drawn.round().astype(int).tolist())
        assert sum(counts[-1]) == 60
        assert all(abs(n - 60 * p) < 15 for n, p in zip(counts[-1], (0.5, 0.3, 0.2), strict=True))
    assert counts[0] != counts[1]


def test_an_encoder_with_a_head(tmp_path):
    import torch

    model = make("bert", tmp_path / "model")
    random = np.random.default_rng(0)
    head = Head(
        random.standard_normal((3, 16)).astype(np.float32),
        np.zeros(3, np.float32),
        ("x", "y", "z"),
        "mean",
        True,
    )
    head.save(tmp_path / "head.safetensors")
    data = write_texts(tmp_path / "data.jsonl", labels=["xyz"[k] for k in LABELS])
    observe(
        tmp_path / "model",
        data,
        tmp_path / "out",
        collect="fisher",
        fisher="empirical",
        head=tmp_path / "head.safetensors",
    )
    parts = []
    for row, label in zip(rows_of("bert", tmp_path / "model", data), LABELS, strict=True):
        features = torch.nn.functional.normalize(model(**row).last_hidden_state[0].mean(0), dim=0)
        scores = (torch.from_numpy(head.weight) @ features).log_softmax(0)
        parts.append((1.0, squared(model, -scores[label])))
    same(tmp_path / "out/fisher", added(parts), len(LABELS))


@pytest.mark.parametrize("family", ["llama", "llama_tied", "gpt2"])
def test_the_tokens_of_a_causal_model(family, tmp_path):
    model = make(family, tmp_path / "model")
    data = write_texts(tmp_path / "data.jsonl")
    observe(tmp_path / "model", data, tmp_path / "out", collect="fisher", fisher="empirical")
    parts = []
    for row in rows_of(family, tmp_path / "model", data):
        ids = row["input_ids"][0]
        scores = model(**row).logits[0].log_softmax(-1)
        loss = -sum(scores[at, ids[at + 1]] for at in range(len(ids) - 1))
        parts.append((1.0, squared(model, loss)))
    same(tmp_path / "out/fisher", added(parts), len(TEXTS))


def test_a_causal_model_samples_by_default(tmp_path):
    make("llama", tmp_path / "model")
    data = write_texts(tmp_path / "data.jsonl")
    for out, fields in (
        ("a", {}),
        ("b", {"fisher": "sampled"}),
        ("c", {"fisher": "empirical"}),
        ("d", {"seed": 1}),
    ):
        observe(tmp_path / "model", data, tmp_path / out, collect="fisher", **fields)
    a, b, c, d = ((tmp_path / out / "fisher/model.safetensors").read_bytes() for out in "abcd")
    assert a == b and a != c and a != d


def test_a_masked_model_fills_in_what_is_masked(tmp_path):
    import torch

    model = make("bert_masked", tmp_path / "model")
    data = write_texts(tmp_path / "data.jsonl", ["rows and columns"], [0])
    observe(tmp_path / "model", data, tmp_path / "out", collect="fisher", fisher="empirical")
    found = mg.open(tmp_path / "out/fisher").compute("cls.predictions.bias")
    (row,) = rows_of("bert", tmp_path / "model", data)
    ids, possible = row["input_ids"], []
    mask = 10  # [MASK] of the tiny tokenizer
    for at in range(1, ids.shape[1] - 1):
        masked = ids.clone()
        masked[0, at] = mask
        scores = model(input_ids=masked).logits[0, at].log_softmax(0)
        possible.append(squared(model, -scores[ids[0, at]])["cls.predictions.bias"])
    assert torch.equal(ids[0, [0, -1]], torch.tensor([8, 9]))  # which are never masked
    assert sum(np.allclose(found, one, rtol=1e-4, atol=1e-8) for one in possible) == 1


def test_images(tmp_path):
    model = make("vit", tmp_path / "model")
    data = write_pictures(tmp_path / "data.jsonl")
    observe(tmp_path / "model", data, tmp_path / "out", collect="fisher", values=["pixels"])
    parts = []
    for row in rows_of("vit", tmp_path / "model", data):
        scores = model(**row).logits[0].log_softmax(0)
        parts += [(float(scores[k].detach().exp()), squared(model, -scores[k])) for k in range(3)]

    def name(place):
        stem, _, leaf = place.rpartition(".")
        return stored_name("vit", stem).removesuffix("weight") + leaf

    same(tmp_path / "out/fisher", added(parts), 5, name)


def test_series(tmp_path):
    import torch

    model = make("series", tmp_path / "model").requires_grad_(True)  # positions are not trained, but count
    series = np.random.default_rng(0).standard_normal((4, 12, 2)).round(3)
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"x": one.tolist()}) + "\n" for one in series))
    observe(tmp_path / "model", data, tmp_path / "out", collect="fisher,mean", values=["x"])
    parts = []
    for one in series:
        given = model(past_values=torch.tensor(one[None], dtype=torch.float32))
        scores = given.prediction_logits[0].log_softmax(0)
        parts += [(float(scores[k].detach().exp()), squared(model, -scores[k])) for k in range(3)]
    expected = {place: value for place, value in added(parts).items() if place in mg.open(tmp_path / "model")}
    same(tmp_path / "out/fisher", expected, 4)
    assert "model.encoder.layers.0.ff.0.weight" in mg.open(tmp_path / "out/mean")


def test_what_no_loss_depends_on_is_zero_and_told(tmp_path):
    import transformers as t
    from small_models import SIZES, tokenizer

    t.BertModel(t.BertConfig(**SIZES)).save_pretrained(
        tmp_path / "model"
    )  # with a pooler, which no head reads
    tokenizer(tmp_path / "model")
    Head(np.ones((2, 16), np.float32), np.zeros(2, np.float32), ("a", "b")).save(
        tmp_path / "head.safetensors"
    )
    data = write_texts(tmp_path / "data.jsonl")
    report = observe(
        tmp_path / "model", data, tmp_path / "out", collect="fisher", head=tmp_path / "head.safetensors"
    )
    assert report.no_gradient == ["pooler.dense.bias", "pooler.dense.weight"]
    assert not mg.open(tmp_path / "out/fisher").compute("pooler.dense.weight").any()
