"""Memory for a moment, used again: fresh pages for every block of rows would cost more than the work on them."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

Bytes = np.ndarray[Any, Any]


class _Free(threading.local):
    def __init__(self) -> None:
        self.buffers: list[Bytes] = []


_free = _Free()


class Scratch:
    """Buffers of this thread, given back when the `with` ends."""

    def __init__(self) -> None:
        self._taken: list[Bytes] = []

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, *_: object) -> None:
        _free.buffers += self._taken

    def take(self, nbytes: int) -> Bytes:
        """So many bytes, with anything in them."""
        free = _free.buffers
        free.sort(key=len)
        fitting = next((k for k, held in enumerate(free) if len(held) >= nbytes), None)
        if fitting is not None:
            buffer = free.pop(fitting)
        else:
            if free:  # one for another: there are never more than are used at once
                del free[0]
            buffer = np.empty(max(nbytes, 64), np.uint8)
        self._taken.append(buffer)
        return buffer[:nbytes]
