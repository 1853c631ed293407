"""A tensor without a name.

It vanishes from listings and breaks whoever splits names at dots.
"""

from pathlib import Path

from _build import entry, run, safetensors

EXPECT = r"model\.safetensors: .*tensor name '' is empty"


def make(directory: Path) -> Path:
    return safetensors(directory / "model.safetensors", {"": entry("F32", [1], 0, 4)}, bytes(4))


if __name__ == "__main__":
    run(make)
