"""A header that nests a hundred thousand arrays.

A recursive parser overflows its stack, which in C ends the process.
"""

from pathlib import Path

from _build import run, safetensors

EXPECT = r"model\.safetensors: .*not acceptable JSON: it nests too deep"


def make(directory: Path) -> Path:
    return safetensors(directory / "model.safetensors", b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}")


if __name__ == "__main__":
    run(make)
