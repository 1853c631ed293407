"""A dtype that nobody knows.

A careless reader guesses a size, and every tensor behind it is read shifted.
"""

from pathlib import Path

from _build import entry, run, safetensors

EXPECT = r"model\.safetensors: .*tensor 'a' has dtype 'F23', which is not read; did you mean 'F32'"


def make(directory: Path) -> Path:
    return safetensors(directory / "model.safetensors", {"a": entry("F23", [1], 0, 4)}, bytes(4))


if __name__ == "__main__":
    run(make)
