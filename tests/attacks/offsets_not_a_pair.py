"""Offsets with a third number.

A reader that takes the first and the last sees other bytes than one that takes the first two.
"""

from pathlib import Path

from _build import run, safetensors

EXPECT = r"model\.safetensors: .*tensor 'a' has data_offsets \[0, 4, 8\], not two sizes"


def make(directory: Path) -> Path:
    header = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}
    return safetensors(directory / "model.safetensors", header, bytes(8))


if __name__ == "__main__":
    run(make)
