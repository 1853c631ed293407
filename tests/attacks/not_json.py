"""A header that is no JSON.

A careless reader shows a stack trace instead of which file is broken.
"""

from pathlib import Path

from _build import run, safetensors

EXPECT = r"model\.safetensors: .*not acceptable JSON"


def make(directory: Path) -> Path:
    return safetensors(directory / "model.safetensors", b'{"a": }')


if __name__ == "__main__":
    run(make)
