"""Two negative sizes, whose product is positive.

The byte count fits, and a buffer or stride computed from one of them does not.
"""

from pathlib import Path

from _build import entry, run, safetensors

EXPECT = r"model\.safetensors: .*tensor 'a' has shape \[-1, -1\]"


def make(directory: Path) -> Path:
    return safetensors(directory / "model.safetensors", {"a": entry("F32", [-1, -1], 0, 4)}, bytes(4))


if __name__ == "__main__":
    run(make)
