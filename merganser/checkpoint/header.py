"""The safetensors header, read as something hostile and written as something plain.

Format: 8 bytes little-endian length N, N bytes of JSON `{name: {dtype, shape, data_offsets}}`, then the data.
Every rule below is checked before anything in the header is used; `tests/attacks` holds one file per rule.
"""

from __future__ import annotations

import json
import math
import reprlib
import struct
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from merganser.checkpoint.dtypes import ALL, BY_NAME, DType
from merganser.checkpoint.files import StoredFile, foreign, other_weights
from merganser.checkpoint.tensor import StoredTensor
from merganser.errors import CheckpointError, did_you_mean

MAX_HEADER_BYTES = 100_000_000
"""The cap of the reference implementation; a header of a model of 100,000 tensors is about 12 MB."""
MAX_DIMENSIONS = 32
MAX_ELEMENTS = 2**62
MAX_NAME_LENGTH = 1024


def read_header(file: StoredFile, parent: str) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The tensors of a safetensors file in file order, and its `__metadata__`.

    Raises `CheckpointError` naming the file, and the tensor where one is at fault.
    """

    def bad(what: str) -> CheckpointError:
        return CheckpointError(f"{file.path}: not a valid safetensors file: {what}")

    again = "the file was cut short: download or copy it again"
    if not file.size:
        raise bad("it is empty; download or copy it again")
    start = bytes(file.read(0, min(file.size, 512)))
    what = None if start[8:9] == b"{" else foreign(start) or other_weights(start)
    if what is not None:
        raise CheckpointError(f"{file.path}: {what}")
    if file.size < 8:
        raise bad(f"{file.size} bytes are too few for a header; {again}")
    (length,) = struct.unpack("<Q", start[:8])
    if length > MAX_HEADER_BYTES:
        raise bad(f"the header claims {length:,} bytes, above the cap of {MAX_HEADER_BYTES:,}")
    if 8 + length > file.size:
        raise bad(
            f"the header claims {length:,} bytes but the file has {file.size - 8:,} after the length; {again}"
        )
    raw = file.read(8, length)
    if raw[:1] != b"{":
        raise bad("the header does not start with '{'")
    try:
        header = parse_json(raw)
    except ValueError as error:
        raise bad(f"the header is not acceptable JSON: {error}") from error

    metadata = header.pop("__metadata__", {})
    if not _is_text_map(metadata):
        raise bad("__metadata__ is not a map from text to text, or holds half of a surrogate pair")

    data_start, data_size = 8 + length, file.size - 8 - length
    tensors: dict[str, StoredTensor] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        dtype, shape, begin, end = _entry(name, entry, data_size, bad)
        tensors[name] = StoredTensor(name, dtype, shape, file, data_start + begin, parent)
        spans.append((begin, end, name))

    position = 0
    previous = "the header"
    for begin, end, name in sorted(spans):
        if begin < position:
            raise bad(
                f"tensor {name!r} starts at byte {begin:,} inside {previous!r}, which ends at {position:,}"
            )
        if begin > position:
            raise bad(f"bytes {position:,} to {begin:,} before tensor {name!r} belong to no tensor")
        position, previous = end, name
    if position != data_size:
        raise bad(f"bytes {position:,} to {data_size:,} at the end belong to no tensor")
    return tensors, metadata


def _entry(name: str, entry: Any, data_size: int, bad: Any) -> tuple[DType, tuple[int, ...], int, int]:
    where = f"tensor {name!r}"
    if (fault := name_fault(name)) is not None:
        raise bad(fault)
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise bad(f"{where} does not have exactly the keys dtype, shape and data_offsets")
    dtype = BY_NAME.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        known = ", ".join(d.name for d in ALL)
        told = reprlib.repr(entry["dtype"])[:40]
        hint = did_you_mean(told.strip("'\""), BY_NAME)
        raise bad(f"{where} has dtype {told}, which is not read{hint} (read: {known})")
    shape = entry["shape"]
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(_is_size(n) for n in shape):
        raise bad(
            f"{where} has shape {reprlib.repr(shape)[:80]}, not a list of at most {MAX_DIMENSIONS} sizes"
        )
    size = math.prod(shape)
    nbytes = dtype.nbytes(size)
    if nbytes > MAX_ELEMENTS:
        raise bad(f"{where} of shape {shape} overflows")
    offsets = entry["data_offsets"]
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(n) for n in offsets):
        raise bad(f"{where} has data_offsets {reprlib.repr(offsets)[:80]}, not two sizes")
    begin, end = offsets
    if begin > end or end > data_size:
        cut = "; if the file was cut short, download or copy it again" if begin <= end else ""
        raise bad(f"{where} lies at bytes {begin:,} to {end:,} of {data_size:,} bytes of data{cut}")
    if size * dtype.bits % 8:
        raise bad(f"{where} of shape {shape} and dtype {dtype} does not fill its last byte")
    if end - begin != nbytes:
        raise bad(
            f"{where} of shape {shape} and dtype {dtype} needs {nbytes:,} bytes "
            f"but its offsets span {end - begin:,}"
        )
    return dtype, tuple(shape), begin, end


def write_header(entries: Iterable[tuple[str, DType, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON for tensors laid out back to back in the given order, padded to 8-align the data."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, dtype, shape in entries:
        end = position + dtype.nbytes(math.prod(shape))
        header[name] = {"dtype": dtype.name, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw


def parse_json(raw: bytes | bytearray) -> dict[str, Any]:
    """A JSON object from outside: UTF-8, no duplicate key, no NaN, no deep nesting. Raises `ValueError`."""
    text = raw.decode("utf-8")

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise ValueError(f"the key {key[:80]!r} stands twice")
            result[key] = value
        return result

    def no_constant(text: str) -> Any:
        raise ValueError(f"{text} is not JSON")

    try:
        value = json.loads(text, object_pairs_hook=no_duplicates, parse_constant=no_constant)
    except RecursionError:
        raise ValueError("it nests too deep") from None
    if not isinstance(value, dict):
        raise ValueError("it is not an object")
    return value


def name_fault(name: Any) -> str | None:
    """What is wrong with a tensor's name, or None. A good one is a line of text that UTF-8 can hold."""
    if not isinstance(name, str):
        return f"a tensor has a {type(name).__name__} as its name, not text"
    if not name or len(name) > MAX_NAME_LENGTH or any(unicodedata.category(c) in ("Cc", "Cs") for c in name):
        return f"tensor name {name[:80]!r} is empty, longer than {MAX_NAME_LENGTH} or has control characters"
    return None


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_ELEMENTS


def _is_text_map(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_text(k) and _is_text(v) for k, v in value.items())


def _is_text(value: Any) -> bool:
    """Text that can be written again: JSON can escape half of a surrogate pair, which UTF-8 cannot hold."""
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)
