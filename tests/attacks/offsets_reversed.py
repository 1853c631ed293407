"""Offsets that end before they start.

The byte count is negative, or huge when it is taken as unsigned.
"""

from pathlib import Path

from _build import entry, run, safetensors

EXPECT = r"model\.safetensors: .*tensor 'a' lies at bytes 4 to 0"


def make(directory: Path) -> Path:
    return safetensors(directory / "model.safetensors", {"a": entry("F32", [1], 4, 0)}, bytes(4))


if __name__ == "__main__":
    run(make)
