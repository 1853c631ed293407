"""How far two outputs agree, element by element.

Run as a program: it needs NumPy, and the process that measures must stay small.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt


def tensors(directory: Path) -> dict[str, tuple[Path, int, int]]:
    """Where each bfloat16 tensor of a model lies: file, offset, elements."""
    found: dict[str, tuple[Path, int, int]] = {}
    for file in sorted(directory.glob("*.safetensors")):
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
        for name, entry in header.items():
            if name != "__metadata__" and entry["dtype"] == "BF16":
                found[name] = file, 8 + length + entry["data_offsets"][0], math.prod(entry["shape"])
    return found


def ordered(place: tuple[Path, int, int]) -> npt.NDArray[np.int32]:
    """A tensor's values as integers in their order, one apart for neighbouring bfloat16 values."""
    file, offset, size = place
    bits = np.fromfile(file, np.uint16, size, offset=offset).astype(np.int32)
    return np.where(bits & 0x8000, -(bits & 0x7FFF), bits)


def agreement(one: Path, other: Path) -> dict[str, float]:
    """Shares of elements that are the same, and that are at most one bfloat16 step apart."""
    first, second = tensors(one), tensors(other)
    if set(first) != set(second):
        raise SystemExit(f"the outputs hold different tensors: {sorted(set(first) ^ set(second))[:5]}")
    same = near = total = 0
    for name, place in first.items():
        steps = np.abs(ordered(place) - ordered(second[name]))
        same += int(np.count_nonzero(steps == 0))
        near += int(np.count_nonzero(steps <= 1))
        total += steps.size
    return {"same": same / total, "within_one_step": near / total}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("one", type=Path)
    parser.add_argument("other", type=Path)
    arguments = parser.parse_args()
    print(json.dumps(agreement(arguments.one, arguments.other)))
