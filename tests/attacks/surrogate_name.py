"""A tensor name with half of a surrogate pair, which JSON can escape and UTF-8 cannot hold.

The file opens, and an hour later writing the result fails when its header is encoded.
"""

from pathlib import Path

from _build import run, safetensors

EXPECT = r"model\.safetensors: .*tensor name .*ud800.* has control characters"


def make(directory: Path) -> Path:
    header = b'{"\\ud800": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'
    return safetensors(directory / "model.safetensors", header, bytes(4))


if __name__ == "__main__":
    run(make)
