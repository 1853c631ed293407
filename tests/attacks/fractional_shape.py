"""A size that is 1.0.

It multiplies like an integer until something is allocated or indexed with it.
"""

from pathlib import Path

from _build import entry, run, safetensors

EXPECT = r"model\.safetensors: .*tensor 'a' has shape \[1\.0\]"


def make(directory: Path) -> Path:
    return safetensors(directory / "model.safetensors", {"a": entry("F32", [1.0], 0, 4)}, bytes(4))


if __name__ == "__main__":
    run(make)
