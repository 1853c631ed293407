"""Offsets that start before the data.

The tensor's bytes are the header's: what a scanner took for names is weights.
"""

from pathlib import Path

from _build import entry, run, safetensors

EXPECT = r"model\.safetensors: .*tensor 'a' has data_offsets \[-4, 0\]"


def make(directory: Path) -> Path:
    return safetensors(directory / "model.safetensors", {"a": entry("F32", [1], -4, 0)}, bytes(4))


if __name__ == "__main__":
    run(make)
