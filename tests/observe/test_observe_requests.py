"""Requests that cannot work end before anything runs, with the reason, and leave nothing."""

from __future__ import annotations

import json

import pytest
from small_models import make, tokenizer, write_pictures, write_texts

import merganser as mg
from merganser.errors import MerganserError, NonFiniteError, RequestError
from merganser.observe import observe, statistics
from merganser.running import Head

pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    import numpy as np

    place = tmp_path_factory.mktemp("observe")
    for family in ("bert", "bert_classifier", "bert_masked", "llama", "vit"):
        make(family, place / family)
    write_texts(place / "data.jsonl")
    write_pictures(place / "pictures.jsonl")
    Head(np.ones((2, 16), np.float32), np.zeros(2, np.float32), ("ham", "spam")).save(
        place / "head.safetensors"
    )
    Head(np.ones((2, 8), np.float32), np.zeros(2, np.float32), ("ham", "spam")).save(
        place / "narrow.safetensors"
    )
    (place / "empty.jsonl").write_text("")
    (place / "short.jsonl").write_text('{"text": "a"}\n')
    write_texts(place / "other.jsonl", ["a", "b"], ["ham", "spem"])
    (place / "unlabelled.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    (place / "numbers.jsonl").write_text('{"x": [1, 2]}\n{"x": [1, "a"]}\n')
    (place / "ragged.jsonl").write_text('{"x": [1, 2]}\n{"x": [1]}\n')
    return place


BAD = {
    "empty data": ("bert", "empty.jsonl", {}, "has no rows"),
    "no column": ("bert", "data.jsonl", {"text": "texte"}, "no column 'texte'; did you mean 'text'"),
    "unknown kind": ("bert", "data.jsonl", {"collect": "gramm"}, "did you mean 'gram'"),
    "nothing": ("bert", "data.jsonl", {"collect": ""}, "nothing to collect"),
    "no batch": ("bert", "data.jsonl", {"batch": 0}, "batch must be 1 or more"),
    "fisher word": (
        "bert_classifier",
        "data.jsonl",
        {"collect": "fisher", "fisher": "exact"},
        "true, sampled",
    ),
    "fisher unasked": ("bert_classifier", "data.jsonl", {"fisher": "true"}, "fisher is not among --collect"),
    "no head": ("bert", "data.jsonl", {"collect": "fisher"}, "pass --head FILE"),
    "narrow head": (
        "bert",
        "data.jsonl",
        {"collect": "fisher", "head": "narrow.safetensors"},
        "of width 8, and .* has 16",
    ),
    "head of a classifier": (
        "bert_classifier",
        "data.jsonl",
        {"collect": "fisher", "head": "head.safetensors"},
        "for encoders",
    ),
    "true of a language model": ("llama", "data.jsonl", {"collect": "fisher", "fisher": "true"}, "sampled"),
    "label": (
        "bert",
        "other.jsonl",
        {"collect": "fisher", "head": "head.safetensors", "fisher": "empirical"},
        "row 2 has the label 'spem'.*did you mean 'spam'",
    ),
    "unlabelled": (
        "bert_classifier",
        "unlabelled.jsonl",
        {"collect": "fisher", "fisher": "empirical"},
        "no column",
    ),
    "label number": (
        "bert_classifier",
        "data.jsonl",
        {"collect": "fisher", "fisher": "empirical", "label": "text"},
        "does not know",
    ),
    "two inputs": ("bert", "data.jsonl", {"text": "text", "values": ["x"]}, "as one of text and values"),
    "no numbers": ("vit", "numbers.jsonl", {"values": ["x"]}, "row 2 holds no numbers"),
    "shapes": ("vit", "ragged.jsonl", {"values": ["x"]}, r"row 2 has shape \[1\] and the rows before \[2\]"),
    "wrong shape": ("vit", "pictures.jsonl", {"values": ["label"]}, "does not run on pixel_values"),
    "no token": (
        "bert_masked",
        "short.jsonl",
        {"collect": "fisher", "max_length": 2},
        "row 1 has no token to predict",
    ),
    "no text": ("bert", "numbers.jsonl", {"text": "x"}, r"numbers\.jsonl: row 1 is no text"),
    "misspelt data": ("bert", "dtaa.jsonl", {}, r"no such file; did you mean '.*data\.jsonl'"),
    "missing model": ("nowhere", "data.jsonl", {}, "there is no checkpoint"),
}


@pytest.mark.parametrize("case", BAD)
def test_it_is_refused(case, place):
    model, data, fields, message = BAD[case]
    fields = {name: place / value if name == "head" else value for name, value in fields.items()}
    before = {path.name for path in place.iterdir()}
    with pytest.raises(RequestError, match=f"(?s){message}"):
        observe(place / model, place / data, place / "out", **fields)
    assert {path.name for path in place.iterdir()} == before


def test_a_tokenizer_that_does_not_fit(place, tmp_path):
    import transformers as t

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    t.BertModel(t.BertConfig(vocab_size=100, **sizes)).save_pretrained(tmp_path / "model")
    with pytest.raises(RequestError, match="tokenizer"):
        observe(tmp_path / "model", place / "data.jsonl", tmp_path / "out")
    tokenizer(tmp_path / "model")
    with pytest.raises(RequestError, match="do not belong together"):
        observe(tmp_path / "model", place / "data.jsonl", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_model_that_returns_nan(place, tmp_path):
    def broken(model):
        model.bert.encoder.layer[1].output.dense.weight[0, 0] = float("nan")

    make("bert_classifier", tmp_path / "model", change=broken)
    for collect in ("mean", "fisher"):
        with pytest.raises(
            NonFiniteError,
            match=r"model: the outputs of row \d+ hold NaN.*"
            r"its tensor 'bert\.encoder\.layer\.1\.output\.dense\.weight' holds NaN",
        ):
            observe(tmp_path / "model", place / "data.jsonl", tmp_path / "out", collect=collect)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_output_that_is_there_is_kept_unless_asked(place, tmp_path):
    out = tmp_path / "out"
    observe(place / "bert", place / "data.jsonl", out, collect="mean")
    before = (out / "mean/model.safetensors").read_bytes()
    with pytest.raises(RequestError, match="already exists"):
        observe(place / "bert", place / "data.jsonl", out, collect="absmax")
    assert (out / "mean/model.safetensors").read_bytes() == before
    observe(place / "bert", place / "data.jsonl", out, collect="absmax", overwrite=True)
    assert [path.name for path in out.iterdir()] == ["absmax"]
    (out / "notes.txt").write_text("mine")
    with pytest.raises(RequestError, match=r"'notes.txt', which is no statistics"):
        observe(place / "bert", place / "data.jsonl", out, collect="mean", overwrite=True)


def test_statistics_are_refused_for_another_model(place, tmp_path):
    observe(place / "bert", place / "data.jsonl", tmp_path / "out", collect="mean,gram")
    model = mg.open(place / "bert")
    found = statistics(tmp_path / "out/gram", model)
    assert found.degree == 1.0
    assert found.notes[-1]["statistics"]["kind"] == "gram"
    assert set(statistics(tmp_path / "out/gram", place / "bert")) == set(found)
    make("bert", tmp_path / "other", seed=1)
    for other in (tmp_path / "other", mg.open(tmp_path / "other")):
        with pytest.raises(RequestError, match="another model"):
            statistics(tmp_path / "out/gram", other)
    with pytest.raises(RequestError, match="never written"):
        statistics(tmp_path / "out/gram", 2.0 * model)
    with pytest.raises(RequestError, match=r"name one, as .*gram"):
        statistics(tmp_path / "out")
    with pytest.raises(RequestError, match="holds no statistics"):
        statistics(place / "bert")
    with pytest.raises(MerganserError):
        statistics(tmp_path / "nowhere")


def test_the_command(place, tmp_path, capsys):
    from merganser.cli import run

    words = [str(place / "bert"), str(place / "data.jsonl")]
    assert run(["observe", *words, str(tmp_path / "a"), "--collect", "mean,absmax"]) == 0
    shown = capsys.readouterr().out
    assert "7 rows" in shown and "absmax" in shown and "embeddings" in shown
    assert run(["observe", *words, str(tmp_path / "b"), "--rows", "3", "--layerwise", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["rows"], report["layerwise"], sorted(report["kinds"])) == (
        3,
        True,
        ["absmax", "mean", "second_moment"],
    )
    assert run(["observe", *words, str(tmp_path / "a")]) == 2
    assert "already exists" in capsys.readouterr().err
    assert run(["observe", *words, str(tmp_path / "c"), "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_images_out_of_files_need_pillow_or_are_read(place, tmp_path):
    (tmp_path / "data.jsonl").write_text('{"image": "a.png"}\n')
    with pytest.raises(RequestError, match=r"PIL|'a.png', which is no file in"):
        observe(place / "vit", tmp_path / "data.jsonl", tmp_path / "out")
