"""Metadata with half of a surrogate pair, which JSON can escape and UTF-8 cannot hold.

The file opens, and an hour later writing the result fails when its header is encoded.
"""

from pathlib import Path

from _build import run, safetensors

EXPECT = r"model\.safetensors: .*__metadata__ is not .*surrogate"


def make(directory: Path) -> Path:
    return safetensors(directory / "model.safetensors", b'{"__metadata__": {"note": "\\ud800"}}')


if __name__ == "__main__":
    run(make)
