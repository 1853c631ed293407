"""Offsets that end behind the file.

With a memory map, touching them kills the process; with a buffer, it reads someone else's memory.
"""

from pathlib import Path

from _build import entry, run, safetensors

EXPECT = r"model\.safetensors: .*tensor 'a' lies at bytes 0 to 4,000 of 4 bytes of data"


def make(directory: Path) -> Path:
    return safetensors(directory / "model.safetensors", {"a": entry("F32", [1000], 0, 4000)}, bytes(4))


if __name__ == "__main__":
    run(make)
