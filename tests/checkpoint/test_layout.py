"""Where files are looked for, which links are followed, and what travels with the weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from merganser.checkpoint import open_checkpoint
from merganser.checkpoint.dtypes import F32
from merganser.checkpoint.header import write_header
from merganser.checkpoint.layout import locate, refuse_link_out, resolve_inside
from merganser.errors import CheckpointError, RequestError


def weights(path: Path, *names: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(write_header([(n, F32, (1,)) for n in names], {}) + bytes(4 * len(names)))
    return path


def files(directory: Path, *names: str) -> None:
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face cache with owner/name at two revisions, laid out and linked as huggingface_hub does."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    repo = tmp_path / "hub" / "models--owner--name"
    weights(repo / "blobs" / "f00d", "a")
    files(repo, "blobs/c0de")
    for revision in ("aaa", "bbb"):
        snapshot = repo / "snapshots" / revision
        (snapshot / "sub").mkdir(parents=True)
        (snapshot / "model.safetensors").symlink_to("../../blobs/f00d")
        (snapshot / "config.json").symlink_to("../../blobs/c0de")
        (snapshot / "sub" / "model.safetensors").symlink_to("../../../blobs/f00d")
        (snapshot / "1_Pooling").mkdir()
        (snapshot / "1_Pooling" / "config.json").symlink_to("../../../blobs/c0de")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("bbb\n")
    return repo


def test_the_caches_own_links_are_followed(cache: Path) -> None:
    opened = open_checkpoint(cache / "snapshots" / "aaa")
    assert list(opened.tensors) == ["a"] and opened.config == {}
    assert opened.companions == [Path("1_Pooling/config.json"), Path("config.json")]
    assert list(open_checkpoint(cache / "snapshots" / "aaa" / "sub").tensors) == ["a"]
    assert list(open_checkpoint(cache / "snapshots" / "aaa" / "model.safetensors").tensors) == ["a"]


def test_sharded_model_in_the_cache(cache: Path) -> None:
    snapshot = cache / "snapshots" / "aaa"
    (snapshot / "model.safetensors").rename(snapshot / "model-00001-of-00001.safetensors")
    index = cache / "blobs" / "1dex"
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00001.safetensors"}}))
    (snapshot / "model.safetensors.index.json").symlink_to("../../blobs/1dex")
    assert list(open_checkpoint(snapshot).tensors) == ["a"]


def test_hub_ids_are_found_in_the_cache(cache: Path) -> None:
    assert locate("owner/name") == cache / "snapshots" / "bbb"
    assert locate("owner/name@main") == cache / "snapshots" / "bbb"
    assert locate("owner/name@aaa") == cache / "snapshots" / "aaa"
    assert open_checkpoint("owner/name").path == cache / "snapshots" / "bbb"


@pytest.mark.parametrize(
    "text",
    [
        "owner/other",
        "owner/name@ccc",
        "owner/name@../aaa",
        "owner/..",
        "../name",
        "owner/name/sub",
        "name",
        "a/b@c/d",
    ],
)
def test_what_is_not_found(cache: Path, text: str) -> None:
    with pytest.raises(RequestError, match=r"there is no checkpoint at .*local Hugging Face cache"):
        locate(text)


def test_the_cache_follows_hf_home(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_CACHE")
    with pytest.raises(RequestError):
        locate("owner/name")
    monkeypatch.setenv("HF_HOME", str(cache.parent.parent))
    assert locate("owner/name").name == "bbb"


def test_a_directory_comes_before_the_cache(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights(tmp_path / "owner" / "name" / "model.safetensors", "b")
    assert list(open_checkpoint("owner/name").tensors) == ["b"]


def test_paths_beside_the_recipe(tmp_path: Path) -> None:
    weights(tmp_path / "models" / "base" / "model.safetensors", "a")
    assert locate("models/base", tmp_path) == tmp_path / "models" / "base"
    assert locate(tmp_path / "models", Path("/")) == tmp_path / "models"
    with pytest.raises(RequestError, match=r"did you mean 'base'\?"):
        locate(tmp_path / "models" / "basee")


def test_links_that_lead_out(tmp_path: Path) -> None:
    secret = weights(tmp_path / "secret.safetensors", "a")
    model = tmp_path / "model"
    model.mkdir()
    inside = weights(model / "real" / "file.safetensors", "a")
    (model / "in.safetensors").symlink_to(inside)
    (model / "out.safetensors").symlink_to(secret)
    (model / "chain.safetensors").symlink_to("out.safetensors")
    (model / "loop.safetensors").symlink_to("loop.safetensors")
    refuse_link_out(model / "in.safetensors")
    for name in ("out", "chain"):
        with pytest.raises(CheckpointError, match=rf"{name}\.safetensors: is a link that leads out"):
            refuse_link_out(model / f"{name}.safetensors")
    assert resolve_inside(model, "in.safetensors", model / "index") == model / "in.safetensors"
    with pytest.raises(CheckpointError, match="which is missing"):
        resolve_inside(model, "loop.safetensors", model / "index")


def test_a_blob_outside_of_the_blobs_is_refused(cache: Path) -> None:
    weights(cache / "blobs" / "deeper" / "f00d", "a")
    snapshot = cache / "snapshots" / "aaa"
    for target in ("../../blobs/deeper/f00d", "../bbb/../../refs/main"):
        (snapshot / "model.safetensors").unlink()
        (snapshot / "model.safetensors").symlink_to(target)
        with pytest.raises(CheckpointError, match="leads out of its directory"):
            open_checkpoint(snapshot)


TRAVEL = """
config.json generation_config.json tokenizer.json tokenizer.model merges.txt LICENSE chat_template.jinja
1_Pooling/config.json modeling_x.py NOTICE.md qwen.tiktoken
"""
STAY = """
model.safetensors.index.json pytorch_model.bin.index.json merganser.json README.md .gitattributes
.hidden/config.json onnx/model.onnx onnx/config.json training_args.bin optimizer.pt trainer_state.json
adapter_notes.json picture.png 1_Pooling/deep/x.json
"""


def test_companions(tmp_path: Path) -> None:
    files(tmp_path, *TRAVEL.split(), *STAY.split())
    weights(tmp_path / "model.safetensors", "a")
    weight_map = {"weight_map": {"a": "model.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(weight_map))
    outside = tmp_path.parent / f"{tmp_path.name}-secret.json"
    outside.write_text("{}")
    (tmp_path / "link.json").symlink_to(outside)
    (tmp_path / "folder").symlink_to(tmp_path.parent)
    (tmp_path / "loop.json").symlink_to("loop.json")
    assert sorted(map(str, open_checkpoint(tmp_path).companions)) == sorted(TRAVEL.split())


def test_directories(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="holds no weights"):
        open_checkpoint(tmp_path)
    weights(tmp_path / "b.safetensors", "b")
    weights(tmp_path / "a.safetensors", "a")
    weights(tmp_path / ".hidden.safetensors", "h")
    opened = open_checkpoint(tmp_path)
    assert list(opened.tensors) == ["a", "b"]
    assert opened.directory == tmp_path and opened.name == tmp_path.name
    weights(tmp_path / "model.safetensors", "m")
    assert list(open_checkpoint(tmp_path, name="x").tensors) == ["m"]
    assert open_checkpoint(tmp_path / "a.safetensors").directory is None
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert list(open_checkpoint(tmp_path).tensors) == ["m"]
    (tmp_path / "model.h5").touch()
    with pytest.raises(RequestError, match="not a kind of checkpoint that is read"):
        open_checkpoint(tmp_path / "model.h5")
