"""What the reductions of a plan came to, and those of whole-model scope while they are gathered."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Container, Sequence
from typing import Any

import numpy as np

from merganser.algebra.computed import ByRows, Whole
from merganser.algebra.expression import Reduce
from merganser.engine.kernels.loops import BLOCK
from merganser.engine.select import Selection

Array = np.ndarray[Any, Any]


class Ledger:
    """Values of finished reductions by the identity of their node. Shared between threads."""

    def __init__(self, keep: Container[int] = (), *, allow_nonfinite: bool = False) -> None:
        """`keep`: the identities of nodes whose flags are kept while a task runs.

        `allow_nonfinite`: parents may hold NaN and Inf.
        """
        self.allow_nonfinite = allow_nonfinite
        self.values: dict[int, float] = {}
        self.selections: dict[int, Selection] = {}
        self._sums: dict[int, list[float]] = {}
        self._kinds: dict[int, str] = {}
        self._counts: dict[int, tuple[int, Array, Array]] = {}
        self._lock = threading.Lock()
        self._made: weakref.WeakValueDictionary[int, Made] = weakref.WeakValueDictionary()
        self._kept: dict[int, Made] = {}
        self._making: dict[int, threading.Lock] = {}
        self._wanted: dict[int, set[int]] = {}
        self._keep = keep
        self._flags: weakref.WeakValueDictionary[int, Kept] = weakref.WeakValueDictionary()

    def open(self, shared: Sequence[Reduce], bins: int) -> None:
        """Start gathering whole-model reductions."""
        for reduction in shared:
            if reduction.kind == "kth_magnitude":
                size = sum(operand.size for operand in reduction.operands)
                wide = any(operand.wide for operand in reduction.operands)
                self.selections[id(reduction)] = Selection(reduction.rank, size, wide=wide, bins=bins)
            else:
                self._sums[id(reduction)] = []
                self._kinds[id(reduction)] = reduction.kind

    def is_shared(self, reduction: Reduce) -> bool:
        """Whether the reduction spans several tensors and is still being gathered."""
        return id(reduction) in self.selections or id(reduction) in self._sums

    def add_partials(self, reduction: Reduce, partials: Array) -> None:
        """The block partials of a sum or maximum over one tensor; not shared, they are all of it."""
        with self._lock:
            if id(reduction) in self._sums:
                self._sums[id(reduction)].extend(partials.tolist())
            else:
                self.values[id(reduction)] = _combined(reduction.kind, partials.tolist())

    def add_counts(self, reduction: Reduce, above: int, counts: Array, marks: Array) -> None:
        """What one tensor adds to a whole-model threshold search."""
        with self._lock:
            held = self._counts.get(id(reduction))
            if held is None:
                self._counts[id(reduction)] = (above, counts.astype(np.int64), marks.copy())
            else:
                self._counts[id(reduction)] = (held[0] + above, held[1] + counts, held[2] | marks)

    def expect(self, wanted: dict[int, set[int]]) -> None:
        """Which results the tasks of a stage will ask for, by the identity of their making."""
        self._wanted = wanted
        self._kept.clear()

    def made(self, load: Whole, make: Callable[[], tuple[Array, ...]]) -> Made:
        """What a function of whole tensors made.

        It is kept while a source uses it, and until each result that is expected was asked for, as they go to
        different tensors.
        """
        making = load.making
        with self._lock:
            one = self._making.setdefault(id(making), threading.Lock())
        with one:
            found = self._made.get(id(making))
            if found is None:
                found = self._made[id(making)] = Made(make(), set(self._wanted.get(id(making), ())))
                self._kept[id(making)] = found
            found.wanted.discard(load.index)
            if not found.wanted:
                self._kept.pop(id(making), None)
            return found

    def kept(self, load: ByRows) -> Kept | None:
        """The flags of a tensor, there as long as a source uses them; None where they are not kept."""
        if id(load) not in self._keep:
            return None
        with self._lock:
            found = self._flags.get(id(load))
            if found is None:
                found = self._flags[id(load)] = Kept(load.size)
            return found

    def settle(self, reduction: Reduce, value: float) -> None:
        """A reduction over one tensor is known."""
        with self._lock:
            self.values[id(reduction)] = value

    def close_round(self) -> bool:
        """All tensors were seen. True when every whole-model reduction is known; else the stage runs once more."""
        for identity, partials in self._sums.items():
            self.values[identity] = _combined(self._kinds[identity], partials)
        self._sums.clear()
        for identity, selection in list(self.selections.items()):
            if identity in self._counts:
                selection.learn(*self._counts.pop(identity))
            if selection.value is not None:
                self.values[identity] = selection.value
                del self.selections[identity]
        return not self.selections


class Kept:
    """The flags of a tensor, a bit each, from when they were first made. Threads write different blocks."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._bits = np.zeros(-(-size // 8), np.uint8)
        self._there = np.zeros(-(-size // BLOCK), bool)

    @property
    def complete(self) -> bool:
        """Whether all are there."""
        return bool(self._there.all())

    def read(self, start: int, out: Array) -> bool:
        """Fill `out` with the flags from `start` on, if they are there."""
        stop = start + len(out)
        if not self._there[start // BLOCK : -(-stop // BLOCK)].all():
            return False
        first = start // 8
        found = np.unpackbits(self._bits[first : -(-stop // 8)])
        out[:] = found[start - 8 * first : stop - 8 * first]
        return True

    def note(self, start: int, flags: Array) -> None:
        """Keep flags: blocks that are whole."""
        stop = start + len(flags)
        if start % BLOCK or (stop % BLOCK and stop != self.size):
            return
        self._bits[start // 8 : -(-stop // 8)] = np.packbits(flags)
        self._there[start // BLOCK : -(-stop // BLOCK)] = True


class Made:
    """Arrays, and which of them nobody asked for yet."""

    def __init__(self, arrays: tuple[Array, ...], wanted: set[int]) -> None:
        self.arrays = arrays
        self.wanted = wanted


def _combined(kind: str, partials: list[float]) -> float:
    """Fsum is exact before its one rounding, so neither blocks nor tensors have an order."""
    if kind == "max":
        return float(np.max(partials)) if partials else 0.0
    finite = all(math.isfinite(p) for p in partials)
    return math.fsum(partials) if finite else float(np.sum(partials))
