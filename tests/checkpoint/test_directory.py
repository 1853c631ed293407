"""Which files of a directory are the model; every remedy that a refusal names is followed here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from makers import normal, write_adapter, write_file, write_model

from merganser.checkpoint import open_checkpoint
from merganser.checkpoint.names import index_name, missing_shards, read_name, role, shard_name
from merganser.errors import CheckpointError, MerganserError, RequestError


def shards(
    directory: Path, stem: str, count: int, *, without: tuple[int, ...] = (), index: bool = True
) -> Path:
    """`count` files of one tensor each, of which some may be missing."""
    directory.mkdir(parents=True, exist_ok=True)
    weight_map = {}
    for number in range(1, count + 1):
        name = shard_name(stem, number, count)
        weight_map[f"layer.{number}"] = name
        if number not in without:
            write_file(directory / name, {f"layer.{number}": normal(3, seed=number)})
    if index:
        (directory / index_name(stem)).write_text(json.dumps({"weight_map": weight_map}))
    return directory


def told(path: Path | str, **options: bool) -> str:
    with pytest.raises(MerganserError) as error:
        open_checkpoint(path, **options)
    return str(error.value)


@pytest.mark.parametrize("stem", ["model", "diffusion_pytorch_model"])
def test_an_index_that_names_exactly_the_one_file(tmp_path: Path, stem: str) -> None:
    write_file(tmp_path / f"{stem}.safetensors", {"a": normal(2), "b": normal(3)})
    index = tmp_path / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys("ab", f"{stem}.safetensors")}))
    assert sorted(open_checkpoint(tmp_path).tensors) == ["a", "b"]
    index.write_text(json.dumps({"weight_map": {"a": f"{stem}.safetensors"}}))
    assert "does not list tensors that its shards hold: b" in told(tmp_path)


def test_shards_without_an_index(tmp_path: Path) -> None:
    whole = shards(tmp_path / "whole", "weights", 3, index=False)
    assert len(open_checkpoint(whole).tensors) == 3
    cut = shards(tmp_path / "cut", "model", 4, without=(1, 3), index=False)
    said = told(cut)
    assert "model-00001-of-00004.safetensors, model-00003-of-00004.safetensors are missing" in said
    assert "Download or copy the model again" in said
    last = shards(tmp_path / "last", "model", 2, without=(2,), index=False)
    assert "model-00002-of-00002.safetensors is missing" in told(last)
    named = shards(tmp_path / "named", "model", 3, without=(2,))
    assert "names the file 'model-00002-of-00003.safetensors', which is missing; download" in told(named)
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "pytorch_model-00002-of-00002.bin").write_bytes(b"PK")
    assert "pytorch_model-00001-of-00002.bin is missing" in told(pickled, allow_pickle=True)


def test_two_sets_of_weights(tmp_path: Path) -> None:
    """One of them is stale, and nothing says which."""
    model = shards(tmp_path / "shards", "model", 2)
    write_file(model / "model.safetensors", {"layer.1": normal(3)})
    said = told(model)
    assert (
        "holds both model.safetensors.index.json and model.safetensors" in said
        and "Remove the stale one" in said
    )
    (path,) = re.findall(r"\(([^()]+)\)$", said)
    assert len(open_checkpoint(path).tensors) == 2  # the path that the message gives
    (model / "model.safetensors").unlink()
    assert len(open_checkpoint(model).tensors) == 2

    loose = shards(tmp_path / "loose", "model", 2, index=False)
    write_file(loose / "model.safetensors", {"layer.1": normal(3)})
    assert "both model.safetensors and model-00001-of-00002.safetensors" in told(loose)
    two = shards(shards(tmp_path / "two", "model", 2, index=False), "model", 3, index=False)
    assert "it is not clear which is the model" in told(two)
    both = write_model(tmp_path / "both", {"w": normal(2)})
    write_file(both / "diffusion_pytorch_model.safetensors", {"w": normal(2)})
    assert "both model.safetensors and diffusion_pytorch_model.safetensors" in told(both)
    copies = tmp_path / "copies"
    copies.mkdir()
    for name in ("weights.fp16", "weights.fp32"):
        write_file(copies / f"{name}.safetensors", {"w": normal(2)})
    said = told(copies)
    assert "two models, or two copies of one" in said
    (path,) = re.findall(r"\(([^()]+)\)", said)
    assert list(open_checkpoint(path).tensors) == ["w"]


def test_what_the_libraries_load_comes_before_other_copies(tmp_path: Path) -> None:
    model = write_model(tmp_path, {"w": normal(2)})
    for name in ("consolidated.safetensors", "model.fp16.safetensors", "model_ema.safetensors"):
        write_file(model / name, {"w": normal(2, seed=1)})
    for name in ("consolidated.00.pth", "pytorch_model.bin", "tf_model.h5", "model.gguf"):
        (model / name).write_bytes(b"x")
    assert [file.path.name for file in open_checkpoint(model).files] == ["model.safetensors"]


def test_an_adapter_among_the_files_of_a_model(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", {"layer.weight": normal(4, 4)})
    write_adapter(model, {"layer": (normal(4, 2), normal(2, 4))})
    said = told(model)
    assert "an adapter (adapter_config.json) and a whole model (model.safetensors)" in said
    (tmp_path / "adapter").mkdir()
    for path in model.glob("adapter_*"):  # as the message says
        shutil.move(path, tmp_path / "adapter" / path.name)
    assert open_checkpoint(tmp_path / "adapter").is_adapter and not open_checkpoint(model).is_adapter


def test_a_pipeline_is_given_component_by_component(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    for name in ("transformer", "text_encoder_2"):
        write_model(tmp_path / name, {"w": normal(2)})
    (tmp_path / "scheduler").mkdir()
    said = told(tmp_path)
    assert "is a diffusers pipeline" in said and "scheduler" not in said
    for path in re.findall(r"'([^']+)'", said):
        assert list(open_checkpoint(path).tensors) == ["w"]


def test_weights_below_the_directory(tmp_path: Path) -> None:
    write_model(tmp_path / "0_Transformer", {"w": normal(2)})
    (tmp_path / "modules.json").write_text("[]")
    said = told(tmp_path)
    assert "0_Transformer below it does" in said
    assert list(open_checkpoint(said.rpartition(": ")[2]).tensors) == ["w"]
    only = tmp_path / "only"
    only.mkdir()
    (only / "flax_model.msgpack").write_bytes(b"x")
    assert "only flax_model.msgpack" in told(only)


@pytest.mark.parametrize("remedy", ["ln", "cp", "open"])
def test_a_link_that_leads_out_has_ways_out(tmp_path: Path, remedy: str) -> None:
    disk = write_model(tmp_path / "disk", {"w": normal(2)})
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").symlink_to(disk / "model.safetensors")
    said = told(model)
    commands = {text.split()[0]: text for text in re.findall(r"`([^`]+)`", said)}
    if remedy == "open":
        (target,) = re.findall(r"open the file itself \(([^)]+)\)", said)
        assert list(open_checkpoint(target).tensors) == ["w"]
        return
    subprocess.run(commands[remedy].split(), check=True)
    assert list(open_checkpoint(model).tensors) == ["w"]


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4944\n"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (POINTER, "git lfs pull"),
        (b"<!DOCTYPE html><html>Repository not found</html>", "is a web page"),
        (b"\n <HTML><head>", "is a web page"),
        (b"", "is empty; download or copy it again"),
        (b"\x80\x02}q\x00.", "is a torch file"),
        (b"PK\x03\x04" + bytes(60), "is a torch file"),
        (b"GGUF\x03\0\0\0" + bytes(60), "is a GGUF file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(60), "is an HDF5 file"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, content: bytes, expected: str) -> None:
    model = write_model(tmp_path, {"w": normal(2)})
    (model / "model.safetensors").write_bytes(content)
    assert expected in told(model)
    if expected in ("git lfs pull", "is a web page"):
        (model / "model.safetensors.index.json").write_bytes(content)
        (model / "model.safetensors").unlink()
        assert expected in told(model)
        (model / "model.safetensors.index.json").unlink()
        (model / "pytorch_model.bin").write_bytes(content)
        assert expected in told(model, allow_pickle=True)


def test_a_torch_file_under_another_name_opens_as_the_message_says(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.ones(2)}, tmp_path / "m.safetensors")
    assert "call it .bin and open it with --allow-pickle" in told(tmp_path / "m.safetensors")
    os.rename(tmp_path / "m.safetensors", tmp_path / "m.bin")
    assert list(open_checkpoint(tmp_path / "m.bin", allow_pickle=True).tensors) == ["w"]


def test_a_header_as_long_as_a_pickle_begins(tmp_path: Path) -> None:
    """The length of the header comes first: 640 is the bytes that a pickle begins with."""
    raw = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode().ljust(0x280)
    (tmp_path / "m.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(4))
    assert list(open_checkpoint(tmp_path / "m.safetensors").tensors) == ["w"]


def test_a_file_that_was_cut(tmp_path: Path) -> None:
    path = write_file(tmp_path / "m.safetensors", {"w": normal(100), "v": normal(7)})
    raw = path.read_bytes()
    for length in (5, 30, len(raw) - 1):
        path.write_bytes(raw[:length])
        assert "cut short" in told(path)


def test_files_without_tensors(tmp_path: Path) -> None:
    for name in ("a.safetensors", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes((2).to_bytes(8, "little") + b"{}")
        assert "holds no tensors" in told(tmp_path / name)
    assert "holds no tensors" in told(tmp_path)


def test_names_taken_apart() -> None:
    read = read_name("diffusion_pytorch_model.fp16-00002-of-00003.safetensors")
    assert read is not None and (read.stem, read.number, read.count) == ("diffusion_pytorch_model.fp16", 2, 3)
    older = read_name("diffusion_pytorch_model-00002-of-00003.fp16.safetensors")
    assert older == read and read.plain == "diffusion_pytorch_model"
    assert read_name("config.json") is None and read_name("-1-of-2.bin") is not None
    assert missing_shards({2: "m-002-of-003.bin"}, 3) == ["m-001-of-003.bin", "m-003-of-003.bin"]
    assert index_name("m.fp16") == "m.safetensors.index.fp16.json"
    roles = {
        "copy": "onnx/model.onnx original/params.json pytorch_model.bin model.fp16.safetensors tf_model.h5 q.gguf "
        "openvino/openvino_model.bin ema_weights.safetensors onnx_fp16/config.json",
        "leftover": "optimizer.pt checkpoint-500/model.safetensors training_args.bin rng_state_0.pth",
        "part": "2_Dense/model.safetensors colbert_linear.pt sparse_linear.pt mm_projector.bin model_head.pkl "
        "head.safetensors 1_LSTM/pytorch_model.bin adapter_model.safetensors value_head.bin originality/w.bin",
        "": "config.json 2_Dense/config.json LICENSE",
    }
    assert {name: role(name) for names in roles.values() for name in names.split()} == {
        name: kind for kind, names in roles.items() for name in names.split()
    }


def test_a_claim_of_very_many_shards(tmp_path: Path) -> None:
    write_file(tmp_path / "m-000001-of-999999.safetensors", {"w": np.zeros(1, np.float32)})
    with pytest.raises(CheckpointError, match=r"and \d+ more are missing"):
        open_checkpoint(tmp_path)
    with pytest.raises(RequestError):
        open_checkpoint(tmp_path / "nothing")
