"""What refusals of files tell the user to do, done: afterwards the model opens with the values that were meant."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers import normal, read_file, same_bytes, write_adapter, write_file, write_model

import merganser as mg
from merganser.cli import run
from merganser.errors import CheckpointError

TENSORS = {"up.weight": normal(6, 4, seed=1), "down.weight": normal(4, 6, seed=2)}
Arrays = dict[str, np.ndarray]


def sharded(place: Path, **shards: Arrays) -> Path:
    place.mkdir()
    (place / "config.json").write_text(json.dumps({"model_type": "toy"}))
    for name, tensors in shards.items():
        write_file(place / f"{name}.safetensors", tensors)
    where = {tensor: f"{name}.safetensors" for name, tensors in shards.items() for tensor in tensors}
    (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return place


def assert_opens(path: Path, wanted: Arrays, **options: Any) -> None:
    weights = mg.open(path, **options)
    assert set(weights) == set(wanted)
    assert all(same_bytes(weights.compute(name), array) for name, array in wanted.items())


@pytest.mark.parametrize("pointers", [["one"], ["one", "two"]])
def test_git_lfs_pull_puts_the_files_in_the_place_of_their_pointers(
    pointers: list[str], tmp_path: Path
) -> None:
    first, second = ({name: array} for name, array in TENSORS.items())
    clone = sharded(tmp_path / "clone", one=first, two=second)
    stored = {name: (clone / f"{name}.safetensors").read_bytes() for name in pointers}
    for name, content in stored.items():
        told = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'e' * 64}\nsize {len(content)}\n"
        (clone / f"{name}.safetensors").write_text(told)
    with pytest.raises(CheckpointError, match="git lfs pull"):
        mg.open(clone)
    for name, content in stored.items():  # as `git lfs pull` does
        (clone / f"{name}.safetensors").write_bytes(content)
    assert_opens(clone, TENSORS)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_weights_that_were_put_together_are_read_in_the_place_of_stubs(file: str, tmp_path: Path) -> None:
    """zero_to_fp32.py of DeepSpeed writes pytorch_model.bin, and with --safe_serialization model.safetensors.

    The script itself needs a training's checkpoint and is not run here.
    """
    model = write_model(tmp_path / "m", {name: np.zeros(0, np.float32) for name in TENSORS})
    with pytest.raises(CheckpointError, match=r"zero_to_fp32\.py"):
        mg.save(mg.open(model) * 0.5 + mg.open(model) * 0.5, tmp_path / "out", sync=False)
    (model / "model.safetensors").unlink()
    if file == "pytorch_model.bin":
        torch = pytest.importorskip("torch")
        torch.save({name: torch.from_numpy(array) for name, array in TENSORS.items()}, model / file)
    else:
        write_file(model / file, TENSORS)
    assert_opens(model, TENSORS, allow_pickle=True)


@pytest.mark.parametrize("way", ["path", "directories"])
def test_a_tensor_in_two_files_has_two_ways_out(way: str, tmp_path: Path) -> None:
    place = tmp_path / "m"
    place.mkdir()
    files = {"raw": TENSORS, "ema": {name: array + 1 for name, array in TENSORS.items()}}
    for name, tensors in files.items():
        write_file(place / f"{name}.safetensors", tensors)
    with pytest.raises(CheckpointError, match="is in two files") as refusal:
        mg.open(place)
    if way == "path":
        meant = Path(re.search(r"the one that is meant \((.*?)\)", str(refusal.value))[1])  # type: ignore[index]
        assert_opens(meant, read_file(meant))
        return
    for name, tensors in files.items():
        (tmp_path / name).mkdir()
        shutil.move(place / f"{name}.safetensors", tmp_path / name)
        assert_opens(tmp_path / name, tensors)


def test_factors_of_two_dtypes_are_converted_to_one(tmp_path: Path) -> None:
    left, right = normal(6, 2, seed=3), normal(2, 4, seed=4, dtype=np.float16)
    adapter = write_adapter(tmp_path / "a", {"up": (left, right)})
    with pytest.raises(CheckpointError, match="Convert them to one dtype"):
        mg.open(adapter)
    file = adapter / "adapter_model.safetensors"
    write_file(file, {name: array.astype(np.float32) for name, array in read_file(file).items()})
    delta = mg.open(adapter).compute("up.weight")
    assert np.allclose(delta, 2 * left @ right.astype(np.float32), atol=1e-5)


def save_allowed(file: Path, state: Any) -> list[str]:
    file.write_bytes(state)
    return ["--allow-pickle"]


def save_alone(file: Path, state: Any) -> list[str]:
    import torch
    from safetensors.torch import save_file

    file.write_bytes(state)
    save_file(torch.load(file, weights_only=True), file.with_name("model.safetensors"))
    file.unlink()
    return []


@pytest.mark.models
@pytest.mark.parametrize("way", [save_allowed, save_alone])
def test_a_pickle_is_allowed_or_saved_as_safetensors(
    way: Callable[[Path, bytes], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch")
    for name, scale in (("a", 1.0), ("b", 3.0)):
        place = tmp_path / name
        place.mkdir()
        (place / "config.json").write_text(json.dumps({"model_type": "toy"}))
        state = {key: torch.from_numpy(array * np.float32(scale)) for key, array in TENSORS.items()}
        torch.save(state, place / "pytorch_model.bin")
    words = ["diff", str(tmp_path / "a"), str(tmp_path / "b"), "--json"]
    assert run(words) != 0
    told = capsys.readouterr().err
    assert "--allow-pickle" in told and "save it as safetensors" in told
    for name in ("a", "b"):
        file = tmp_path / name / "pytorch_model.bin"
        more = way(file, file.read_bytes())
    assert run([*words, *more]) == 0
    assert json.loads(capsys.readouterr().out)["summary"]["relative"] == pytest.approx(2.0, rel=1e-6)


class Settings:
    """What a training script pickles beside its tensors."""


@pytest.mark.models
def test_what_else_a_pickle_holds_is_left_out_by_saving_the_tensors_alone(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    file = tmp_path / "last.pt"
    state = {name: torch.from_numpy(array) for name, array in TENSORS.items()}
    torch.save({"model": state, "settings": Settings()}, file, pickle_module=pickle)
    with pytest.raises(CheckpointError, match="save its tensors alone"):
        mg.open(file, allow_pickle=True)
    from safetensors.torch import save_file

    save_file(torch.load(file, weights_only=False)["model"], tmp_path / "last.safetensors")
    assert_opens(tmp_path / "last.safetensors", TENSORS)


@pytest.mark.models
@pytest.mark.parametrize("kind", ["complex64", "float8_e4m3fnuz"])
def test_a_type_without_arithmetic_is_converted_in_both(kind: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    held = {"a": torch.tensor([1.0, 2.0, 4.0]), "b": torch.tensor([4.0, 8.0, 2.0])}
    typed = {name: (array * (1 + 1j) if kind == "complex64" else array) for name, array in held.items()}
    typed = {name: array.to(getattr(torch, kind)) for name, array in typed.items()}

    def mean(tensors: dict[str, Any]) -> np.ndarray:
        for name, tensor in tensors.items():
            save_file({"w": torch.ones(3), "c": tensor}, tmp_path / f"{name}.safetensors")
        a, b = (mg.open(tmp_path / f"{name}.safetensors") for name in tensors)
        return (0.5 * a + 0.5 * b).compute("c")

    with pytest.raises(mg.errors.AlgebraError, match=r"tensor\.to\(torch\.float32\).*view_as_real"):
        mean(typed)
    if kind == "complex64":
        plain = {name: torch.view_as_real(tensor).contiguous() for name, tensor in typed.items()}
        assert mean(plain).tolist() == [[2.5, 2.5], [5.0, 5.0], [3.0, 3.0]]
    else:
        plain = {name: tensor.to(torch.float32) for name, tensor in typed.items()}
        assert mean(plain).tolist() == [2.5, 5.0, 3.0]
