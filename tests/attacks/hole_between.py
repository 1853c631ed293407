"""Bytes between two tensors that belong to none.

Room to hide a program in a file that scanners call harmless (a polyglot).
"""

from pathlib import Path

from _build import entry, run, safetensors

EXPECT = r"model\.safetensors: .*bytes 4 to 8 before tensor 'b' belong to no tensor"


def make(directory: Path) -> Path:
    header = {"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 8, 12)}
    return safetensors(directory / "model.safetensors", header, bytes(12))


if __name__ == "__main__":
    run(make)
