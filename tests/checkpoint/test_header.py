"""The safetensors header: agreed with the reference implementation, and hard against anything else."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from merganser.checkpoint import open_checkpoint
from merganser.checkpoint.dtypes import ALL, BF16, F8_E4M3, F8_E5M2, F32, I64, U8
from merganser.checkpoint.files import StoredFile
from merganser.checkpoint.header import MAX_DIMENSIONS, MAX_HEADER_BYTES, read_header, write_header
from merganser.errors import CheckpointError

NOT_NUMPYS = {"BF16", "F4"} | {d.name for d in ALL if d.name.startswith(("F8", "F6"))}
"""Types that NumPy has no name for."""
SHAPES = [(), (0,), (1,), (7,), (3, 4), (2, 0, 3), (2, 3, 1, 5)]
FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def some_array(dtype: Any, shape: tuple[int, ...], seed: int = 0) -> Any:
    """Any bits (bool: 0 and 1)."""
    numpy = dtype.numpy
    high = 2 if numpy.kind == "b" else 256
    count = int(np.prod(shape, dtype=np.int64)) * numpy.itemsize
    raw = np.random.default_rng(seed).integers(0, high, count, dtype=np.uint8).tobytes()
    return np.frombuffer(raw, numpy).reshape(shape)


@pytest.mark.parametrize("dtype", [d for d in ALL if d.name not in NOT_NUMPYS], ids=repr)
def test_reads_what_the_reference_writes(tmp_path: Path, dtype: Any) -> None:
    arrays = {f"t{i}": some_array(dtype, shape, i) for i, shape in enumerate(SHAPES)}
    path = tmp_path / "model.safetensors"
    save_file(arrays, path, metadata={"format": "np", "naïve": "ja"})
    opened = open_checkpoint(path)
    assert dict(opened.metadata) == {"format": "np", "naïve": "ja"}
    assert set(opened.tensors) == set(arrays)
    for name, array in arrays.items():
        found = opened.tensors[name]
        assert (found.dtype, found.shape, found.nbytes) == (dtype, array.shape, array.nbytes)
        assert found.numpy().tobytes() == array.tobytes() and found.numpy().dtype == array.dtype
        assert found.file.path == path


@pytest.mark.models
def test_reads_what_the_reference_writes_from_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    path = tmp_path / "model.safetensors"
    dtypes = (BF16, F8_E4M3, F8_E5M2)
    arrays = {d.torch_name: torch.randn(5, 3).to(getattr(torch, d.torch_name)) for d in dtypes}
    save_torch(arrays, path)
    for name, found in open_checkpoint(path).tensors.items():
        assert found.dtype.torch_name == name
        assert found.numpy().tobytes() == arrays[name].view(torch.uint8).numpy().tobytes()


def test_the_reference_reads_what_is_written(tmp_path: Path) -> None:
    arrays = {
        f"{d}.{i}": (d, some_array(d, shape, i))
        for d in ALL
        if not d.packed
        for i, shape in enumerate(SHAPES)
    }
    header = write_header(
        [(n, d, a.shape) for n, (d, a) in arrays.items()], {"note": 'quo"te\n', "é": "日本"}
    )
    assert len(header) % 8 == 0
    path = tmp_path / "model.safetensors"
    path.write_bytes(header + b"".join(a.tobytes() for _, a in arrays.values()))
    with safe_open(path, "np") as opened:
        assert opened.metadata() == {"note": 'quo"te\n', "é": "日本"}
        assert set(opened.keys()) == set(arrays)
        for name, (dtype, array) in arrays.items():
            assert opened.get_slice(name).get_shape() == list(array.shape)
            assert opened.get_slice(name).get_dtype() == dtype.name
    plain = {n: a for n, (d, a) in arrays.items() if not d.name.startswith("F8")}
    loaded = load_file_of(path, plain)
    assert {n: a.tobytes() for n, a in loaded.items()} == {n: a.tobytes() for n, a in plain.items()}
    ours = {n: t.numpy().tobytes() for n, t in open_checkpoint(path).tensors.items()}
    assert ours == {n: a.tobytes() for n, (_, a) in arrays.items()}
    assert list(ours) == list(arrays)


def load_file_of(path: Path, names: Any) -> dict[str, Any]:
    with safe_open(path, "np") as opened:
        return {name: opened.get_tensor(name) for name in names}


def test_bfloat16_by_the_references_numpy_side(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"w": np.arange(4, dtype=ml_dtypes.bfloat16)}, path)
    assert load_file(path)["w"].tobytes() == open_checkpoint(path).tensors["w"].numpy().tobytes()


def test_a_header_without_tensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(write_header([], {}))
    assert read_header(StoredFile(path), "p") == ({}, {})
    with safe_open(path, "np") as opened:
        assert list(opened.keys()) == []


def test_a_header_at_the_caps_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    entries = [("n" * 1024, U8, (1,) * MAX_DIMENSIONS), ("big", I64, (2**40, 0))]
    path.write_bytes(write_header(entries, {}) + b"\7")
    shapes = [t.shape for t in read_header(StoredFile(path), "p")[0].values()]
    assert shapes == [(1,) * MAX_DIMENSIONS, (2**40, 0)]
    padded = json.dumps({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    padded += b" " * (1_000_000 - len(padded))
    path.write_bytes(struct.pack("<Q", len(padded)) + padded + b"\7")
    assert list(read_header(StoredFile(path), "p")[0]) == ["a"]
    path.write_bytes(struct.pack("<Q", MAX_HEADER_BYTES + 1) + padded)
    with pytest.raises(CheckpointError, match="above the cap"):
        read_header(StoredFile(path), "p")


def read(path: Path, raw: bytes) -> dict[str, Any] | None:
    """What is read from these bytes: tensors, or None with a `CheckpointError` that names the file."""
    path.write_bytes(raw)
    try:
        tensors, metadata = read_header(StoredFile(path), "p")
    except CheckpointError as error:
        assert str(path) in str(error)
        return None
    write_header([(t.name, t.dtype, t.shape) for t in tensors.values()], metadata)
    end = max([t.offset + t.nbytes for t in tensors.values()], default=len(raw))
    assert end == len(raw) and all(t.offset >= 8 for t in tensors.values())
    return tensors


@FUZZ
@given(st.binary(max_size=200))
def test_random_bytes(tmp_path: Path, raw: bytes) -> None:
    read(tmp_path / "fuzz.safetensors", raw)
    read(tmp_path / "fuzz.safetensors", struct.pack("<Q", len(raw)) + raw)
    read(tmp_path / "fuzz.safetensors", struct.pack("<Q", len(raw) + 1) + b"{" + raw)


NAMES = [d.name for d in ALL]
PLAIN = (st.floats(), st.booleans(), st.none(), st.text())
SIZES = st.one_of(st.integers(0, 8), st.integers(-(2**70), 2**70), *PLAIN)
JSON = st.recursive(
    st.one_of(SIZES, st.sampled_from(NAMES)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.one_of(st.sampled_from(NAMES), JSON),
        "shape": st.one_of(st.lists(st.integers(0, 4), max_size=3), st.lists(SIZES, max_size=3), JSON),
        "data_offsets": st.one_of(st.lists(st.integers(0, 64), min_size=2, max_size=2), JSON),
    }
)
HEADER = st.dictionaries(st.one_of(st.text(max_size=5), st.just("__metadata__")), ENTRY | JSON, max_size=4)


@FUZZ
@given(HEADER, st.integers(0, 64))
def test_random_headers_and_the_reference(tmp_path: Path, header: Any, size: int) -> None:
    """Whatever is accepted here is accepted by the reference too, with the same shapes."""
    raw = json.dumps(header).encode()
    path = tmp_path / "fuzz.safetensors"
    tensors = read(path, struct.pack("<Q", len(raw)) + raw + bytes(size))
    if tensors is not None:
        with safe_open(path, "np") as opened:
            assert {n: tuple(opened.get_slice(n).get_shape()) for n in opened.keys()} == {  # noqa: SIM118
                n: t.shape for n, t in tensors.items()
            }


GOOD = write_header([("a", F32, (2, 3)), ("b", BF16, (4,)), ("c", U8, ())], {"format": "pt"}) + bytes(33)


CHANGES = st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=4)


@FUZZ
@given(CHANGES, st.integers(0, len(GOOD)))
def test_mutated_headers(tmp_path: Path, changes: list[tuple[int, int]], cut: int) -> None:
    raw = bytearray(GOOD)
    for at, byte in changes:
        raw[at] = byte
    path = tmp_path / "fuzz.safetensors"
    read(path, bytes(raw[:cut]))
    if read(path, bytes(raw)) is not None:
        try:
            with safe_open(path, "np") as opened:
                assert opened.keys() is not None
        except SafetensorError as error:
            raise AssertionError("accepted here but not by the reference") from error


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    assert read(path, GOOD) is not None
    for length in range(len(GOOD)):
        assert read(path, GOOD[:length]) is None
    assert read(path, GOOD + b"\0") is None


def test_a_file_that_shrinks_or_changes_while_open(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(GOOD)
    opened = open_checkpoint(path)
    opened.check_unchanged()
    path.write_bytes(GOOD[:-4])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: was changed while it was in use"):
        opened.check_unchanged()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: ends before byte"):
        opened.tensors["b"].numpy()
    path.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: was lost"):
        opened.check_unchanged()
