"""What lies below or beside the weights is in the result, or an error or the report names it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers import normal, read_file, read_model, write_file, write_model

import merganser as mg
from merganser.algebra import axes
from merganser.checkpoint import open_checkpoint
from merganser.cli import run
from merganser.errors import AlgebraError, CheckpointError, MerganserError

BERT = {
    "model_type": "bert", "architectures": ["BertModel"], "hidden_size": 6, "num_hidden_layers": 1,
    "num_attention_heads": 2, "intermediate_size": 5, "vocab_size": 11, "max_position_embeddings": 7,
    "type_vocab_size": 2,
}  # fmt: skip


def bert(directory: Path, seed: int = 0) -> Path:
    """A body of one layer, by its names and shapes."""
    h, n, v = BERT["hidden_size"], BERT["intermediate_size"], BERT["vocab_size"]
    layer = "encoder.layer.0"
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (v, h),
        "embeddings.position_embeddings.weight": (7, h),
        "embeddings.token_type_embeddings.weight": (2, h),
        f"{layer}.intermediate.dense.weight": (n, h),
        f"{layer}.intermediate.dense.bias": (n,),
        f"{layer}.output.dense.weight": (h, n),
        f"{layer}.output.dense.bias": (h,),
    }  # type: ignore[dict-item]
    for name in (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
    ):
        shapes |= {f"{layer}.{name}.weight": (h, h), f"{layer}.{name}.bias": (h,)}  # type: ignore[dict-item]
    for name in ("embeddings.LayerNorm", f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"):
        shapes |= {f"{name}.weight": (h,), f"{name}.bias": (h,)}  # type: ignore[dict-item]
    tensors = {name: normal(*shape, seed=seed + k) for k, (name, shape) in enumerate(shapes.items())}
    return write_model(directory, tensors, BERT)


def with_module(model: Path, folder: str = "2_Dense", kind: str = "Dense", **tensors: np.ndarray) -> Path:
    (model / folder).mkdir()
    write_file(model / folder / "model.safetensors", tensors or {"linear.weight": normal(3, 6, seed=9)})
    (model / folder / "config.json").write_text('{"out_features": 3}')
    listed = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    listed.append({"idx": 1, "name": "1", "path": folder, "type": f"sentence_transformers.models.{kind}"})
    (model / "modules.json").write_text(json.dumps(listed))
    return model


PARTS = {
    "1_LSTM/pytorch_model.bin": b"\x80\x02L",
    "1_LSTM/lstm_config.json": b"{}",
    "deep/er/head.safetensors": b"h",
    "deep/er/config.json": b"{}",
    "mm_projector.bin": b"p",
    "colbert_linear.pt": b"c",
    "model_head.pkl": b"k",
    "value_head.safetensors": b"v",
}
LEFT = {
    "onnx/model.onnx": b"o",
    "onnx/config.json": b"{}",
    "openvino/openvino_model.bin": b"o",
    "pytorch_model.bin": b"b",
    "tf_model.h5": b"t",
    "flax_model.msgpack": b"f",
    "model.Q4_K.gguf": b"g",
    "model.fp16.safetensors": b"16",
    "consolidated.00.pth": b"m",
    "ema_weights.pt": b"e",
    "optimizer.pt": b"o",
    "model.safetensors.index.fp16.json": b"{}",
}


def put(model: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_bytes(content)


def note_of(notes: Any) -> dict[str, Any]:
    return next((dict(note) for note in notes if note.get("step") == "files"), {})


def test_parts_travel_whole_and_copies_stay(tmp_path: Path) -> None:
    a, b = (
        write_model(tmp_path / "a", {"w": normal(4)}),
        write_model(tmp_path / "b", {"w": normal(4, seed=1)}),
    )
    put(a, PARTS | LEFT)
    put(b, {"mm_projector.bin": b"other", "only_here.safetensors": b"x"})
    report = mg.mean(mg.open(a), mg.open(b)).save(tmp_path / "out")
    out = tmp_path / "out"
    for name, content in PARTS.items():
        assert (out / name).read_bytes() == content
    assert not [name for name in LEFT if (out / name).exists()]
    note = note_of(report.notes)
    weights = [name for name in PARTS if not name.endswith(".json")]
    assert sorted(note["taken_over_whole"]) == sorted(weights) and note["from"] == "a"
    left = {name for name in LEFT if "/" not in name and not name.endswith(".json")} | {"onnx/", "openvino/"}
    assert set(note["left_out"]) == left
    assert note["not_taken_over"] == {"b": ["only_here.safetensors"]}
    manifest = json.loads((out / "merganser.json").read_text())
    assert set(PARTS) < set(manifest["files"]) and note_of(manifest["notes"]) == note
    mg.verify(out)
    again = mg.open(out).save(tmp_path / "again")
    assert sorted(note_of(again.notes)["taken_over_whole"]) == sorted(weights)
    (out / "mm_projector.bin").write_bytes(b"q")
    with pytest.raises(MerganserError, match=r"file 'mm_projector\.bin' has changed"):
        mg.verify(out)


def test_nothing_is_said_where_nothing_is_there(tmp_path: Path) -> None:
    report = mg.open(write_model(tmp_path / "a", {"w": normal(4)})).save(tmp_path / "out")
    assert not report.notes


def test_the_report_names_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = with_module(bert(tmp_path / "a"))
    put(a, {"onnx/model.onnx": b"o"})
    assert run(["reshape", str(a), str(tmp_path / "out"), "widen: {axis: neurons, size: 10}"]) == 0
    said = capsys.readouterr().out
    assert "taken over whole 2_Dense/model.safetensors" in said and "left out onnx/" in said
    assert (tmp_path / "out" / "2_Dense" / "config.json").exists()
    assert run(["merge", *recipe(tmp_path, a), str(tmp_path / "vector")]) == 0


def recipe(home: Path, *models: Path) -> list[str]:
    path = home / "recipe.yaml"
    path.write_text(
        json.dumps(
            {"method": "linear", "models": [{"model": str(m), "parameters": {"weight": 1}} for m in models]}
        )
    )
    return [str(path)]


def test_a_vector_is_no_model_that_parts_belong_to(tmp_path: Path) -> None:
    a, b = bert(tmp_path / "a"), with_module(bert(tmp_path / "b", 50))
    report = (mg.open(b) - mg.open(a)).save(tmp_path / "out", degree=0)
    assert not (tmp_path / "out" / "2_Dense" / "model.safetensors").exists()
    assert note_of(report.notes)["left_out"] == ["2_Dense/model.safetensors"]


def narrowed(weights: mg.Weights) -> mg.Weights:
    for axis, size in (("residual", 4), ("head_dim", 2), ("value_dim", 2)):
        weights = axes.take(weights, axis, range(size))
    return weights


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda w: narrowed(w), "from 6 to 4"),
        (lambda w: axes.permute(w, "residual", [1, 0, 2, 3, 4, 5]), "in order or scale"),
    ],
)
def test_a_part_that_reads_a_changed_axis(tmp_path: Path, change: Any, why: str) -> None:
    model = with_module(bert(tmp_path / "a"))
    changed = change(mg.open(model))
    for options in ({}, {"degree": 1.0}):
        with pytest.raises(
            AlgebraError, match=f"2_Dense/model.safetensors holds weights of 6 .*{why}"
        ) as error:
            mg.explain(changed, **options)
    assert "its entry in modules.json" in str(error.value)
    shutil.rmtree(model / "2_Dense")  # as the message says
    (model / "modules.json").unlink()
    change(mg.open(model)).save(tmp_path / "out")


def test_parts_in_other_forms_and_of_other_sizes(tmp_path: Path) -> None:
    narrow = bert(tmp_path / "narrow")
    put(narrow, {"model_head.pkl": b"?"})
    swapped = [1, 0, 2, 3, 4, 5]
    with pytest.raises(AlgebraError, match=r"model_head\.pkl"):
        axes.permute(mg.open(narrow), "residual", swapped).save(tmp_path / "out")
    axes.take(mg.open(narrow), "vocab", range(9)).save(tmp_path / "out")
    vocabulary = with_module(bert(tmp_path / "vocabulary"), "1_Words", "WordWeights", weight=normal(11))
    with pytest.raises(
        AlgebraError, match=r"1_Words/model\.safetensors holds weights of 11 along the vocab axis"
    ):
        axes.take(mg.open(vocabulary), "vocab", range(9)).save(tmp_path / "out", overwrite=True)
    axes.permute(mg.open(vocabulary), "residual", swapped).save(tmp_path / "out2")


def test_modules_that_are_missing(tmp_path: Path) -> None:
    """A download without the folders below, or a merge by a tool that lost them."""
    model = with_module(bert(tmp_path / "a"))
    (model / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"modules\.json: names the weights of 2_Dense, .* lacks it"):
        mg.open(model).save(tmp_path / "out")
    shutil.rmtree(model / "2_Dense")
    with pytest.raises(CheckpointError, match=r"names 2_Dense, .*take the entry out of modules\.json"):
        mg.explain(mg.open(model))
    listed = json.loads((model / "modules.json").read_text())
    (model / "modules.json").write_text(json.dumps(listed[:1]))  # as the message says
    mg.open(model).save(tmp_path / "out")


@pytest.mark.parametrize("path", ["../other", "/etc", "a/../../b", "a\\b"])
def test_modules_outside_are_not_followed(tmp_path: Path, path: str) -> None:
    model = with_module(bert(tmp_path / "a"))
    (model / "modules.json").write_text(json.dumps([{"path": path, "type": "x.Dense"}]))
    with pytest.raises(CheckpointError, match="is not inside the model's directory"):
        mg.open(model).save(tmp_path / "out")


def test_parts_and_configs_that_are_links(tmp_path: Path) -> None:
    model = write_model(tmp_path / "a", {"w": normal(4)})
    secret = tmp_path / "secret.bin"
    secret.write_bytes(b"secret")
    (model / "mm_projector.bin").symlink_to(secret)
    with pytest.raises(CheckpointError, match=r"mm_projector\.bin: is a link that leads out"):
        mg.open(model).save(tmp_path / "out")
    (model / "mm_projector.bin").unlink()
    (model / "mm_projector.bin").symlink_to("nowhere.bin")
    with pytest.raises(CheckpointError, match="no file that can be read"):
        mg.open(model).save(tmp_path / "out")
    (model / "mm_projector.bin").unlink()
    (model / "config.json").rename(tmp_path / "config.json")
    (model / "config.json").symlink_to(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match=r"config\.json: is a link that leads out"):
        mg.open(model).save(tmp_path / "out")


@pytest.mark.parametrize(
    "stem", ["diffusion_pytorch_model", "diffusion_pytorch_model.fp16", "open_clip_model"]
)
def test_a_library_finds_its_file_under_its_name(tmp_path: Path, stem: str) -> None:
    for name in "ab":
        home = tmp_path / name
        home.mkdir()
        write_file(home / f"{stem}.safetensors", {"x": normal(8, seed=ord(name)), "y": normal(8)})
        (home / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    mean = mg.mean(mg.open(tmp_path / "a"), mg.open(tmp_path / "b"))
    mean.save(tmp_path / "whole")
    assert sorted(p.name for p in (tmp_path / "whole").glob("*.safetensors")) == [f"{stem}.safetensors"]
    assert json.loads((tmp_path / "whole" / "config.json").read_text()) == {"_class_name": "AutoencoderKL"}
    mean.save(tmp_path / "split", shard_size=40)
    names = sorted(p.name for p in (tmp_path / "split").iterdir())
    if stem == "open_clip_model":  # which is never read in shards
        assert names == ["config.json", "merganser.json", f"{stem}.safetensors"]
    else:
        variant = stem.partition(".")[2]
        index = "diffusion_pytorch_model.safetensors.index." + (f"{variant}.json" if variant else "json")
        assert names == sorted(
            [
                "config.json",
                "merganser.json",
                index,
                *(f"{stem}-{k:05d}-of-00002.safetensors" for k in (1, 2)),
            ]
        )
    assert {n: a.tobytes() for n, a in read_model(tmp_path / "split").items()} == {
        n: a.tobytes() for n, a in read_file(tmp_path / "whole" / f"{stem}.safetensors").items()
    }
    for made in ("whole", "split"):
        assert sorted(open_checkpoint(tmp_path / made).tensors) == ["x", "y"]
        mg.verify(tmp_path / made)


@pytest.mark.models
@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("shard", ["1GB", "20KB"])
def test_diffusers_opens_a_merged_component(tmp_path: Path, variant: str | None, shard: str) -> None:
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    sizes = {"in_channels": 3, "out_channels": 3, "latent_channels": 2, "block_out_channels": (8,),
             "norm_num_groups": 4, "down_block_types": ("DownEncoderBlock2D",),
             "up_block_types": ("UpDecoderBlock2D",)}  # fmt: skip
    models = []
    for name in "ab":
        torch.manual_seed(ord(name))
        models.append(diffusers.AutoencoderKL(**sizes))
        models[-1].save_pretrained(tmp_path / name, variant=variant, max_shard_size=shard)
    mean = mg.mean(mg.open(tmp_path / "a"), mg.open(tmp_path / "b"))
    mean.save(tmp_path / "out", shard_size=20_000 if shard == "20KB" else 10**9)
    names = {p.name for p in (tmp_path / "a").iterdir() if "index" in p.name or shard == "1GB"}
    assert names <= {p.name for p in (tmp_path / "out").iterdir()}  # as diffusers itself calls them
    made = diffusers.AutoencoderKL.from_pretrained(tmp_path / "out", variant=variant)
    for key, value in made.state_dict().items():
        expected = (models[0].state_dict()[key] + models[1].state_dict()[key]) / 2
        torch.testing.assert_close(value, expected)
