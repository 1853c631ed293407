"""Content digests: what a tensor or a checkpoint holds, whatever files it is spread over.

The digest of a tensor is XXH3-128 over the XXH3-128 digests of its chunks of CHUNK elements, with dtype and shape in
front; that of a checkpoint is XXH3-128 over its tensors' names and digests in name order. Chunks make it possible to
digest tiles in any order. XXH3 finds damage and identifies content at memory speed; it is no signature: someone who
wants to can make another content with the same digest.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import xxhash

from merganser.checkpoint.dtypes import DType
from merganser.checkpoint.tensor import StoredTensor

CHUNK = 1 << 18
"""Elements per chunk."""
SAMPLE = 256
"""Bytes that `identity` reads at three places of a tensor."""
ALGORITHM = "xxh3-128/chunks-of-262144-elements"


def chunk_digests(raw: memoryview, dtype: DType) -> list[bytes]:
    """The digests of the chunks of a run of elements that starts at a multiple of CHUNK."""
    step = dtype.nbytes(CHUNK)
    return [xxhash.xxh3_128_digest(raw[at : at + step]) for at in range(0, len(raw), step)]


def tensor_digest(dtype: DType, shape: Iterable[int], chunks: Iterable[bytes]) -> str:
    """The digest of a tensor from those of its chunks, in order."""
    state = xxhash.xxh3_128(f"{dtype.name}{json.dumps(list(shape))}".encode())
    for chunk in chunks:
        state.update(chunk)
    return state.hexdigest()


def content_digest(tensors: Mapping[str, str]) -> str:
    """The digest of a checkpoint from those of its tensors."""
    return xxhash.xxh3_128_hexdigest(json.dumps(sorted(tensors.items()), separators=(",", ":")).encode())


def digest_tensor(tensor: StoredTensor) -> str:
    """Read a tensor and digest it, a few chunks in memory at a time."""
    chunks: list[bytes] = []
    step = 4 * CHUNK
    buffer = memoryview(bytearray(tensor.dtype.nbytes(min(tensor.size, step))))
    for start in range(0, tensor.size, step):
        part = buffer[: tensor.dtype.nbytes(min(step, tensor.size - start))]
        tensor.read_into(part, start)
        chunks += chunk_digests(part, tensor.dtype)
    return tensor_digest(tensor.dtype, tensor.shape, chunks)


def identity(tensors: Mapping[str, StoredTensor]) -> str:
    """A quick identity of a checkpoint: XXH3-128 over names, dtypes, shapes and a few bytes of every tensor.

    Three runs of SAMPLE bytes of each tensor are read: at its start, its middle and its end. Two fine-tunes of one base
    differ in some of them; a checkpoint that was written again, in other shards, has the same.
    """
    state = xxhash.xxh3_128(b"identity 1")
    for name, tensor in sorted(tensors.items()):
        state.update(json.dumps([name, tensor.dtype.name, list(tensor.shape)]).encode())
        length = min(SAMPLE, tensor.nbytes)
        for at in (0, (tensor.nbytes - length) // 2, tensor.nbytes - length):
            state.update(tensor.file.read(tensor.offset + at, length))
    return state.hexdigest()


def digest_file(path: Path) -> str:
    """The XXH3-128 of a file."""
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()
