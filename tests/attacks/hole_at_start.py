"""Bytes before the first tensor that belong to none.

Room to hide a program in a file that scanners call harmless (a polyglot).
"""

from pathlib import Path

from _build import entry, run, safetensors

EXPECT = r"model\.safetensors: .*bytes 0 to 4 before tensor 'a' belong to no tensor"


def make(directory: Path) -> Path:
    return safetensors(directory / "model.safetensors", {"a": entry("F32", [1], 4, 8)}, bytes(8))


if __name__ == "__main__":
    run(make)
