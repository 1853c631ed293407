"""Sums as sealed checkpoints: means in f32, read from the kept sums one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from merganser import engine
from merganser.algebra import Weights
from merganser.algebra.computed import whole
from merganser.algebra.weights import Entry
from merganser.observe.partial import Partial
from merganser.observe.sums import unpacked


def seal(
    partial: Partial,
    parts: Iterable[Mapping[str, Any]],
    kinds: Sequence[str],
    order: Sequence[str],
    note: Mapping[str, Any],
    memory: int | None,
) -> dict[str, dict[str, Any]]:
    """Write `out/<kind>` for each kind and give how many tensors and the digest. `order` is the model's of tensors."""
    place = {name: number for number, name in enumerate(order)}
    written: dict[str, dict[str, Any]] = {}
    held = list(parts)
    for kind in kinds:
        entries: dict[str, Entry] = {}
        for part in held:
            path = str(partial.home / part["file"])
            for name, (key, count, shape) in part["results"].get(kind, {}).items():
                packed = shape[0] if kind == "gram" else 0
                made = whole(divided, [], path, key, int(count), packed, shapes=[shape])[0]
                entries[name] = Entry(made, 1.0)
        ordered = {name: entries[name] for name in sorted(entries, key=place.__getitem__)}
        weights = Weights(ordered, label=kind, origin=None, notes=({"statistics": {"kind": kind, **note}},))
        options = engine.SaveOptions(memory=memory, generator="merganser observe", dtype="F32")
        report = engine.save(weights, partial.made / kind, options)
        written[kind] = {"tensors": report.tensors, "digest": report.digest}
    return written


def divided(path: str, key: str, count: int, packed: int) -> np.ndarray[Any, Any]:
    """A kept sum over its count, f32; where it was packed, the matrix of that width."""
    with np.load(Path(path), allow_pickle=False) as sums:
        total: np.ndarray[Any, Any] = sums[key]
    total /= count
    made = total.astype(np.float32)
    return unpacked(made, packed) if packed else made
