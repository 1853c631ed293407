"""One name twice with different offsets.

Parsers keep the first or the last, so a scanner and a loader can see different weights.
"""

from pathlib import Path

from _build import run, safetensors

EXPECT = r"model\.safetensors: .*the key 'a' stands twice"


def make(directory: Path) -> Path:
    one = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    two = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}'
    return safetensors(directory / "model.safetensors", b"{" + one + b"," + two + b"}", bytes(8))


if __name__ == "__main__":
    run(make)
