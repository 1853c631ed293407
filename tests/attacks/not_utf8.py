"""A tensor name that is not UTF-8.

Readers that decode leniently see other names than strict ones: two tools see two models.
"""

from pathlib import Path

from _build import run, safetensors

EXPECT = r"model\.safetensors: .*not acceptable JSON: .*utf-8"


def make(directory: Path) -> Path:
    header = b'{"\xff": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'
    return safetensors(directory / "model.safetensors", header, bytes(4))


if __name__ == "__main__":
    run(make)
