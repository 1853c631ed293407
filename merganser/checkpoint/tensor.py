"""A tensor at rest: where its bytes are and what they mean."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from merganser.checkpoint.dtypes import DType
from merganser.checkpoint.files import StoredFile

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
        return self.size * self.dtype.itemsize

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill `buffer` with the raw bytes of the elements from flat index `start` on."""
        self.file.read_into(buffer, self.offset + start * self.dtype.itemsize)

    def numpy(self) -> np.ndarray[Any, Any]:
        """The whole tensor in memory, in its stored dtype."""
        import numpy as np

        raw = self.file.read(self.offset, self.nbytes)
        return np.frombuffer(raw, self.dtype.numpy).reshape(self.shape)
