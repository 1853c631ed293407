"""Sums over tokens: f32 within a chunk of CHUNK tokens, f64 over chunks, in the order of the batches.

Of a Gram matrix only blocks on and above the diagonal are computed, held and kept, one after the other in one row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser.observe.layers import Tap

if TYPE_CHECKING:
    import torch

CHUNK = 1024
"""Tokens that are summed in f32 before the sum is added to the f64 one."""
LAYOUT = 2
"""Of what is kept; sums in another layout (1: whole Gram matrices) are not gone on with."""
_BLOCK, _BLOCKS = 128, 8

Array = np.ndarray[Any, Any]


class Sums:
    """What is kept of the inputs at some taps. `arrays` and `tokens` are all its state."""

    def __init__(self, taps: Sequence[Tap], kinds: Sequence[str]) -> None:
        self.taps = {tap.place: tap for tap in taps}
        self.kinds = tuple(kinds)
        self.arrays: dict[str, Array] = {}
        self.tokens = np.zeros(len(taps), np.int64)
        self._row = {tap.place: row for row, tap in enumerate(taps)}
        for tap in taps:
            for kind in kinds:
                self.arrays[f"{kind}:{tap.place}"] = np.zeros(_size(tap.width, kind), np.float64)

    @staticmethod
    def bytes_of(width: int, kinds: Sequence[str]) -> int:
        """What the sums of one tap hold."""
        return sum(8 * _size(width, kind) for kind in kinds)

    def add(self, place: str, values: torch.Tensor) -> None:
        """Take in the values [tokens, in] f32 at a tap."""
        self.tokens[self._row[place]] += len(values)
        for start in range(0, len(values), CHUNK):
            part = values[start : start + CHUNK]
            for kind in self.kinds:
                total = self.arrays[f"{kind}:{place}"]
                if kind == "gram":
                    _add_gram(total, part)
                elif kind == "absmax":
                    np.maximum(total, part.abs().amax(0).numpy(), out=total)
                else:
                    total += (part if kind == "mean" else part * part).sum(0).numpy()

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Go on from a state that was kept."""
        self.tokens[:] = arrays["tokens"]
        for key in self.arrays:
            self.arrays[key][...] = arrays[key]

    def state(self) -> dict[str, Array]:
        """All there is to keep."""
        return {"tokens": self.tokens, **self.arrays}

    def results(self) -> dict[str, dict[str, tuple[str, int, tuple[int, ...]]]]:
        """By kind and tensor: the key of its sum, what to divide it by, the shape of the statistic."""
        found: dict[str, dict[str, tuple[str, int, tuple[int, ...]]]] = {kind: {} for kind in self.kinds}
        for place, tap in self.taps.items():
            for kind in self.kinds:
                key = f"{kind}:{place}"
                count = 1 if kind == "absmax" else max(1, int(self.tokens[self._row[place]]))
                shape = (tap.width, tap.width) if kind == "gram" else (tap.width,)
                for tensor in tap.tensors:
                    found[kind][tensor] = (key, count, shape)
        return found


def unpacked(held: Array, width: int) -> Array:
    """The blocks of a Gram matrix as the matrix [width, width], its lower half the mirror of the upper one."""
    full = np.empty((width, width), held.dtype)
    for at, block in _blocks(held, width):
        square = np.triu(block[:, : len(block)])
        full[at : at + len(block), at : at + len(block)] = square + np.triu(square, 1).T
        right = block[:, len(block) :]
        full[at : at + len(block), at + len(block) :] = right
        full[at + len(block) :, at : at + len(block)] = right.T
    return full


def _add_gram(total: Array, part: torch.Tensor) -> None:
    """Add x^T x."""
    for at, block in _blocks(total, part.shape[1]):
        made = part[:, at : at + len(block)].T @ part[:, at:]
        np.add(block, made.numpy(), out=block)


def _blocks(held: Array, width: int) -> Iterator[tuple[int, Array]]:
    """Views of the blocks: some rows from the column on that has the number of the first, and that number."""
    start = 0
    for at in range(0, width, step := _step(width)):
        rows = min(step, width - at)
        size = rows * (width - at)
        yield at, held[start : start + size].reshape(rows, width - at)
        start += size


def _step(width: int) -> int:
    return max(_BLOCK, -(-width // _BLOCKS))


def _size(width: int, kind: str) -> int:
    """Numbers that the sum of a kind holds."""
    if kind != "gram":
        return width
    step = _step(width)
    return sum(min(step, width - at) * (width - at) for at in range(0, width, step))
