"""An entry with a field that the format does not have.

A reader that ignores it agrees to meanings that it does not know, such as an encoding of the bytes.
"""

from pathlib import Path

from _build import entry, run, safetensors

EXPECT = r"model\.safetensors: .*tensor 'a' does not have exactly the keys"


def make(directory: Path) -> Path:
    header = {"a": entry("F32", [1], 0, 4) | {"compression": "zip"}}
    return safetensors(directory / "model.safetensors", header, bytes(4))


if __name__ == "__main__":
    run(make)
