"""Metadata that nests.

The format allows text only; readers that copy metadata along would carry whatever is in it.
"""

from pathlib import Path

from _build import run, safetensors

EXPECT = r"model\.safetensors: .*__metadata__ is not a map from text to text"


def make(directory: Path) -> Path:
    return safetensors(directory / "model.safetensors", {"__metadata__": {"format": {"run": "me"}}})


if __name__ == "__main__":
    run(make)
