"""Offsets near 2**64.

Adding the header's length wraps around, and the tensor lies inside the header again.
"""

from pathlib import Path

from _build import entry, run, safetensors

EXPECT = r"model\.safetensors: .*tensor 'a' has data_offsets \[1844.* not two sizes"


def make(directory: Path) -> Path:
    return safetensors(directory / "model.safetensors", {"a": entry("F32", [1], 2**64 - 4, 2**64)}, bytes(4))


if __name__ == "__main__":
    run(make)
