"""A header that is JSON but an array.

Readers that index what they parsed fail in odd ways.
"""

from pathlib import Path

from _build import entry, run, safetensors

EXPECT = r"model\.safetensors: .*does not start with"


def make(directory: Path) -> Path:
    return safetensors(directory / "model.safetensors", [entry("F32", [1], 0, 4)], bytes(4))


if __name__ == "__main__":
    run(make)
