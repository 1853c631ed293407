"""Statistics of inputs against hooks of another kind and NumPy, in f64, one unpadded row at a time."""

from __future__ import annotations

import json

import numpy as np
import pytest
from small_models import (
    TEXTS,
    inputs_by_hand,
    make,
    rows_of,
    stored_name,
    write_pictures,
    write_texts,
)

import merganser as mg
from merganser.observe import observe, statistics

pytestmark = pytest.mark.models
KINDS = "gram,absmax,second_moment,mean"


def by_hand(kind, x):
    return {
        "gram": lambda: x.T @ x / len(x),
        "absmax": lambda: np.abs(x).max(0),
        "second_moment": lambda: (x * x).mean(0),
        "mean": lambda: x.mean(0),
    }[kind]()


def close(found, expected, tolerance=1e-5):
    scale = np.abs(expected).max()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("family", ["bert_classifier", "bert_masked", "llama", "gpt2", "vit"])
def test_every_linear_layer_of_a_family(family, tmp_path):
    model = make(family, tmp_path / "model")
    picture = family == "vit"
    data = (write_pictures if picture else write_texts)(tmp_path / "data.jsonl")
    fields = {"values": ["pixels"]} if picture else {}
    report = observe(tmp_path / "model", data, tmp_path / "out", collect=KINDS, batch=3, **fields)
    seen = inputs_by_hand(model, rows_of(family, tmp_path / "model", data))
    if family in ("gpt2", "bert_masked"):  # their output heads are tied to embeddings
        seen.pop("lm_head", None)
        seen.pop("cls.predictions.decoder", None)
    expected = {stored_name(family, place): x for place, x in seen.items()}
    for kind in KINDS.split(","):
        found = statistics(tmp_path / "out" / kind, tmp_path / "model")
        assert set(found) == set(expected) <= set(mg.open(tmp_path / "model"))
        assert not set(found) & set(report.not_covered)
        for name, x in expected.items():
            close(found.compute(name), by_hand(kind, x))
    if not picture:
        assert report.tokens == len(seen[next(iter(seen))])
    assert report.rows == (5 if picture else len(TEXTS))


def test_padding_never_counts_and_the_batch_changes_only_rounding(tmp_path):
    make("bert", tmp_path / "model")
    data = write_texts(tmp_path / "data.jsonl")
    for batch in (1, 7):
        observe(tmp_path / "model", data, tmp_path / f"out{batch}", collect=KINDS, batch=batch)
    for kind in KINDS.split(","):
        one, all_ = (mg.open(tmp_path / f"out{batch}" / kind) for batch in (1, 7))
        for name in one:
            close(all_.compute(name), one.compute(name))


def test_what_shares_an_input_is_collected_once_and_has_the_same_numbers(tmp_path):
    from merganser.observe.feed import Texts
    from merganser.observe.forward import run
    from merganser.observe.layers import layers, taps
    from merganser.running import open_model

    make("llama", tmp_path / "model")
    model = open_model(tmp_path / "model")
    found, _ = layers(model)
    batch = Texts([[1, 2, 3]], 0, 1).batch([0])
    points, unread = taps(model.module, found, lambda: run(model, batch))
    assert not unread
    assert [tap.tensors for tap in points[:3]] == [
        tuple(f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkv"),
        ("model.layers.0.self_attn.o_proj.weight",),
        ("model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"),
    ]
    assert len(points) == 3 * 4 + 1


def test_an_input_changed_in_place_between_two_layers_is_not_shared():
    import torch

    from merganser.observe.layers import Layer, taps

    class Changing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (torch.nn.Linear(4, 4) for _ in "abc")

        def forward(self, x):
            y = self.a(x) + self.b(x)
            x.mul_(2)
            return y + self.c(x)

    module = Changing()
    found = {place: Layer(place, f"{place}.weight", 4) for place in "abc"}
    with torch.no_grad():
        points, unread = taps(module, found, lambda: module(torch.ones(2, 4)))
    assert [tap.tensors for tap in points] == [("a.weight", "b.weight"), ("c.weight",)]
    assert unread == []


def test_sums_of_many_tokens_stay_accurate(tmp_path):
    import torch

    from merganser.observe.layers import Tap
    from merganser.observe.sums import Sums
    from merganser.observe.write import divided

    random = np.random.default_rng(0)
    x = (random.standard_normal((10_000, 140)) + 3).astype(np.float32)
    sums = Sums([Tap("a", ("a.weight",), 140)], KINDS.split(","))
    for part in np.array_split(x, 3):
        sums.add("a", torch.from_numpy(part))
    np.savez(tmp_path / "sums.npz", **sums.arrays)
    for kind, results in sums.results().items():
        key, count, shape = results["a.weight"]
        expected = by_hand(kind, x.astype(np.float64))
        made = divided(str(tmp_path / "sums.npz"), key, count, shape[0] if kind == "gram" else 0)
        np.testing.assert_allclose(made, expected, rtol=3e-6)


@pytest.mark.parametrize("width", [1, 128, 129, 300, 1030])
def test_gram_matrices_are_held_by_half_and_come_back_whole(width):
    import torch

    from merganser.observe.layers import Tap
    from merganser.observe.sums import Sums, unpacked

    x = np.random.default_rng(width).standard_normal((9, width)).astype(np.float32)
    sums = Sums([Tap("a", ("a.weight",), width)], ["gram"])
    sums.add("a", torch.from_numpy(x))
    held = sums.arrays["gram:a"]
    assert held.nbytes == Sums.bytes_of(width, ["gram"]) <= 8 * width * (width + max(width / 8 + 1, 128)) / 2
    full = unpacked(held, width)
    np.testing.assert_allclose(full, x.astype(np.float64).T @ x, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(full, full.T)


def test_a_convolution_with_stride_padding_and_dilation(tmp_path):
    import torch

    from merganser.observe.feed import Batch
    from merganser.observe.layers import tokens_of

    torch.manual_seed(0)
    layer = torch.nn.Conv2d(3, 5, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), bias=False)
    x = torch.randn(2, 3, 9, 8)
    patches = tokens_of(layer, x, Batch(range(2), {"pixel_values": x}, None))
    expected = layer(x).permute(0, 2, 3, 1).reshape(-1, 5)
    torch.testing.assert_close(patches @ layer.weight.reshape(5, -1).T, expected)


def test_experts_that_are_stored_otherwise_are_listed(tmp_path):
    make("mixtral", tmp_path / "model")
    report = observe(tmp_path / "model", write_texts(tmp_path / "data.jsonl"), tmp_path / "out")
    assert "no single tensor" in report.not_covered["model.layers.0.mlp.experts.gate_up_proj"]
    assert report.kinds["mean"]["tensors"] == 3 * 4 + 1


def test_the_manifest_says_of_what_it_is(tmp_path):
    make("bert", tmp_path / "model")
    data = write_texts(tmp_path / "data.jsonl")
    observe(tmp_path / "model", data, tmp_path / "out", collect="mean", rows=4, max_length=6)
    (note,) = json.loads((tmp_path / "out/mean/merganser.json").read_text())["notes"]
    note = note["statistics"]
    assert (note["kind"], note["rows"], note["data"], note["max_length"]) == ("mean", 4, "data.jsonl", 6)
    assert note["identity"] and note["data_digest"]
    assert 4 < note["tokens"] <= 24
    mg.verify(tmp_path / "out/mean")
