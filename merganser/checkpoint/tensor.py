"""A tensor at rest: where its bytes are and what they mean."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from merganser.checkpoint.dtypes import DType
from merganser.checkpoint.files import StoredFile
from merganser.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class StoredTensor:
    """A contiguous, row-major tensor inside a file.

    `parent` is the name under which errors and the manifest speak of the checkpoint it came from.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    file: StoredFile
    offset: int
    parent: str

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        return self.dtype.nbytes(self.size)

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill `buffer` with the raw bytes of the elements from flat index `start` on, which begins a byte."""
        self.file.read_into(buffer, self.offset + self.dtype.nbytes(start))

    def numpy(self) -> np.ndarray[Any, Any]:
        """The whole tensor in memory, in its stored dtype."""
        import numpy as np

        if self.dtype.packed:
            raise CheckpointError(
                f"{self.file.path}: tensor {self.name!r} is {self.dtype}, whose elements share bytes: it is carried as "
                "it stands, and no array is made of it"
            )
        raw = self.file.read(self.offset, self.nbytes)
        return np.frombuffer(raw, self.dtype.numpy).reshape(self.shape)


def same_content(a: StoredTensor, b: StoredTensor) -> bool:
    """Whether two tensors have the same type, shape and bits. Reads both as far as they agree, a piece at a time."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    if a.file is b.file and a.offset == b.offset:
        return True
    step = 1 << 20
    for start in range(0, a.size, step):
        size = a.dtype.nbytes(min(step, a.size - start))
        parts = bytearray(size), bytearray(size)
        for tensor, part in zip((a, b), parts, strict=True):
            tensor.read_into(memoryview(part), start)
        if parts[0] != parts[1]:
            return False
    return True
