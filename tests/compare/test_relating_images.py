"""Image models in relation: the command on a suite of images, against the last states computed by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from evaluate.scored_models import write_rows, write_suite

from merganser.cli import run
from merganser.compare import relative, transfer

pytestmark = pytest.mark.models
torch = pytest.importorskip("torch")
t = pytest.importorskip("transformers")

SIZE, ROWS = 16, 48


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A ViT and a ResNet with 3 classes each, and pixels."""
    home = tmp_path_factory.mktemp("images")
    torch.manual_seed(0)
    vit = t.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=SIZE, patch_size=8,
        num_labels=3,
    )  # fmt: skip
    t.ViTForImageClassification(vit).save_pretrained(home / "vit")
    net = t.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
        num_labels=3,
        image_size=SIZE,
    )
    t.ResNetForImageClassification(net).save_pretrained(home / "net")
    pixels = np.random.default_rng(0).standard_normal((ROWS, 3, SIZE, SIZE)).astype(np.float32)
    write_rows(home / "d.jsonl", [{"image": row.tolist(), "label": k % 3} for k, row in enumerate(pixels)])
    task = {"name": "t", "kind": "classification", "image": "image", "data": "d.jsonl"}
    write_suite(home / "s.yaml", task)
    return home, pixels


def states(place, pixels):
    found = {}
    for name in ("vit", "net"):
        model = t.AutoModelForImageClassification.from_pretrained(place / name)
        with torch.no_grad():
            last = model(torch.from_numpy(pixels), output_hidden_states=True).hidden_states[-1]
        found[name] = (last.mean((2, 3)) if last.dim() == 4 else last.mean(1)).numpy()
    return found


def test_transfer_and_relative_representations_of_image_classifiers(place, monkeypatch, capsys):
    home, pixels = place
    monkeypatch.chdir(home)
    assert (
        run(
            [
                "relate",
                "vit",
                "net",
                "s.yaml",
                "--only",
                "transfer,relative",
                "--anchors",
                "8,16,24",
                "--json",
            ]
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["data"]["rows"] == ROWS
    assert {row["model"] for row in found["transfer"]["rows"]} == {"vit", "net"}
    hand = states(home, pixels)
    for row in found["relative"]["sweep"]:
        picked, _, test = relative.choose(ROWS, row["anchors"], 0)
        forms = (relative.relative(hand[name][test], hand[name][picked]) for name in ("vit", "net"))
        for key, value in relative.similarity(*forms).items():
            assert row[key] == pytest.approx(value, abs=1e-4), key
    assert [row["anchors"] for row in found["relative"]["sweep"]] == [8, 16, 24]
    assert found["relative"]["anchors"] == 8
    model = t.AutoModelForImageClassification.from_pretrained(home / "vit")
    with torch.no_grad():
        given = torch.from_numpy(pixels)
        inputs = model.vit(given).last_hidden_state[:, 0].numpy()
        logits = model(given).logits.numpy()
    weight = model.classifier.weight.detach().numpy().astype(np.float64)
    hand_score = transfer.transfer_score(weight, inputs, logits, seed=0)
    (row,) = [row for row in found["transfer"]["rows"] if row["model"] == "vit"]
    assert row["score"] == pytest.approx(hand_score["score"], abs=1e-4)


def test_the_command_tells_it_and_writes_a_page(place, monkeypatch, capsys):
    home, _ = place
    monkeypatch.chdir(home)
    assert run(["relate", "vit", "net", "s.yaml", "--anchors", "8,24", "--html", "page.html"]) == 0
    told = capsys.readouterr().out
    assert "neighbours shared" in told and (home / "page.html").exists()
    assert run(["relate", "vit", "net", "s.yaml", "--anchors", "8,x"]) == 2
    assert "expected whole numbers with commas" in capsys.readouterr().err
