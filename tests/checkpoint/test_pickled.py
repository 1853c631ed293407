"""Torch checkpoints: the same bits as torch reads, and nothing but bits."""

from __future__ import annotations

import os
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from merganser.checkpoint import open_checkpoint, pickled
from merganser.checkpoint.dtypes import ALL
from merganser.checkpoint.files import StoredFile
from merganser.checkpoint.pickled import StridedTensor, read_pickled
from merganser.errors import CheckpointError, RequestError

# Files written by torch, compared with what torch reads


def torch_dtypes(torch: Any) -> list[Any]:
    return [getattr(torch, dtype.torch_name) for dtype in ALL if not dtype.packed]


def some_bits(torch: Any, dtype: Any, *shape: int) -> Any:
    """A tensor of any bits, NaN payloads included (bool: 0 and 1)."""
    count = int(np.prod(shape, dtype=np.int64))
    size = torch.empty(0, dtype=dtype).element_size()
    high = 2 if dtype is torch.bool else 256
    raw = np.random.default_rng(count + size).integers(0, high, count * size, dtype=np.uint8)
    return torch.from_numpy(raw).view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)


def bits(tensor: Any) -> bytes:
    import torch

    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def agrees(path: Path, expected: dict[str, Any]) -> dict[str, Any]:
    """Open `path` and compare every tensor with `expected`, in whole and in parts."""
    found = open_checkpoint(path, allow_pickle=True).tensors
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        stored, raw = found[name], bits(tensor)
        assert (stored.shape, stored.dtype.torch_name) == (tuple(tensor.shape), str(tensor.dtype)[6:])
        assert stored.nbytes == len(raw)
        assert stored.numpy().tobytes() == raw and stored.numpy().shape == stored.shape
        item = stored.dtype.itemsize
        for start, count in ((0, stored.size), (stored.size // 3, stored.size // 2), (stored.size, 0)):
            buffer = bytearray(count * item)
            stored.read_into(memoryview(buffer), start)
            assert buffer == raw[start * item : (start + count) * item]
    return dict(found)


@pytest.mark.models
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (3, 4), (2, 0, 3), (2, 3, 1, 5)])
@pytest.mark.parametrize("zipped", [True, False])
def test_every_dtype(tmp_path: Path, shape: tuple[int, ...], zipped: bool) -> None:
    torch = pytest.importorskip("torch")
    expected = {str(dtype): some_bits(torch, dtype, *shape) for dtype in torch_dtypes(torch)}
    if not zipped:  # torch itself cannot read these back from its old format
        expected = {
            n: t for n, t in expected.items() if n.split(".")[1] not in ("uint64", "uint32", "uint16")
        }
        expected = {n: t for n, t in expected.items() if "float8" not in n}
    path = tmp_path / "model.pt"
    torch.save(expected, path, _use_new_zipfile_serialization=zipped)
    loaded = torch.load(path, weights_only=True)
    assert {n: bits(t) for n, t in loaded.items()} == {n: bits(t) for n, t in expected.items()}
    found = agrees(path, loaded)
    assert not any(isinstance(t, StridedTensor) for t in found.values())


@pytest.mark.models
@pytest.mark.parametrize("zipped", [True, False])
def test_views(tmp_path: Path, zipped: bool) -> None:
    torch = pytest.importorskip("torch")
    whole = some_bits(torch, torch.bfloat16, 4, 6, 5)
    row = some_bits(torch, torch.float32, 5)
    expected = {
        "whole": whole,
        "tied": whole,
        "slice": whole[1:3],
        "column": whole[:, 2],
        "transposed": whole.transpose(0, 2),
        "permuted": whole.permute(1, 2, 0),
        "stepped": whole[::2, 1::3],
        "one": whole[3, 5, 4],
        "none": whole[2:2],
        "row": row,
        "expanded": row.expand(3, 5),
        "expanded scalar": row[2].expand(2, 2),
        "unfolded": row.unfold(0, 3, 1),
        "size one": row[:1].expand(1, 1).transpose(0, 1),
    }
    path = tmp_path / "model.bin"
    torch.save(expected, path, _use_new_zipfile_serialization=zipped)
    found = agrees(path, torch.load(path, weights_only=True))
    assert found["whole"].offset == found["tied"].offset
    row_major = {n for n, t in expected.items() if t.is_contiguous()}
    assert {n for n, t in found.items() if not isinstance(t, StridedTensor)} == row_major


@pytest.mark.models
@pytest.mark.parametrize("zipped", [True, False])
def test_module_state_dict_and_parameters(tmp_path: Path, zipped: bool) -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    path = tmp_path / "model.pth"
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=zipped)
    agrees(path, model.state_dict())
    torch.save(dict(model.named_parameters()), path, _use_new_zipfile_serialization=zipped)
    agrees(path, dict(model.named_parameters()))


@pytest.mark.models
@pytest.mark.parametrize("key", pickled.WRAPPERS)
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_training_checkpoint(tmp_path: Path, key: str, zipped: bool, protocol: int) -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(3, 4)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    whole = {"epoch": 3, "loss": 0.5, "note": "naïve", key: model.state_dict(), "best": None, "big": 2**70}
    whole |= {"optimizer": optimizer.state_dict(), "ema_decay": torch.tensor(0.9), "size": torch.Size([2])}
    path = tmp_path / "checkpoint.pth.tar"
    torch.save(whole, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    agrees(path, model.state_dict())


@pytest.mark.models
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_dtypes_that_are_not_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pt"
    torch.save({"a": torch.ones(2), "w": torch.ones(2, dtype=torch.complex128)}, path)
    with pytest.raises(
        CheckpointError, match=r"model\.pt: tensor 'w' has dtype complex128, which is not read"
    ):
        open_checkpoint(path, allow_pickle=True)
    torch.save({"q": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, path)
    with pytest.raises(CheckpointError, match=r"'torch\._utils\._rebuild_qtensor', which was refused"):
        open_checkpoint(path, allow_pickle=True)
    torch.save({"n": torch._neg_view(torch.ones(2))}, path)
    with pytest.raises(CheckpointError, match="'n' is marked as a negated or conjugated view"):
        open_checkpoint(path, allow_pickle=True)


@pytest.mark.models
@pytest.mark.parametrize("zipped", [True, False])
def test_no_truncated_or_flipped_file_does_harm(tmp_path: Path, zipped: bool) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pt"
    torch.save({"w": torch.ones(40), "t": torch.ones(3, 4).T}, path, _use_new_zipfile_serialization=zipped)
    raw = path.read_bytes()
    for length in range(0, len(raw), 7):
        path.write_bytes(raw[:length])
        with pytest.raises(CheckpointError, match=r"model\.pt"):
            read_pickled(StoredFile(path), "p")
    rng = np.random.default_rng(0)
    for _ in range(400):
        flipped = bytearray(raw)
        for at in rng.integers(0, len(raw), rng.integers(1, 4)):
            flipped[at] = rng.integers(0, 256)
        path.write_bytes(flipped)
        try:
            for tensor in read_pickled(StoredFile(path), "p").values():
                if tensor.size < 10**6:
                    tensor.numpy()
        except CheckpointError as error:
            assert "model.pt" in str(error)


# Files written by hand, without torch


class Global(NamedTuple):
    module: str
    name: str


class Call(NamedTuple):
    function: Any
    arguments: tuple[Any, ...]


class Persistent(NamedTuple):
    of: tuple[Any, ...]


class Raw(NamedTuple):
    opcodes: bytes


def opcodes(value: Any) -> bytes:
    """The opcodes that make `value`, with the classes above for what Python's pickler would look up first."""
    if isinstance(value, Raw):
        return value.opcodes
    if isinstance(value, Global):
        return pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode()
    if isinstance(value, Call):
        return opcodes(value.function) + opcodes(tuple(value.arguments)) + pickle.REDUCE
    if isinstance(value, Persistent):
        return opcodes(tuple(value.of)) + pickle.BINPERSID
    if isinstance(value, tuple):
        return pickle.MARK + b"".join(map(opcodes, value)) + pickle.TUPLE
    if isinstance(value, dict):
        items = b"".join(opcodes(k) + opcodes(v) for k, v in value.items())
        return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS
    if isinstance(value, list):
        return pickle.EMPTY_LIST + pickle.MARK + b"".join(map(opcodes, value)) + pickle.APPENDS
    return pickle.dumps(value, 2)[2:-1]


def program(value: Any) -> bytes:
    return pickle.PROTO + b"\x02" + opcodes(value) + pickle.STOP


FLOATS = Global("torch", "FloatStorage")


def storage(key: Any = "0", size: Any = 6, kind: Any = FLOATS) -> Persistent:
    return Persistent(("storage", kind, key, "cpu", size))


def tensor(
    over: Any = None, offset: Any = 0, shape: Any = (2, 3), stride: Any = (3, 1), *more: Any, **options: Any
) -> Call:
    rest = more or (False, Call(Global("collections", "OrderedDict"), ()))
    return Call(
        Global("torch._utils", options.get("function", "_rebuild_tensor_v2")),
        (storage() if over is None else over, offset, shape, stride, *rest),
    )


def save_zip(path: Path, data: bytes, method: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", data)
        for name, content in ({"data/0": bytes(range(24))} | members).items():
            archive.writestr(f"archive/{name.replace('__', '/')}", content)
    return path


def save_legacy(path: Path, value: Any, keys: Any = ("0",), little: Any = True, size: int = 6) -> Path:
    head = [
        0x1950A86A20F9469CFC6C,
        1001,
        {"protocol_version": 1001, "little_endian": little, "type_sizes": {}},
    ]
    parts = [*map(program, head), program(value), program(list(keys))]
    path.write_bytes(b"".join(parts) + struct.pack("<q", size) + bytes(range(24)))
    return path


SAVERS = [lambda path, value: save_zip(path, program(value)), save_legacy]


@pytest.mark.parametrize("save", SAVERS)
def test_written_by_hand(tmp_path: Path, save: Any) -> None:
    value = {"w": tensor(), "t": tensor(None, 0, (3, 2), (1, 3)), "end": tensor(None, 5, (), ())}
    found = open_checkpoint(save(tmp_path / "m.pt", value), allow_pickle=True).tensors
    whole = np.frombuffer(bytes(range(24)), "<f4").reshape(2, 3)
    assert found["w"].numpy().tobytes() == whole.tobytes()
    assert found["t"].numpy().tobytes() == whole.T.tobytes()
    assert found["end"].numpy().tobytes() == bytes(range(20, 24))


def test_forms_of_older_and_newer_writers(tmp_path: Path) -> None:
    pairs = [["old", tensor(function="_rebuild_tensor")], ["w", tensor()]]
    pairs[0][1] = Call(Global("torch._utils", "_rebuild_tensor"), (storage(), 0, (2, 3), (3, 1)))
    raw = storage(size=24, kind=Global("torch.storage", "UntypedStorage"))
    new = tensor(raw, 0, (12,), (1,), False, {}, Global("torch", "uint16"), function="_rebuild_tensor_v3")
    value = Call(Global("collections", "OrderedDict"), ([*pairs, ["new", new]],))
    found = open_checkpoint(save_zip(tmp_path / "m.pt", program(value)), allow_pickle=True).tensors
    assert {n: (t.shape, t.dtype.name) for n, t in found.items()} == {
        "old": ((2, 3), "F32"),
        "w": ((2, 3), "F32"),
        "new": ((12,), "U16"),
    }
    assert found["new"].numpy().tobytes() == bytes(range(24))


def test_pickles_are_refused_unless_allowed(tmp_path: Path) -> None:
    path = save_zip(tmp_path / "m.pt", program({"w": tensor()}))
    with pytest.raises(RequestError, match="--allow-pickle"):
        open_checkpoint(path)


def touch(marker: Path) -> tuple[Any, ...]:
    return (f"touch {marker}",)


@pytest.mark.parametrize("save", SAVERS)
@pytest.mark.parametrize(
    "function",
    [
        *("os.system", "posix.system", "nt.system", "subprocess.call", "builtins.eval", "builtins.exec"),
        *("__builtin__.eval", "builtins.getattr", "pickle.loads", "torch.load", "torch.hub.load"),
        *("torch._utils._rebuild_qtensor", "torch.nn.modules.linear.Linear", "torch.float32.__class__"),
        *("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "argparse.Namespace"),
        *("_codecs.encode", "copyreg._reconstructor", "merganser.checkpoint.os"),
    ],
)
def test_globals_are_refused_and_nothing_runs(tmp_path: Path, save: Any, function: str) -> None:
    marker = tmp_path / "marker"
    module, _, name = function.rpartition(".")
    call = Call(Global(module, name), touch(marker))
    for value in (call, {"w": tensor(), "x": call}, {"w": tensor(), "x": Global(module, name)}):
        path = save(tmp_path / "evil.pt", value)
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(path, allow_pickle=True)
        assert f"{path}: asks for {function!r}, which was refused: only tensors are read" in str(caught.value)
    assert not marker.exists()


class Touch:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, touch(self.marker)


@pytest.mark.parametrize("protocol", range(6))
def test_what_the_real_pickler_writes_does_not_run(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "marker"
    evil = pickle.dumps({"w": Touch(marker)}, protocol)
    pickle.loads(evil)
    assert marker.exists()
    marker.unlink()
    save_zip(tmp_path / "zip.pt", evil)
    (tmp_path / "plain.pt").write_bytes(evil)
    (tmp_path / "system.pt").write_bytes(program(0x1950A86A20F9469CFC6C) + program(1001) + evil)
    for path in tmp_path.glob("*.pt"):
        with pytest.raises(CheckpointError, match=path.name):
            open_checkpoint(path, allow_pickle=True)
    assert not marker.exists()


DEEP = 200_000
DAG = pickle.EMPTY_LIST + b"".join(
    pickle.BINPUT
    + b"\0"
    + pickle.POP
    + pickle.EMPTY_LIST
    + pickle.MARK
    + 2 * (pickle.BINGET + b"\0")
    + pickle.APPENDS
    for _ in range(200)
)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Raw(pickle.EMPTY_TUPLE + pickle.TUPLE1 * DEEP), "holds a tuple, not a mapping"),
        (Raw(pickle.EMPTY_LIST * DEEP + pickle.APPEND * (DEEP - 1)), "holds a list, not a mapping"),
        (
            Raw(pickle.EMPTY_DICT + pickle.EMPTY_TUPLE + pickle.TUPLE1 * DEEP + pickle.NONE + pickle.SETITEM),
            "has a tuple as its key",
        ),
        ({"w": tensor(None, 0, Raw(pickle.EMPTY_TUPLE + pickle.TUPLE1 * DEEP))}, "tensor 'w' has shape"),
        ({"w": tensor(None, 0, Raw(DAG))}, "tensor 'w' has shape"),
        ({"w": tensor(Raw(DAG))}, "tensor 'w' is not built over a storage"),
        (Raw(pickle.NONE + pickle.LONG_BINPUT + b"\xff\xff\xff\xff"), "holds a NoneType"),
        (Raw(pickle.BYTEARRAY8 + struct.pack("<Q", 2**40)), "is not one that a state dict needs"),
        (Raw(pickle.BINUNICODE8 + struct.pack("<Q", 2**40)), "is not one that a state dict needs"),
        (Raw(pickle.BINUNICODE + struct.pack("<I", 2**32 - 1)), "it ends early"),
        (Raw(pickle.FRAME + struct.pack("<Q", 2**62)), "cannot be read"),
        (Raw(pickle.EXT1 + b"\x01"), "is not one that a state dict needs"),
        (Raw(pickle.GLOBAL + b"x" * 5000), "a line is longer"),
        (Raw(pickle.BINGET + b"\x07"), "cannot be read"),
        (Raw(pickle.POP), "cannot be read"),
        (Raw(pickle.REDUCE), "cannot be read"),
        (Raw(pickle.INST + b"os\nsystem\n"), "is not one that a state dict needs"),
        (
            Raw(opcodes(Global("collections", "OrderedDict")) + pickle.EMPTY_TUPLE + pickle.NEWOBJ),
            "is not one",
        ),
        (
            Raw(opcodes(Global("torch._utils", "_rebuild_tensor")) + opcodes({"x": 1}) + pickle.BUILD),
            "sets attributes",
        ),
        (Call(Global("torch", "FloatStorage"), (3,)), "calls something that is not a function"),
        (Call(Global("torch._utils", "_rebuild_tensor"), (3,)), "cannot be read"),
        (Call(Global("torch", "Size"), (3,)), "no list of sizes"),
        (Call(Global("collections", "OrderedDict"), ([((1, 2), 3)],)), "has a tuple as its key"),
        (Persistent(("module", "x", "y", "z", 1)), "is not a storage"),
        (Persistent((["storage"],)), "is not a storage"),
        (storage(key=7), "does not have a type, a key"),
        (storage(size=-1), "does not have a type, a key"),
        (storage(size=2**80), "does not have a type, a key"),
        (storage(kind=None), "does not have a type, a key"),
        (Persistent(("storage", Global("torch", "FloatStorage"), "0", "cpu", 6, ("1", 0, 2))), "before 0.4"),
        ({"a": tensor(), "b": tensor(storage(size=5))}, "has two sizes"),
        (tensor(), "one tensor without a name"),
        ({"epoch": 3, "generator": {"w": tensor()}}, "'generator' holds tensors in a dict"),
        ({"epoch": 3, "nothing": {}}, "holds no tensor, .*found 'epoch', 'nothing'"),
        ({}, "holds no tensor, .*found nothing"),
        ({"model": {"w": tensor()}, "module": {"w": tensor()}}, "under model, module; it is not clear which"),
        ({3: tensor()}, "has a int as its name"),
        ({"a\nb": tensor()}, r"'a\\nb' is empty, longer than 1024 or has control characters"),
        ({"\x9b2J": tensor()}, "control characters"),
        ({Raw(pickle.BINUNICODE + struct.pack("<I", 3) + b"\xed\xa0\x80"): tensor()}, "control characters"),
        (
            {"w": tensor(storage(kind=Global("torch", "ComplexDoubleStorage"), size=3))},
            "'w' has dtype complex128",
        ),
        ({"w": tensor(storage(kind=Global("torch.storage", "UntypedStorage")))}, "'w' has no dtype"),
        (
            {"w": tensor(None, 1)},
            r"'w' of shape \(2, 3\), stride \(3, 1\) and offset 1 ends at byte 28 of storage",
        ),
        ({"w": tensor(None, 0, (2, 3), (4, 1))}, "'w' .* ends at byte 28"),
        ({"w": tensor(None, 0, (2, 2**40), (0, 2**40))}, "'w' .* ends at byte"),
        ({"w": tensor(None, -1)}, "'w' has shape"),
        ({"w": tensor(None, True)}, "'w' has shape"),
        ({"w": tensor(None, 0, (-2, 3))}, "'w' has shape"),
        ({"w": tensor(None, 0, (2, 3), (3, -1))}, "'w' has shape"),
        ({"w": tensor(None, 0, (2, 3), (3,))}, "'w' has shape"),
        ({"w": tensor(None, 0, [2, 3])}, "'w' has shape"),
        ({"w": tensor(None, 0, (2.0, 3))}, "'w' has shape"),
        ({"w": tensor(None, 0, (1,) * 33, (1,) * 33)}, "'w' has shape"),
        ({"w": tensor(None, 0, (2**40, 2**40), (0, 0))}, "'w' of shape .* overflows"),
        ({"w": tensor(7)}, "'w' is not built over a storage"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_hostile_programs(tmp_path: Path, value: Any, message: str) -> None:
    path = save_zip(tmp_path / "evil.pt", program(value))
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=r"evil\.pt: .*" + message) as caught:
            open_checkpoint(path, allow_pickle=True)
        assert tracemalloc.get_traced_memory()[1] < 50 * 10**6
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 2000


def test_an_expanded_view_takes_no_memory(tmp_path: Path) -> None:
    path = save_zip(tmp_path / "m.pt", program({"w": tensor(None, 2, (2**20, 2**30), (0, 0))}))
    found = open_checkpoint(path, allow_pickle=True).tensors["w"]
    buffer = bytearray(8)
    found.read_into(memoryview(buffer), 2**49)
    assert buffer == bytes(range(8, 12)) * 2


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    """A terabyte of nothing after a legacy head, or as the directory of a zip."""
    head = b"".join(map(program, (0x1950A86A20F9469CFC6C, 1001)))
    text = pickle.PROTO + b"\x02" + pickle.BINUNICODE + struct.pack("<I", 2**32 - 1)
    line = pickle.PROTO + b"\x02" + pickle.GLOBAL
    directory = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 1, 1, 2**32 - 2**20, 0, 0)
    path = tmp_path / "evil.pt"
    for start, end in ((head + text, b""), (head + line, b""), (b"PK\3\4", directory)):
        path.write_bytes(start)
        os.truncate(path, 2**32 - 2**20)
        with path.open("ab") as file:
            file.write(end)
        tracemalloc.start()
        try:
            with pytest.raises(CheckpointError, match=r"evil\.pt"):
                open_checkpoint(path, allow_pickle=True)
            assert tracemalloc.get_traced_memory()[1] < 100 * 10**6
        finally:
            tracemalloc.stop()


def test_the_cap_on_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_zip(tmp_path / "m.pt", program({"w": tensor(), "filler": "x" * 100_000}))
    assert open_checkpoint(path, allow_pickle=True).tensors
    monkeypatch.setattr(pickled, "MAX_PICKLE_BYTES", 90_000)
    with pytest.raises(
        CheckpointError, match=r"m\.pt: .*its pickle has 100,\d+ bytes, above the cap of 90,000"
    ):
        open_checkpoint(path, allow_pickle=True)
    monkeypatch.setattr(pickled, "MAX_PICKLE_BYTES", 50)
    with pytest.raises(CheckpointError, match=r"m\.pt: .*above the cap of 50"):
        open_checkpoint(path, allow_pickle=True)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"data__0": b"short"}, "'w' needs 24 bytes of storage '0', which has 5"),
        ({"byteorder": b"big"}, "its byte order is b'big'"),
        ({"inner__data.pkl": b""}, None),
    ],
)
def test_zip_members(tmp_path: Path, members: dict[str, bytes], message: str | None) -> None:
    path = tmp_path / "m.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in ({"data.pkl": program({"w": tensor()}), "data__0": bytes(24)} | members).items():
            archive.writestr(f"a/{name.replace('__', '/')}", content)
    if message is None:
        assert list(open_checkpoint(path, allow_pickle=True).tensors) == ["w"]
        return
    with pytest.raises(CheckpointError, match=r"m\.pt: .*" + message):
        open_checkpoint(path, allow_pickle=True)


def test_zips_that_are_not_torchs(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    good = program({"w": tensor()})

    def refused(message: str) -> None:
        with pytest.raises(CheckpointError, match=r"m\.pt: .*" + message):
            open_checkpoint(path, allow_pickle=True)

    save_zip(path, good, zipfile.ZIP_DEFLATED)
    refused("is compressed or encrypted")
    save_zip(path, program({"w": tensor(storage(key="9"))}))
    refused("'w' cannot be read: the zip has no member 'archive/data/9'")
    save_zip(path, program({"w": tensor(storage(key="../data.pkl"))}))
    refused("the zip has no member")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", b"")
    refused("0 members like archive/data.pkl")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", good)
        archive.writestr("b/data.pkl", good)
    refused("2 members like archive/data.pkl")
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", good)
        archive.writestr("a/data.pkl", good)
    refused("lists a member twice")
    # a storage whose local header claims to lie behind the end of the file
    save_zip(path, good)
    raw = path.read_bytes()
    at = raw.index(b"archive/data/0") - 2
    path.write_bytes(raw[:at] + b"\xff\xff" + raw[at + 2 :])
    refused("'w' cannot be read: the zip's member 'archive/data/0' does not lie inside the file")


def test_legacy_files_that_lie(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    value = {"w": tensor()}

    def refused(message: str) -> None:
        with pytest.raises(CheckpointError, match=r"m\.pt: .*" + message):
            open_checkpoint(path, allow_pickle=True)

    save_legacy(path, value, size=7)
    refused("storage '0' has 7 elements where the program says 6")
    save_legacy(path, value, keys=["1"])
    refused("lists storage '1', which no tensor uses")
    save_legacy(path, value, keys=["0", "0"])
    refused("lists storage '0', which no tensor uses or which is listed before")
    save_legacy(path, value, keys=[])
    refused("'w' cannot be read: the file has no storage '0'")
    save_legacy(path, value, keys=[3])
    refused("not a list of keys")
    save_legacy(path, value, little=False)
    refused("little-endian")
    save_legacy(path, {"w": tensor(storage(size=2**61))})
    refused("it ends inside storage '0'")
    path.write_bytes(program({"w": 1}))
    refused("not one that torch.save wrote")
    path.write_bytes(program(0x1950A86A20F9469CFC6C) + program(1002))
    refused("unknown version")
    path.write_bytes(b"tensors\0" * 100)
    refused("not a torch checkpoint")
    path.write_bytes(b"")
    refused("not a torch checkpoint")
