"""A shape whose product is a multiple of 2**64.

In 64-bit arithmetic the tensor has no bytes, so it fits anywhere, and indexing it reads all of memory.
"""

from pathlib import Path

from _build import entry, run, safetensors

EXPECT = r"model\.safetensors: .*tensor 'a' of shape .* overflows"


def make(directory: Path) -> Path:
    return safetensors(directory / "model.safetensors", {"a": entry("F32", [2**32, 2**32], 0, 0)})


if __name__ == "__main__":
    run(make)
