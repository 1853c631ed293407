"""Types of elements that are carried: read, copied bit for bit, compared by their bytes, and never computed with."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

import merganser as mg
from merganser.algebra.rearranged import taken
from merganser.checkpoint import open_checkpoint, parse_dtype
from merganser.checkpoint.dtypes import ALL, DType
from merganser.cli import diff, run
from merganser.errors import AlgebraError, CheckpointError, MerganserError

OPAQUE = [dtype for dtype in ALL if dtype.opaque]
NUMBERS = [dtype for dtype in OPAQUE if dtype.name in ("C64", "F8_E4M3FNUZ", "F8_E5M2FNUZ")]
"""Numbers all the same; the others only ever are codes, with which nothing is computed anyway."""


def write(
    directory: Path,
    seed: int = 0,
    shape: tuple[int, ...] = (3, 8),
    *,
    float_seed: int = 0,
    dtypes: Sequence[DType] = OPAQUE,
) -> Path:
    """A model of one f32 tensor and one of each type that is carried, of any bits."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    header, data = {}, b""
    floats = np.random.default_rng(float_seed).standard_normal(4).astype("f4")
    bodies = [("w", "F32", (4,), floats.tobytes())]
    bodies += [(f"t.{d}", d.name, shape, rng.bytes(d.nbytes(int(np.prod(shape))))) for d in dtypes]
    for name, dtype, sizes, raw in bodies:
        header[name] = {
            "dtype": dtype,
            "shape": list(sizes),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    raw = json.dumps(header).encode()
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    (directory / "config.json").write_text("{}")
    return directory


def slices(path: Path) -> dict[str, tuple[str, list[int]]]:
    """Type and shape of every tensor as safetensors itself reads them."""
    with safe_open(path, "np") as opened:
        found = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
        return {name: (one.get_dtype(), one.get_shape()) for name, one in found.items()}


def bits(path: Path) -> dict[str, bytes]:
    found = {}
    for name, tensor in open_checkpoint(path).tensors.items():
        raw = bytearray(tensor.nbytes)
        tensor.read_into(memoryview(raw), 0)
        found[name] = bytes(raw)
    return found


def test_all_types_of_safetensors(tmp_path: Path) -> None:
    assert len(ALL) == 22
    path = write(tmp_path) / "model.safetensors"
    told = {name: (t.dtype.name, list(t.shape)) for name, t in open_checkpoint(path).tensors.items()}
    assert told == slices(path)


@pytest.mark.parametrize("shape", [(3, 8), (70_000, 4), (0, 4)])
def test_saved_bit_for_bit(tmp_path: Path, shape: tuple[int, ...]) -> None:
    model = write(tmp_path / "a", shape=shape)
    mg.open(model).save(tmp_path / "out", tile=1 << 16)
    assert bits(tmp_path / "out") == bits(model)
    assert slices(tmp_path / "out" / "model.safetensors") == slices(model / "model.safetensors")
    mg.verify(tmp_path / "out")


def test_carried_where_they_are_the_same_and_refused_where_they_differ(tmp_path: Path) -> None:
    a = mg.open(write(tmp_path / "a", 1, dtypes=NUMBERS))
    same = mg.open(write(tmp_path / "same", 1, float_seed=2, dtypes=NUMBERS))
    (0.5 * a + 0.5 * same).save(tmp_path / "out")
    held = bits(tmp_path / "out")
    assert {n: b for n, b in held.items() if n != "w"} == {
        n: b for n, b in bits(tmp_path / "a").items() if n != "w"
    }
    other = mg.open(write(tmp_path / "other", 3, dtypes=NUMBERS))
    for made in (lambda: a - other, lambda: mg.mean(a, other)):
        with pytest.raises(AlgebraError, match=r"tensor 't\..*' is .* and differs between 'a' and 'other'"):
            made()


def test_nothing_takes_packed_elements_apart(tmp_path: Path) -> None:
    a = mg.open(write(tmp_path / "a"))
    for name in ("t.F4", "t.F6_E2M3"):
        with pytest.raises(AlgebraError, match=rf"tensor '{name}' of 'a' is F.*elements share bytes"):
            _ = taken(a[name], [np.array([1, 0]), None]).dtype  # type: ignore[attr-defined]
        with pytest.raises(CheckpointError, match=f"tensor '{name}' is F.* no array is made of it"):
            open_checkpoint(tmp_path / "a").tensors[name].numpy()
        with pytest.raises(MerganserError):
            a.save(tmp_path / "out", dtype=name.removeprefix("t."))
    whole = mg.open(write(tmp_path / "whole", dtypes=NUMBERS))
    assert mg.compute(whole, "t.C64").dtype == np.complex64
    assert parse_dtype("F8_E8M0").numpy.itemsize == 1


def test_a_shape_that_does_not_fill_its_last_byte(tmp_path: Path) -> None:
    raw = json.dumps({"w": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(2))
    with pytest.raises(CheckpointError, match="does not fill its last byte"):
        open_checkpoint(tmp_path / "m.safetensors")


def test_info_and_diff(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write(tmp_path / "all")
    assert run(["info", str(a), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {d.name for d in OPAQUE} < set(told["dtypes"])
    a, b = write(tmp_path / "a", 1, dtypes=NUMBERS), write(tmp_path / "b", 2, dtypes=NUMBERS)
    found = {t["name"]: t for t in diff.compare(mg.open(a), mg.open(b))["tensors"]}
    same = {t["name"]: t for t in diff.compare(mg.open(a), mg.open(a))["tensors"]}
    for dtype in NUMBERS:
        assert not found[f"t.{dtype}"]["equal"] and same[f"t.{dtype}"]["equal"]
        assert found[f"t.{dtype}"]["note"] == f"{dtype}, compared by bits"
