"""Parents that hold nothing, contradict their config, or have more than one set of weights: refused or said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers import normal, write_file, write_model
from test_belongings import BERT, bert, note_of

import merganser as mg
from merganser.checkpoint import open_checkpoint
from merganser.cli import run
from merganser.errors import CheckpointError


def rewrite(model: Path, change: Any) -> Path:
    """The tensors of a model changed by a function of the mapping."""
    tensors = {name: tensor.numpy() for name, tensor in open_checkpoint(model).tensors.items()}
    change(tensors)
    write_file(model / "model.safetensors", tensors)
    return model


@pytest.mark.parametrize("shape", [(0,), (0, 6)])
def test_weights_that_were_not_gathered(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """DeepSpeed's ZeRO-3 leaves tensors of shape [0] where the real ones lie on other machines."""

    def emptied(tensors: dict[str, np.ndarray]) -> None:
        tensors |= {name: np.zeros(shape, np.float32) for name, array in tensors.items() if array.ndim == 2}

    model, other = rewrite(bert(tmp_path / "a"), emptied), bert(tmp_path / "b")
    for weights in (mg.open(model), mg.open(other).override(mg.open(model).select("*.intermediate.*"))):
        with pytest.raises(CheckpointError, match=r"(hold nothing|it is empty).*zero_to_fp32\.py"):
            weights.save(tmp_path / "out")
    twin = tmp_path / "twin"
    shutil.copytree(model, twin)
    for command in ("diff", "diagnose"):  # two that are empty are not equal
        assert run([command, str(model), str(twin)]) == 1
    bare = write_file(tmp_path / "bare.safetensors", {n: np.zeros(0, np.float32) for n in "abc"})
    with pytest.raises(CheckpointError, match=r"3 tensors hold nothing"):
        mg.open(bare).save(tmp_path / "out")


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("hidden_size", 8, r"word_embeddings\.weight' in model\.safetensors has shape \[11, 6\].*\[11, 8\]"),
        ("vocab_size", 12, r"has shape \[11, 6\], and by config.json it would be \[12, 6\]"),
        ("intermediate_size", 4, r"intermediate\.dense.*neurons = 4 \(config\.json: intermediate_size\)"),
        ("num_hidden_layers", 2, r"'encoder\.layer\.1\..*' is missing, and config\.json counts 2 of layer"),
    ],
)
def test_a_config_of_another_model(tmp_path: Path, key: str, value: int, why: str) -> None:
    model = bert(tmp_path / "a")
    (model / "config.json").write_text(json.dumps(BERT | {key: value}))
    with pytest.raises(CheckpointError, match=why) as error:
        mg.explain(mg.mean(mg.open(model), mg.open(bert(tmp_path / "b"))))
    assert "mend config.json" in str(error.value)
    (model / "config.json").write_text(json.dumps(BERT))  # as the message says
    mg.open(model).save(tmp_path / "out")


def test_a_lost_layer_or_embedding(tmp_path: Path) -> None:
    lost = rewrite(bert(tmp_path / "a"), lambda tensors: tensors.pop("embeddings.position_embeddings.weight"))
    with pytest.raises(CheckpointError, match=r"position_embeddings\.weight' is missing"):
        mg.open(lost).save(tmp_path / "out")


def test_what_a_loader_takes_stays_open(tmp_path: Path) -> None:
    """Tensors with names of their own, integer buffers of another length, one more layer than is counted."""

    def more(tensors: dict[str, np.ndarray]) -> None:
        tensors["v_head.summary.weight"] = normal(1, 6)
        tensors["embeddings.position_ids"] = np.arange(512, dtype=np.int64)[None]
        extra = {n.replace("layer.0", "layer.1"): a for n, a in tensors.items() if "layer.0" in n}
        tensors |= extra

    mg.open(rewrite(bert(tmp_path / "a"), more)).save(tmp_path / "out")
    unknown = write_model(tmp_path / "b", {"w": normal(3)}, {"model_type": "of-tomorrow", "hidden_size": 9})
    mg.open(unknown).save(tmp_path / "out2")


AVERAGED = [
    ("model", {"ema": None}),
    ("state_dict", {"ema_state_dict": None}),
    ("model", {"ema": {"decay": 0.9, "shadow_params": []}}),
    ("module", {"averaged": {"module": {}}}),
    ("model", {"discriminator": None}),
]


@pytest.mark.models
@pytest.mark.parametrize(("key", "others"), AVERAGED, ids=lambda v: str(v)[:30])
def test_averages_beside_raw_weights_are_told(
    tmp_path: Path, key: str, others: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch")

    def filled(held: Any) -> Any:
        if held is None or held == {}:
            return {"w": torch.zeros(2)}
        if isinstance(held, dict):
            return {k: filled(v) for k, v in held.items()}
        return [torch.zeros(2)] if held == [] else held

    path = tmp_path / "c.pt"
    torch.save({key: {"w": torch.ones(2)}, "epoch": 3} | {k: filled(v) for k, v in others.items()}, path)
    assert run(["info", str(path), "--allow-pickle"]) == 0
    (other,) = others
    assert f"under {key!r} are read, and those under {other!r} are not" in capsys.readouterr().out
    weights = mg.open(path, allow_pickle=True)
    assert mg.compute(weights, "w").tolist() == [1, 1]
    report = weights.save(tmp_path / "out")
    said = next(note for note in report.notes if note["step"] == "reading")
    assert f"those under {other!r} are not" in said["c.pt"]


def test_averages_in_one_file_with_raw_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = write_file(tmp_path / "m.safetensors", {"model.w": normal(2), "model_ema.modelw": normal(2)})
    assert run(["info", str(both)]) == 0
    assert "1 tensors are averages that training kept beside the raw weights" in capsys.readouterr().out
    alone = write_file(tmp_path / "e.safetensors", {"ema.w": normal(2)})
    assert not open_checkpoint(alone).remarks and not open_checkpoint(bert(tmp_path / "b")).remarks


def test_info_tells_of_parts_and_copies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = bert(tmp_path / "a")
    (model / "mm_projector.bin").write_bytes(b"p")
    (model / "tf_model.h5").write_bytes(b"t")
    assert run(["info", str(model)]) == 0
    said = capsys.readouterr().out
    assert "parts with weights of their own: mm_projector.bin" in said
    assert "not read, and not taken over by a merge: tf_model.h5" in said
    report = mg.open(model).save(tmp_path / "out")
    assert note_of(report.notes)["left_out"] == ["tf_model.h5"]
