"""Running statistics computed anew, against torch's own update of averaged models."""

from __future__ import annotations

import json

import numpy as np
import pytest
from evaluate.scored_models import make, write_rows
from makers import read_model

import merganser as mg
from merganser.cli import run
from merganser.errors import RequestError
from merganser.observe import with_running_statistics

pytestmark = pytest.mark.models
torch = pytest.importorskip("torch")
t = pytest.importorskip("transformers")

SIZE, BATCH, ROWS = 16, 5, 11


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base and two fine-tunes whose variances are far smaller than its own; pixels as rows."""
    home = tmp_path_factory.mktemp("norms")
    config = t.ResNetConfig(
        embedding_size=4,
        hidden_sizes=[4, 6],
        depths=[1, 1],
        layer_type="basic",
        num_labels=2,
        image_size=SIZE,
    )
    for seed, name in enumerate(("base", "a", "b")):
        torch.manual_seed(seed)
        model = t.ResNetForImageClassification(config)
        with torch.no_grad():
            for kind, buffer in model.named_buffers():
                if kind.endswith("running_var"):
                    buffer.fill_(0.05 if seed else 1.0)
        model.eval().save_pretrained(home / name)
    pixels = np.random.default_rng(0).standard_normal((ROWS, 3, SIZE, SIZE)).astype(np.float32)
    write_rows(home / "rows.jsonl", [{"pixels": row.tolist()} for row in pixels])
    models = ", ".join(f"{{model: {name}, parameters: {{weight: 1.0}}}}" for name in "ab")
    (home / "r.yaml").write_text(f"method: task_arithmetic\nbase_model: base\nmodels: [{models}]\n")
    return home, pixels


def updated(model, pixels):
    """What torch.optim.swa_utils makes of the same batches."""
    whole = [pixels[at : at + BATCH] for at in range(0, len(pixels) - len(pixels) % BATCH, BATCH)]
    model.eval()
    from torch.optim.swa_utils import update_bn

    update_bn([torch.from_numpy(part) for part in whole], model)
    return {name: buffer.numpy() for name, buffer in model.named_buffers() if "running" in name}


def test_the_command_writes_what_torch_computes(place, monkeypatch, capsys):
    home, pixels = place
    monkeypatch.chdir(home)
    assert run(["merge", "r.yaml", "plain", "--quiet"]) == 1
    assert "--batch-norm DATA" in capsys.readouterr().err
    base, a, b = (mg.open(home / name) for name in ("base", "a", "b"))
    merged = base + (a - base) + (b - base)
    found = with_running_statistics(merged, home / "rows.jsonl", values=["pixels"], batch=BATCH)
    found.save(home / "out", sync=False)
    model = t.ResNetForImageClassification.from_pretrained(home / "base")
    state = {n: torch.from_numpy(np.array(mg.compute(merged, n))) for n in merged if "num_batches" not in n}
    model.load_state_dict(state, strict=False)
    expected, made = updated(model, pixels), read_model(home / "out")
    assert len(expected) > 4
    for name, values in expected.items():
        np.testing.assert_allclose(made[name], values, rtol=1e-4, atol=1e-5, err_msg=name)
    for name in made:
        if "running" not in name and made[name].dtype == np.float32:
            np.testing.assert_array_equal(made[name], mg.compute(merged, name))
    (note,) = json.loads((home / "out" / "merganser.json").read_text())["notes"]
    assert (note["step"], note["rows"], note["tensors"]) == ("batch norm", 10, len(expected))


def test_images_go_through_the_models_own_processor(place, monkeypatch):
    home, _ = place
    monkeypatch.chdir(home)
    from PIL import Image

    rng = np.random.default_rng(1)
    for k in range(4):
        Image.fromarray(rng.integers(0, 255, (20, 24, 3)).astype(np.uint8)).save(home / f"{k}.png")
    for name in ("base", "a", "b"):
        t.ConvNextImageProcessor(size={"shortest_edge": SIZE}, crop_pct=1.0).save_pretrained(home / name)
    write_rows(home / "images.jsonl", [{"image": f"{k}.png"} for k in range(4)])
    assert run(["merge", "r.yaml", "images", "--batch-norm", "images.jsonl", "--quiet"]) == 0
    made = read_model(home / "images")
    assert all((array >= 0).all() for name, array in made.items() if name.endswith("running_var"))
    t.AutoModelForImageClassification.from_pretrained(home / "images")


def test_what_has_no_batch_norm_or_too_few_rows_is_refused(place, tmp_path):
    home, _ = place
    make("classifier", tmp_path / "bert")
    write_rows(tmp_path / "d.jsonl", [{"text": "the fox"}] * 3)
    with pytest.raises(RequestError, match="has no batch norm"):
        with_running_statistics(mg.open(tmp_path / "bert"), tmp_path / "d.jsonl")
    with pytest.raises(RequestError, match="too few rows"):
        with_running_statistics(mg.open(home / "a"), home / "rows.jsonl", values=["pixels"], rows=1)
    with pytest.raises(RequestError, match="2 or more"):
        with_running_statistics(mg.open(home / "a"), home / "rows.jsonl", values=["pixels"], batch=1)
