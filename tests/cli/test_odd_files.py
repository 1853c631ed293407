"""Files that are cut, swapped, empty, mislabelled or of another kind: each command gives a result or its own error."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from makers import normal, write_adapter, write_file, write_model

import merganser as mg
from merganser.architectures import read
from merganser.checkpoint import open_checkpoint
from merganser.cli import architecture, diff, info
from merganser.errors import MerganserError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4944\n"
CONTENTS = {
    "empty": b"",
    "pointer": POINTER,
    "page": b"<!doctype html><title>404</title>",
    "error": b'{"error": "Repository not found"}',
    "zip": b"PK\x03\x04" + bytes(26),
    "pickle": b"\x80\x02}q\x00X\x01\x00\x00\x00wq\x01K\x01s.",
    "list": b"[1, 2]",
    "null": b"null",
    "deep": b"[" * 5000,
    "number": b"1",
    "latin": b'{"a": "\xe9"}',
    "utf-16": '{"model_type": "llama"}'.encode("utf-16"),
    "marked": b"\xef\xbb\xbf{}",
    "header only": (2).to_bytes(8, "little") + b"{}",
    "header of a list": (2).to_bytes(8, "little") + b"[]",
    "noise": random.Random(1).randbytes(700),
}
NAMES = (
    "model.safetensors", "config.json", "model.safetensors.index.json", "modules.json", "merganser.json",
    "adapter_config.json", "model_index.json", "signs.json", "pytorch_model.bin", "2_Dense/model.safetensors",
    "tokenizer.json", "model.safetensors.index.fp16.json", "quantize_config.json", "hf_quant_config.json",
)  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and a result of it."""
    home = tmp_path_factory.mktemp("good")
    write_model(home / "a", {"w": normal(4, 3), "b": np.arange(3)}, {"model_type": "toy"})
    write_model(home / "b", {"w": normal(4, 3, seed=1), "b": np.arange(3)}, {"model_type": "toy"})
    mg.mean(mg.open(home / "a"), mg.open(home / "b")).save(home / "out")
    write_adapter(home / "adapter", {"w": (normal(4, 2), normal(2, 3))})
    return home


def no_surprise(home: Path, model: Path, *, pickle: bool = False) -> set[str]:
    """Do what the commands do; which came to a result. Whatever else happens has to be merganser's own error."""

    def opened(path: Path = model) -> mg.Weights:
        return mg.open(path, name=str(path), allow_pickle=pickle)

    work: dict[str, Callable[[], object]] = {
        "info": lambda: json.dumps(info.describe(open_checkpoint(model, allow_pickle=pickle))),
        "diff": lambda: json.dumps(diff.compare(opened(), opened(home / "b"))),
        "architecture": lambda: architecture.document(read(open_checkpoint(model, allow_pickle=pickle))),
        "explain": lambda: json.dumps(mg.explain(mg.mean(opened(), opened()))),
        "merge": lambda: mg.mean(opened(), opened()).save(home / "made", overwrite=True, sync=False),
        "verify": lambda: mg.verify(model),
    }
    done = set()
    for name, act in work.items():
        try:
            act()
            done.add(name)
        except MerganserError as error:
            assert len(str(error)) > 20, (name, error)
    shutil.rmtree(home / "made", ignore_errors=True)
    return done


@pytest.mark.parametrize("name", NAMES)
def test_every_file_may_be_something_else(good: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(good, tmp_path / "home")
    home = tmp_path / "home"
    start = "out" if name == "merganser.json" else "a"
    place = home / start / name
    place.parent.mkdir(exist_ok=True)
    for content in CONTENTS.values():
        place.write_bytes(content)
        no_surprise(home, home / start, pickle=name == "pytorch_model.bin")
    place.unlink()
    place.mkdir()  # a folder under the name of a file
    no_surprise(home, home / start)
    place.rmdir()
    place.symlink_to(place.name)  # a link to itself
    no_surprise(home, home / start)


def test_damaged_bytes(good: Path, tmp_path: Path) -> None:
    """Single bytes changed, cut and doubled, at places that a seed draws."""
    shutil.copytree(good, tmp_path / "home")
    home, draw = tmp_path / "home", random.Random(7)
    for start, name in (
        ("a", "model.safetensors"),
        ("out", "merganser.json"),
        ("adapter", "adapter_config.json"),
    ):
        raw = (home / start / name).read_bytes()
        for _ in range(40):
            at = draw.randrange(min(len(raw), 400))
            changed = {
                0: raw[:at] + bytes([draw.randrange(256)]) + raw[at + 1 :],
                1: raw[:at],
                2: raw[:at] + raw[at - 5 :],
            }[draw.randrange(3)]
            (home / start / name).write_bytes(changed)
            no_surprise(home, home / start)
        (home / start / name).write_bytes(raw)


@pytest.mark.parametrize(
    "value", [None, 1, "x", [], {}, [None], {"": ""}, True, -1, 1e300, "\u202e"], ids=repr
)
def test_values_of_another_type(good: Path, tmp_path: Path, value: object) -> None:
    shutil.copytree(good, tmp_path / "home")
    home = tmp_path / "home"
    documents = {
        "config.json": [{"model_type": value}, {"model_type": "llama", "hidden_size": value, "vocab_size": value},
                        {"model_type": "toy", "tie_word_embeddings": value, "quantization_config": value},
                        {"model_type": "llama", "architectures": value, "dtype": value, "torch_dtype": value}],
        "modules.json": [value, [value], [{"path": value, "type": "x.Dense"}], [{"path": "d", "type": value}]],
        "model.safetensors.index.json": [{"weight_map": value}, {"weight_map": {"w": value}}],
    }  # fmt: skip
    for name, told in documents.items():
        before = (home / "a" / name).read_bytes() if (home / "a" / name).exists() else None
        for document in told:
            (home / "a" / name).write_text(json.dumps(document))
            no_surprise(home, home / "a")
        (home / "a" / name).unlink()
        if before is not None:
            (home / "a" / name).write_bytes(before)


def test_files_of_other_kinds_as_the_model(good: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(good, home)
    (home / "folder.safetensors").mkdir()
    (home / "nothing").mkdir()
    for name in ("x.safetensors", "x.pt", "x.gguf", "x.safetensors.index.json"):
        for content in CONTENTS.values():
            (home / name).write_bytes(content)
            assert not no_surprise(home, home / name, pickle=True)
        (home / name).unlink()
    write_file(
        home / "w.safetensors", {"a\u202eb": normal(2), "é": normal(2), " ": normal(2), "/": normal(2)}
    )
    assert no_surprise(home, home / "w.safetensors") >= {"info", "explain", "merge"}
    for name in ("folder.safetensors", "nothing", "missing"):
        assert not no_surprise(home, home / name)
