"""Torch checkpoints (.bin, .pt, .pth), read without torch and without running anything that is in them.

A torch file is a small pickle program that says how tensors are laid over storages, and the storages' raw
bytes: members of an uncompressed zip (torch 1.6 and later) or one after another behind the program (before).
Only the program is read here; the bytes stay on disk and are addressed by their offset, as in a safetensors
file.

The program is run by `_TensorsOnly`, which knows the opcodes that a state dict needs and the globals in
`_MAKERS`, storages and dtypes, and nothing else: no class of the file's choice is instantiated, no attribute
is set, and rebuilding a tensor means noting down the arguments, which are checked later, when the tensor's
name is known.
"""

from __future__ import annotations

import io
import math
import pickle
import reprlib
import struct
import threading
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import FunctionType
from typing import IO, TYPE_CHECKING, Any, ClassVar, NoReturn, cast

from merganser.checkpoint.dtypes import BY_TORCH_NAME, DType
from merganser.checkpoint.files import StoredFile, foreign
from merganser.checkpoint.header import MAX_DIMENSIONS, MAX_ELEMENTS, name_fault
from merganser.checkpoint.tensor import StoredTensor
from merganser.errors import CheckpointError, listing

if TYPE_CHECKING:
    import numpy as np

MAX_PICKLE_BYTES = 16 * 2**20
"""The cap on a pickle program and on a zip's directory. A tensor takes about 150 bytes of program."""
MAX_LINE_BYTES = 1024
"""The cap on one line of a pickle, which can only be the name of a global."""
WRAPPERS = ("state_dict", "model", "model_state_dict", "module")
"""The keys under which training scripts put a state dict beside epoch numbers and optimizer states."""

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_CHUNK = 1 << 16


def read_pickled(file: StoredFile, parent: str) -> dict[str, StoredTensor]:
    """The tensors of a torch checkpoint, as `read_state` finds them."""
    return read_state(file, parent)[0]


def read_state(file: StoredFile, parent: str) -> tuple[dict[str, StoredTensor], str | None]:
    """The tensors of a torch checkpoint by name, in the order of its state dict.

    Only its pickle program is read. The state dict is the mapping in the file or, where that holds a mapping
    with tensors under one of `WRAPPERS`, that mapping (what stands beside it is not read; two such are an
    error). Values that are no tensors are ignored, but a container of tensors inside the state dict is an
    error: nothing is flattened and nothing is lost silently. Tensors over the same storage (tied weights) are
    each listed. The second value says where they stand and what stands beside them, where there is such.

    Raises `CheckpointError` that names the file, and the tensor or the refused global where one is at fault.
    """
    if not file.size:
        raise CheckpointError(f"{file.path}: not a torch checkpoint: it is empty; download or copy it again")
    first = bytes(file.read(0, min(512, file.size)))
    if (what := foreign(first)) is not None:
        raise CheckpointError(f"{file.path}: {what}")
    start = first[:4]
    if start == b"PK\x03\x04":
        root, locate = _open_zip(file)
    elif start[:1] == b"\x80":
        root, locate = _open_legacy(file)
    else:
        raise CheckpointError(
            f"{file.path}: not a torch checkpoint (neither a zip nor a pickle of protocol 2); if it is one "
            "of torch before 0.1.10, load it with torch and save it as safetensors"
        )
    tensors = {}
    state, beside = _state_dict(root, file)
    for name, value in state.items():
        if isinstance(value, _Rebuild):
            if (fault := name_fault(name)) is not None:
                raise CheckpointError(f"{file.path}: {fault}")
            tensors[name] = _place(name, value, locate, file, parent)
        elif isinstance(value, dict | list | tuple) and _holds_tensor(value):
            raise CheckpointError(
                f"{file.path}: {str(name)[:80]!r} holds tensors in a {type(value).__name__}; a state dict "
                "maps names to tensors. Load the file with torch and save the one mapping that is the model"
            )
    if not tensors:
        keys = listing(repr(k)[:80] for k in root) or "nothing"
        raise CheckpointError(
            f"{file.path}: holds no tensor, neither at the top nor under {', '.join(WRAPPERS)} (found {keys})"
        )
    return tensors, beside


def _state_dict(root: Any, file: StoredFile) -> tuple[dict[Any, Any], str | None]:
    if not isinstance(root, dict):
        what = "one tensor without a name" if isinstance(root, _Rebuild) else f"a {type(root).__name__}"
        raise CheckpointError(f"{file.path}: holds {what}, not a mapping from names to tensors")
    nested = [k for k in WRAPPERS if isinstance(root.get(k), dict) and _holds_tensor(root[k])]
    if len(nested) > 1:
        raise CheckpointError(
            f"{file.path}: holds tensors under {listing(nested)}; it is not clear which is the model. Save "
            "that one alone"
        )
    if not nested:
        return root, None
    others = [repr(k) for k, held in root.items() if k != nested[0] and _other_weights(k, held)]
    said = (
        f"the weights under {nested[0]!r} are read, and those under {listing(others)} are not"
        if others
        else None
    )
    return cast(dict[Any, Any], root[nested[0]]), said


def _other_weights(key: Any, held: Any) -> bool:
    """Whether weights of a model stand there: tensors by name, or averages of them in any form."""
    if isinstance(held, dict) and _holds_tensor(held):
        return True
    words = str(key).lower()
    return any(word in words for word in ("ema", "average", "shadow", "swa")) and _holds_deeper(held, 3)


def _holds_deeper(held: Any, depth: int) -> bool:
    if not isinstance(held, dict | list | tuple):
        return False
    inside = list(held.values()) if isinstance(held, dict) else list(held)
    return _holds_tensor(held) or (depth > 0 and any(_holds_deeper(one, depth - 1) for one in inside))


def _holds_tensor(value: dict[Any, Any] | list[Any] | tuple[Any, ...]) -> bool:
    return any(isinstance(v, _Rebuild) for v in (value.values() if isinstance(value, dict) else value))


# Tensors laid over storages


@dataclass(frozen=True, slots=True, eq=False)
class StridedTensor(StoredTensor):
    """A tensor that does not lie in row-major order in its file: a transposed, sliced or expanded view.

    The bytes from its first to its last element are read on first use and kept: never more than the storage
    holds, whatever shape an expanded view claims. `read_into` gathers from them, with about 24 bytes of
    workspace for each element asked for.
    """

    stride: tuple[int, ...]
    _span: list[np.ndarray] = field(default_factory=list, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill `buffer` with the raw bytes of the elements in row-major order from flat index `start` on."""
        import numpy as np

        out = np.frombuffer(buffer, self._bits())
        left = np.arange(start, start + len(out), dtype=np.int64)
        at = np.zeros_like(left)
        for size, stride in zip(reversed(self.shape), reversed(self.stride), strict=True):
            at += left % size * stride
            left //= size
        np.take(self._elements(), at, out=out)

    def numpy(self) -> np.ndarray:
        """The whole tensor in memory, in its stored dtype."""
        import numpy as np

        steps = tuple(s * self.dtype.itemsize for s in self.stride)
        view = np.lib.stride_tricks.as_strided(self._elements(), self.shape, steps)
        return np.ascontiguousarray(view).view(self.dtype.numpy)

    def _bits(self) -> np.dtype:
        import numpy as np

        return np.dtype(f"u{self.dtype.itemsize}")

    def _elements(self) -> np.ndarray:
        import numpy as np

        with self._lock:
            if not self._span:
                count = _extent(self.shape, self.stride)
                raw = self.file.read(self.offset, count * self.dtype.itemsize)
                self._span.append(np.frombuffer(raw, self._bits()))
            return self._span[0]


def _extent(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """How many elements lie from the first to the last element of a view that is not empty."""
    return 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))


def _is_row_major(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    expected = 1
    for n, s in zip(reversed(shape), reversed(stride), strict=True):
        if n != 1 and s != expected:
            return False
        expected *= n
    return True


@dataclass(frozen=True, slots=True, eq=False)
class _Storage:
    """What a program says of a storage: key, element type (None: plain bytes) and element count."""

    key: str
    dtype: DType | None
    size: int

    @property
    def nbytes(self) -> int:
        return self.size * (self.dtype.itemsize if self.dtype else 1)


@dataclass(frozen=True, slots=True, eq=False)
class _StorageType:
    dtype: DType | None


@dataclass(frozen=True, slots=True, eq=False)
class _Rebuild:
    """A tensor as the program gives it, unchecked: the arguments of a function of `torch._utils`."""

    storage: Any
    offset: Any
    shape: Any
    stride: Any
    dtype: Any = None
    metadata: Any = None


Locate = Callable[[_Storage], tuple[int, int]]
"""Where the bytes of a storage are in the file (offset and count); a `ValueError` says why they are not."""


def _place(name: str, rebuild: _Rebuild, locate: Locate, file: StoredFile, parent: str) -> StoredTensor:
    """The tensor that a program describes, once every claim in it was checked."""

    def bad(what: str) -> CheckpointError:
        return CheckpointError(f"{file.path}: tensor {name!r} {what}")

    storage, offset, shape, stride = rebuild.storage, rebuild.offset, rebuild.shape, rebuild.stride
    if not isinstance(storage, _Storage):
        raise bad("is not built over a storage")
    dtype = rebuild.dtype if rebuild.dtype is not None else storage.dtype
    if not isinstance(dtype, DType):
        raise bad("has no dtype")
    if dtype.torch_name not in BY_TORCH_NAME:
        raise bad(
            f"has dtype {dtype.torch_name}, which is not read; convert it with torch "
            f"(read: {', '.join(BY_TORCH_NAME)})"
        )
    if not _is_sizes(shape) or not _is_sizes(stride) or len(shape) != len(stride) or not _is_size(offset):
        raise bad(
            f"has shape {reprlib.repr(shape)[:80]}, stride {reprlib.repr(stride)[:80]} and storage offset "
            f"{reprlib.repr(offset)[:80]}, "
            f"not two tuples of at most {MAX_DIMENSIONS} sizes each and a size"
        )
    if rebuild.metadata:
        raise bad("is marked as a negated or conjugated view, which is not read; resolve it with torch")
    if math.prod(shape) * dtype.itemsize > MAX_ELEMENTS:
        raise bad(f"of shape {shape} overflows")
    try:
        begin, count = locate(storage)
    except ValueError as error:
        raise bad(f"cannot be read: {error}") from error
    if storage.nbytes > count:
        raise bad(f"needs {storage.nbytes:,} bytes of storage {storage.key!r}, which has {count:,}")
    if 0 in shape:
        return StoredTensor(name, dtype, shape, file, begin, parent)
    end = (offset + _extent(shape, stride)) * dtype.itemsize
    if end > storage.nbytes:
        raise bad(
            f"of shape {shape}, stride {stride} and offset {offset:,} ends at byte {end:,} of storage "
            f"{storage.key!r}, which has {storage.nbytes:,}"
        )
    at = begin + offset * dtype.itemsize
    if _is_row_major(shape, stride):
        return StoredTensor(name, dtype, shape, file, at, parent)
    return StridedTensor(name, dtype, shape, file, at, parent, stride)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_ELEMENTS


def _is_sizes(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) <= MAX_DIMENSIONS and all(map(_is_size, value))


# The two file formats


def _open_zip(file: StoredFile) -> tuple[Any, Locate]:
    """The object in a zip as torch 1.6 and later write it, and the places of its storages."""

    def bad(what: str) -> CheckpointError:
        return CheckpointError(f"{file.path}: not a valid torch checkpoint: {what}")

    try:
        with zipfile.ZipFile(cast(IO[bytes], _Window(file, 0, file.size))) as archive:
            listed = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, OSError) as error:
        raise bad(f"its zip directory cannot be read ({error}); the file may have been cut") from error
    members = {info.filename: info for info in listed}
    if len(members) != len(listed):
        raise bad("its zip lists a member twice")
    programs = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(programs) != 1:
        raise bad(f"its zip has {len(programs)} members like archive/data.pkl, not one")
    prefix = programs[0].removesuffix("data.pkl")

    def member(name: str) -> tuple[int, int]:
        """Offset and count of the bytes of a member; `ValueError` where they cannot be read in place."""
        info = members.get(prefix + name)
        if info is None:
            raise ValueError(f"the zip has no member {prefix + name!r}")
        if (
            info.compress_type != zipfile.ZIP_STORED
            or info.compress_size != info.file_size
            or info.flag_bits & 1
        ):
            raise ValueError(
                f"the zip's member {info.filename!r} is compressed or encrypted; torch writes plain ones, so "
                "that they can be read in place. Load the file with torch and save it again"
            )
        head = 30
        if 0 <= info.header_offset <= file.size - head:
            local = file.read(info.header_offset, head)
            name_length, extra_length = struct.unpack_from("<HH", local, 26)
            begin = info.header_offset + head + name_length + extra_length
            if local[:4] == b"PK\x03\x04" and begin + info.file_size <= file.size:
                return begin, info.file_size
        raise ValueError(f"the zip's member {info.filename!r} does not lie inside the file")

    try:
        if prefix + "byteorder" in members:
            begin, count = member("byteorder")
            order = bytes(file.read(begin, min(count, 16)))
            if order != b"little":
                raise ValueError(f"its byte order is {order!r}; only little-endian files are read")
        begin, count = member("data.pkl")
    except ValueError as error:
        raise bad(str(error)) from error
    if count > MAX_PICKLE_BYTES:
        raise bad(f"its pickle has {count:,} bytes, above the cap of {MAX_PICKLE_BYTES:,}")
    root = _TensorsOnly(_Window(file, begin, begin + count), file).run()
    return root, lambda storage: member(f"data/{storage.key}")


def _open_legacy(file: StoredFile) -> tuple[Any, Locate]:
    """The object in a file as torch before 1.6 writes it, and the places of its storages.

    Five pickles (magic number, protocol, system, object, storage keys), then for each key an element count
    and data.
    """

    def bad(what: str) -> CheckpointError:
        return CheckpointError(f"{file.path}: not a valid torch checkpoint: {what}")

    window = _Window(file, 0, min(file.size, MAX_PICKLE_BYTES))
    if _TensorsOnly(window, file).run() != _LEGACY_MAGIC:
        raise bad("it is a pickle, but not one that torch.save wrote")
    if _TensorsOnly(window, file).run() != _LEGACY_PROTOCOL:
        raise bad("it is of an unknown version of the format")
    system = _TensorsOnly(window, file).run()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise bad("it was not written on a little-endian machine, or does not say so")
    program = _TensorsOnly(window, file)
    root = program.run()
    keys = _TensorsOnly(window, file).run()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise bad("its list of storages is not a list of keys")

    places: dict[str, tuple[int, int]] = {}
    position = window.tell()
    for key in keys:
        storage = program.storages.get(key)
        if storage is None or key in places:
            raise bad(f"it lists storage {key[:80]!r}, which no tensor uses or which is listed before")
        if position + 8 + storage.nbytes > file.size:
            raise bad(f"it ends inside storage {key[:80]!r}; the file was cut")
        (size,) = struct.unpack("<q", file.read(position, 8))
        if size != storage.size:
            raise bad(f"storage {key[:80]!r} has {size:,} elements where the program says {storage.size:,}")
        places[key] = (position + 8, storage.nbytes)
        position += 8 + storage.nbytes

    def locate(storage: _Storage) -> tuple[int, int]:
        if storage.key not in places:
            raise ValueError(f"the file has no storage {storage.key[:80]!r}")
        return places[storage.key]

    return root, locate


class _Window(io.RawIOBase):
    """Part of a file as a stream for zipfile and the unpickler. A read gives `MAX_PICKLE_BYTES` at most."""

    def __init__(self, file: StoredFile, start: int, end: int) -> None:
        self._file, self._start, self._size = file, start, end - start
        self._position = 0
        self._chunk, self._chunk_at = b"", 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if position < 0:
            raise OSError("seek to before the start")
        self._position = position
        return position

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(self._size - self._position, 0)
        count = left if size is None or size < 0 else min(size, left)
        if count > MAX_PICKLE_BYTES:
            raise CheckpointError(
                f"{self._file.path}: a pickle or a zip directory has {count:,} bytes, above the cap of "
                f"{MAX_PICKLE_BYTES:,}"
            )
        at = self._position - self._chunk_at
        if at < 0 or at + count > len(self._chunk):
            self._chunk = bytes(self._file.read(self._start + self._position, min(left, max(count, _CHUNK))))
            self._chunk_at, at = self._position, 0
        self._position += count
        return self._chunk[at : at + count]

    def readline(self, size: int | None = -1, /) -> bytes:
        line = self.read(MAX_LINE_BYTES)
        end = line.find(b"\n") + 1
        if end == 0:
            raise pickle.UnpicklingError(f"a line is longer than {MAX_LINE_BYTES} bytes or not ended")
        self._position -= len(line) - end
        return line[:end]


# The pickle program


def _make_dict(pairs: Iterable[Any] = (), /) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    _set_items(made, [item for key, value in pairs for item in (key, value)])
    return made


def _make_size(sizes: Any, /) -> tuple[Any, ...]:
    if not isinstance(sizes, tuple | list):
        raise pickle.UnpicklingError("torch.Size of something that is no list of sizes")
    return tuple(sizes)


def _make_tensor(storage: Any, offset: Any, shape: Any, stride: Any, /) -> _Rebuild:
    return _Rebuild(storage, offset, shape, stride)


def _make_tensor_v2(
    storage: Any, offset: Any, shape: Any, stride: Any, grad: Any, hooks: Any, metadata: Any = None, /
) -> _Rebuild:
    return _Rebuild(storage, offset, shape, stride, metadata=metadata)


def _make_tensor_v3(
    storage: Any,
    offset: Any,
    shape: Any,
    stride: Any,
    grad: Any,
    hooks: Any,
    dtype: Any,
    metadata: Any = None,
    /,
) -> _Rebuild:
    return _Rebuild(storage, offset, shape, stride, dtype, metadata)


def _make_parameter(data: Any, grad: Any, hooks: Any, /) -> Any:
    return data


_MAKERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _make_dict,
    ("torch", "Size"): _make_size,
    ("torch._utils", "_rebuild_tensor"): _make_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _make_tensor_v2,
    ("torch._utils", "_rebuild_tensor_v3"): _make_tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _make_parameter,
}
_UNREAD = {
    name: DType(name, name, size, False)
    for name, size in {
        "complex32": 4,
        "complex128": 16,
        "qint8": 1,
        "quint8": 1,
        "qint32": 4,
        "quint4x2": 1,
        "quint2x4": 1,
        "float4_e2m1fn_x2": 1,
    }.items()
}
"""Element types that may stand in a file but make an error where a tensor of the model has one."""
_DTYPES = BY_TORCH_NAME | _UNREAD
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32",
    "QUInt4x2Storage": "quint4x2",
    "QUInt2x4Storage": "quint2x4",
}

_OPCODES = (
    *(pickle.PROTO, pickle.FRAME, pickle.MARK, pickle.STOP, pickle.POP, pickle.POP_MARK),
    *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT, pickle.BININT1, pickle.BININT2),
    *(pickle.LONG1, pickle.BINFLOAT, pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINSTRING),
    *(pickle.SHORT_BINSTRING, pickle.BINBYTES, pickle.SHORT_BINBYTES, pickle.EMPTY_LIST, pickle.EMPTY_DICT),
    *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.BINPUT),
    *(pickle.LONG_BINPUT, pickle.MEMOIZE, pickle.BINGET, pickle.LONG_BINGET, pickle.GLOBAL),
    *(pickle.STACK_GLOBAL, pickle.BINPERSID),
)
"""What is taken from `pickle` as it is. Left out is every other way to find, build or change an object."""


class _Dispatch(dict[int, Callable[[Any], None]]):
    def __missing__(self, code: int) -> NoReturn:
        raise pickle.UnpicklingError(f"opcode {bytes([code])!r} is not one that a state dict needs")


def _set_items(target: Any, items: list[Any]) -> None:
    """Keys must be plain values: hashing deeply nested tuples overflows the interpreter's stack."""
    if not isinstance(target, dict) or len(items) % 2:
        raise pickle.UnpicklingError("items are set on something that is no dictionary")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | int | float | bytes | None):
            raise pickle.UnpicklingError(f"a dictionary has a {type(key).__name__} as its key")
        target[key] = value


class _TensorsOnly(pickle._Unpickler):
    """The unpickler in Python, with a closed list of opcodes and globals.

    Not the one in C: ten bytes can make that allocate gigabytes (a memo index, the length of a bytearray).
    """

    dispatch: ClassVar[Any] = _Dispatch(
        {opcode[0]: pickle._Unpickler.dispatch[opcode[0]] for opcode in _OPCODES}
    )
    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, window: _Window, file: StoredFile) -> None:
        super().__init__(cast(IO[bytes], window), encoding="utf-8")
        self._stored = file
        self.storages: dict[str, _Storage] = {}

    def run(self) -> Any:
        """The object that the program makes; whatever goes wrong is a `CheckpointError`."""
        try:
            return self.load()
        except CheckpointError:
            raise
        except Exception as error:
            what = "it ends early" if isinstance(error, EOFError | struct.error) else str(error)[:200]
            raise CheckpointError(
                f"{self._stored.path}: its pickle cannot be read: {what or type(error).__name__} (the cap is "
                f"{MAX_PICKLE_BYTES:,} bytes); the file is cut, damaged or hostile"
            ) from error

    def find_class(self, module: str, name: str, /) -> Any:
        """What a global stands for here, or a refusal."""
        if (module, name) in _MAKERS:
            return _MAKERS[module, name]
        if module in ("torch", "torch.cuda") and name in _STORAGES:
            return _StorageType(_DTYPES[_STORAGES[name]])
        if (module, name) in (("torch.storage", "UntypedStorage"), ("torch", "UntypedStorage")):
            return _StorageType(None)
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        raise CheckpointError(
            f"{self._stored.path}: asks for {f'{module}.{name}'[:120]!r}, which was refused: only tensors "
            "are read from a pickled checkpoint and nothing else in it is run. If you trust the file, load "
            "it with torch and save its tensors alone, best as safetensors"
        )

    def persistent_load(self, pid: Any, /) -> _Storage:
        """The storage that a program names by `("storage", type, key, device, element count[, view])`."""
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            raise pickle.UnpicklingError("it names something that is not a storage")
        _, kind, key, _, size, *view = pid
        if not isinstance(kind, _StorageType) or not isinstance(key, str) or not _is_size(size):
            raise pickle.UnpicklingError("a storage does not have a type, a key and an element count")
        if view not in ([], [None]):
            raise pickle.UnpicklingError(
                "a storage is part of another, as in torch before 0.4; save it again with torch"
            )
        storage = _Storage(key, kind.dtype, size)
        known = self.storages.setdefault(key, storage)
        if known.nbytes != storage.nbytes:
            raise pickle.UnpicklingError(f"storage {key[:80]!r} has two sizes")
        return storage

    def load_reduce(self) -> None:
        """Call one of `_MAKERS`: the only functions that can be on the stack."""
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, FunctionType) or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("it calls something that is not a function")
        self.stack.append(function(*arguments))

    def load_build(self) -> None:
        """Attributes are ignored (a state dict carries `_metadata`, the versions of its modules)."""
        self.stack.pop()
        if not isinstance(self.stack[-1], dict | _Rebuild):
            raise pickle.UnpicklingError("it sets attributes on something that is no dictionary or tensor")

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _set_items(self.stack[-1], [key, value])

    def load_setitems(self) -> None:
        items = self.pop_mark()
        _set_items(self.stack[-1], items)

    def load_append(self) -> None:
        self._extend([self.stack.pop()])

    def load_appends(self) -> None:
        self._extend(self.pop_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise pickle.UnpicklingError("items are appended to something that is no list")
        target.extend(items)

    dispatch.update(
        {
            pickle.REDUCE[0]: load_reduce,
            pickle.BUILD[0]: load_build,
            pickle.SETITEM[0]: load_setitem,
            pickle.SETITEMS[0]: load_setitems,
            pickle.APPEND[0]: load_append,
            pickle.APPENDS[0]: load_appends,
        }
    )
