"""A file shorter than the eight bytes of a header length.

A careless reader unpacks bytes that are not there, or reads an uninitialised length.
"""

from pathlib import Path

from _build import run

EXPECT = r"model\.safetensors: .*7 bytes are too few for a header"


def make(directory: Path) -> Path:
    path = directory / "model.safetensors"
    path.write_bytes(bytes(7))
    return path


if __name__ == "__main__":
    run(make)
