"""A result that is one file: sealed, resumed, replaced and verified as a directory is, and opened by other readers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from makers import normal, read_file, write_adapter, write_file, write_model
from safetensors import safe_open

import merganser as mg
from merganser.checkpoint import open_checkpoint
from merganser.cli import run
from merganser.engine import execute
from merganser.errors import MerganserError, OutputError, RequestError, VerificationError

Files = Callable[..., Path]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """`files("a", seed)` writes a bare file of three tensors of two types."""

    def make(name: str, seed: int = 0) -> Path:
        tensors = {
            "naïve.w": normal(70_000, seed=seed),
            "half": normal(5, 3, seed=seed + 1, dtype=np.float16),
            "ids": np.arange(3, dtype=np.int64),
        }
        return write_file(tmp_path / f"{name}.safetensors", tensors)

    return make


def mean_of(*paths: Path) -> mg.Weights:
    return mg.mean(*(mg.open(path) for path in paths))


def test_one_file_by_every_reader(files: Files, tmp_path: Path) -> None:
    weights = mean_of(files("a"), files("b", 9))
    report = weights.save(tmp_path / "out.safetensors", shard_size=1000)
    weights.save(tmp_path / "directory")
    out = tmp_path / "out.safetensors"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "a.safetensors", "b.safetensors", "directory", "out.safetensors",
    ]  # fmt: skip
    with safe_open(out, "np") as opened:
        assert opened.metadata()["format"] == "pt"
        manifest = json.loads(opened.metadata()["merganser"])
        for name, array in read_file(tmp_path / "directory" / "model.safetensors").items():
            assert opened.get_tensor(name).tobytes() == array.tobytes()
    assert manifest["digest"] == report.digest and manifest["run"] == {}
    assert [p["name"] for p in manifest["parents"]] == ["a.safetensors", "b.safetensors"]
    assert mg.verify(out)["digest"] == mg.verify(tmp_path / "directory")["digest"] == report.digest
    again = mg.open(out)
    again.save(tmp_path / "again.safetensors")
    assert mg.verify(tmp_path / "again.safetensors")["digest"] == report.digest


def test_same_bytes_every_time(files: Files, tmp_path: Path) -> None:
    weights = mean_of(files("a"), files("b", 9))
    for k in (1, 2):
        (tmp_path / str(k)).mkdir()
        weights.save(tmp_path / str(k) / "out.safetensors", threads=k)
    assert (tmp_path / "1" / "out.safetensors").read_bytes() == (
        tmp_path / "2" / "out.safetensors"
    ).read_bytes()


def test_a_vector_keeps_its_degree(files: Files, tmp_path: Path) -> None:
    base, tuned = mg.open(files("a")), mg.open(files("b", 9))
    (tuned - base).save(tmp_path / "v.safetensors", degree=0)
    vector = mg.open(tmp_path / "v.safetensors")
    assert vector.degree == 0
    (base + vector).save(tmp_path / "sum.safetensors")


def test_interrupted_and_resumed(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, out = mean_of(files("a"), files("b", 9)), tmp_path / "out.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(execute, "_finish_file", lambda *_: (_ for _ in ()).throw(OutputError("no")))
        with pytest.raises(OutputError):
            weights.save(out)
    assert not out.exists() and (tmp_path / ".out.safetensors.merganser-partial").is_dir()
    report = weights.save(out)
    assert report.resumed == 3
    weights.save(tmp_path / "whole.safetensors")
    ours, whole = (read_file(tmp_path / name) for name in ("out.safetensors", "whole.safetensors"))
    assert {n: a.tobytes() for n, a in ours.items()} == {n: a.tobytes() for n, a in whole.items()}
    assert mg.verify(out) and not (tmp_path / ".out.safetensors.merganser-partial").exists()


def test_what_is_there_is_kept_unless_it_may_be_replaced(files: Files, tmp_path: Path) -> None:
    a, b = files("a"), files("b", 9)
    weights, out = mean_of(a, b), tmp_path / "out.safetensors"
    out.write_bytes(b.read_bytes())
    with pytest.raises(RequestError, match="already exists"):
        weights.save(out)
    assert out.read_bytes() == b.read_bytes()
    weights.save(out, overwrite=True)
    mg.verify(out)
    for path in (a, b):
        with pytest.raises(RequestError, match="is or contains the parent"):
            weights.save(path, overwrite=True)
    out.write_bytes(b"notes")
    with pytest.raises(RequestError, match="is no checkpoint, so it is not replaced"):
        weights.save(out, overwrite=True)
    out.unlink()
    out.symlink_to(a)
    with pytest.raises(RequestError, match=r"is not a file|is or contains"):
        weights.save(out, overwrite=True)
    out.unlink()
    out.mkdir()
    with pytest.raises(RequestError, match="is not a file, so it is not replaced by one"):
        weights.save(out, overwrite=True)


def test_damage_is_found(files: Files, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    mg.open(files("a")).save(out)
    raw = out.read_bytes()
    out.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(VerificationError, match="has changed"):
        mg.verify(out)
    out.write_bytes(raw.replace(b"merganser.save", b"merganser.SAVE"))
    with pytest.raises(VerificationError, match="the manifest was edited"):
        mg.verify(out)
    with pytest.raises(VerificationError, match="has no manifest in its metadata"):
        mg.verify(tmp_path / "a.safetensors")
    with pytest.raises(RequestError, match=r"not a directory and no \.safetensors"):
        mg.verify(tmp_path / "nothing")


def test_what_one_file_cannot_hold(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", {"w": normal(4, 4)})
    (model / "mm_projector.bin").write_bytes(b"p")
    report = mg.open(model).save(tmp_path / "w.safetensors")
    (note,) = report.notes
    assert note["left_out"] == ["mm_projector.bin", "config.json"]  # said, for one file was asked for
    changed = mg.open(model).with_files({"config.json": b"{}"})
    with pytest.raises(RequestError, match=r"needs config\.json beside its tensors.*give a directory"):
        changed.save(tmp_path / "x.safetensors")
    changed.save(tmp_path / "x")  # as the message says
    adapter = write_adapter(tmp_path / "adapter", {"w": (normal(4, 2), normal(2, 4))})
    status = run(["combine-lora", str(tmp_path / "y.safetensors"), str(adapter), str(adapter), "--quiet"])
    assert status and not (tmp_path / "y.safetensors").exists()


def test_by_the_commands(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b, out = files("a"), files("b", 9), tmp_path / "out.safetensors"
    recipe = tmp_path / "recipe.yaml"
    models = [{"model": str(path), "parameters": {"weight": 0.5}} for path in (a, b)]
    recipe.write_text(json.dumps({"method": "linear", "models": models}))
    assert run(["merge", str(recipe), str(out)]) == 0
    assert run(["verify", str(out)]) == 0
    assert run(["info", str(out)]) == 0
    assert "sealed by merganser" in capsys.readouterr().out
    expected = (normal(70_000).astype(np.float64) + normal(70_000, seed=9)) / 2
    np.testing.assert_allclose(read_file(out)["naïve.w"], expected, rtol=1e-6)


def test_a_manifest_that_is_none(files: Files, tmp_path: Path) -> None:
    """Metadata come from outside like everything else in a file."""
    from merganser.checkpoint.header import write_header

    for text in ("{", "[]", '{"degree": "much"}', "null"):
        path = tmp_path / "m.safetensors"
        path.write_bytes(write_header([], {"merganser": text}))
        with pytest.raises(MerganserError):
            _ = open_checkpoint(path).degree
        raw = files("a").read_bytes()
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length]) | {"__metadata__": {"merganser": text}}
        new = json.dumps(header).encode()
        path.write_bytes(len(new).to_bytes(8, "little") + new + raw[8 + length :])
        with pytest.raises(MerganserError):
            _ = open_checkpoint(path).degree
        with pytest.raises(MerganserError):
            mg.verify(path)
