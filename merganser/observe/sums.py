"""Sums over tokens: f32 within a chunk of CHUNK tokens, f64 over chunks, in the order of the batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser.observe.layers import Tap

if TYPE_CHECKING:
    import torch

CHUNK = 1024
"""Tokens that are summed in f32 before the sum is added to the f64 one."""
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
                shape = (tap.width, tap.width) if kind == "gram" else (tap.width,)
                self.arrays[f"{kind}:{tap.place}"] = np.zeros(shape, np.float64)

    @staticmethod
    def bytes_of(width: int, kinds: Sequence[str]) -> int:
        """What the sums of one tap hold."""
        return sum(8 * (width * width if kind == "gram" else width) for kind in kinds)

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

    def finish(self) -> None:
        """Fill in the half of each Gram matrix that mirrors the other; nothing may be added afterwards."""
        for key, total in self.arrays.items():
            if key.startswith("gram:"):
                for row in range(len(total)):
                    total[row + 1 :, row] = total[row, row + 1 :]

    def results(self) -> dict[str, dict[str, tuple[str, int, tuple[int, ...]]]]:
        """By kind and tensor: the key of its sum, what to divide it by, its shape."""
        found: dict[str, dict[str, tuple[str, int, tuple[int, ...]]]] = {kind: {} for kind in self.kinds}
        for place, tap in self.taps.items():
            for kind in self.kinds:
                key = f"{kind}:{place}"
                count = 1 if kind == "absmax" else max(1, int(self.tokens[self._row[place]]))
                for tensor in tap.tensors:
                    found[kind][tensor] = (key, count, self.arrays[key].shape)
        return found


def _add_gram(total: Array, part: torch.Tensor) -> None:
    """Add x^T x: its blocks on and above the diagonal only, about half of the work."""
    width = part.shape[1]
    step = max(_BLOCK, -(-width // _BLOCKS))
    for at in range(0, width, step):
        made = part[:, at : at + step].T @ part[:, at:]
        view = total[at : at + step, at:]
        np.add(view, made.numpy(), out=view)
