"""How output tensors are spread over files: every byte's place is known before the first is written."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from merganser.checkpoint.header import MAX_HEADER_BYTES, write_header
from merganser.checkpoint.layout import MANIFEST_KEY as METADATA_KEY
from merganser.checkpoint.names import STEMS, shard_name
from merganser.engine.plan import Output
from merganser.errors import RequestError

ROOM = 4096
"""Bytes that a manifest may grow by between the plan and the end."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One safetensors file: its name, header, and the offset of every tensor in it."""

    name: str
    header: bytes
    offsets: dict[str, int]
    size: int


def lay_out(outputs: Sequence[Output], shard_size: int, stem: str = "model") -> list[Shard]:
    """Tensors in order, a new file whenever the next would pass `shard_size` (a larger tensor gets its own).

    What no library reads in shards (an adapter) has one file whatever its size.
    """
    groups: list[list[Output]] = [[]]
    filled = 0
    splits = stem.split(".")[0] in STEMS
    for output in outputs:
        if groups[-1] and filled + output.nbytes > shard_size and splits:
            groups.append([])
            filled = 0
        groups[-1].append(output)
        filled += output.nbytes
    names = [f"{stem}.safetensors"]
    if len(groups) > 1:
        names = [shard_name(stem, k + 1, len(groups)) for k in range(len(groups))]
    return [_shard(name, group) for name, group in zip(names, groups, strict=True)]


def one_file(outputs: Sequence[Output], name: str, manifest: str) -> Shard:
    """All tensors in the file `name`, with room in its header for a manifest about as long as this one."""
    return _shard(name, outputs, {METADATA_KEY: manifest}, len(manifest) // 16 + ROOM)


def with_manifest(shard: Shard, outputs: Sequence[Output], manifest: str) -> bytes:
    """The header of a shard that `one_file` laid out, with the manifest as it is, padded to the same length."""
    again = _shard(shard.name, outputs, {METADATA_KEY: manifest}, 0).header
    assert len(again) <= len(shard.header)
    return struct.pack("<Q", len(shard.header) - 8) + again[8:].ljust(len(shard.header) - 8)


def _shard(
    name: str, group: Sequence[Output], metadata: Mapping[str, str] | None = None, room: int = 0
) -> Shard:
    # Wide elements first, so that every tensor starts at a multiple of its element size (readers map them in place).
    ordered = sorted(group, key=lambda output: -output.dtype.itemsize)
    entries = [(o.name, o.dtype, o.shape) for o in ordered]
    header = write_header(entries, {"format": "pt", **(metadata or {})})
    if room:
        length = len(header) - 8 + room + -room % 8
        if length > MAX_HEADER_BYTES:
            raise RequestError(
                f"{name}: the header of one file would have {length:,} bytes, more than readers take; give a directory"
            )
        header = struct.pack("<Q", length) + header[8:].ljust(length)
    offsets, position = {}, len(header)
    for output in ordered:
        offsets[output.name] = position
        position += output.nbytes
    return Shard(name, header, offsets, position)


def index(shards: Sequence[Shard], outputs: Sequence[Output]) -> dict[str, object]:
    """The content of the index beside several files."""
    weight_map = {name: shard.name for shard in shards for name in shard.offsets}
    return {
        "metadata": {"total_size": sum(output.nbytes for output in outputs)},
        "weight_map": {output.name: weight_map[output.name] for output in outputs},
    }
