"""Means and intervals over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Student's t at 97.5 % by degrees of freedom."""


@dataclass(frozen=True)
class Figure:
    """A mean over seeds with half of its 95 % interval (Student's t over seeds; None for one seed)."""

    mean: float
    half: float | None
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """Of one value a seed."""
        count = len(values)
        mean = sum(values) / count
        if count < 2:
            return cls(mean, None, count)
        spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
        return cls(mean, _T[count - 1] * spread / math.sqrt(count), count)

    @property
    def sign(self) -> int:
        """1 or -1 where the interval leaves 0 out, else 0."""
        if self.half is None or abs(self.mean) <= self.half:
            return 0
        return 1 if self.mean > 0 else -1

    def show(self, scale: float, digits: int, signed: bool = False) -> str:
        """`86.3 ± 0.4`."""
        text = f"{scale * self.mean:{'+' if signed else ''}.{digits}f}"
        return text if self.half is None else f"{text} ± {scale * self.half:.{digits}f}"
