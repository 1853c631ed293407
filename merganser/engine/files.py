"""How output tensors are spread over files: every byte's place is known before the first is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from merganser.checkpoint.header import write_header
from merganser.checkpoint.names import STEMS, shard_name
from merganser.engine.plan import Output


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


def _shard(name: str, group: Sequence[Output]) -> Shard:
    # Wide elements first, so that every tensor starts at a multiple of its element size (readers map them in place).
    ordered = sorted(group, key=lambda output: -output.dtype.itemsize)
    header = write_header([(o.name, o.dtype, o.shape) for o in ordered], {"format": "pt"})
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
