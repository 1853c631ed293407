"""A shape of a million ones.

One element, but libraries that take the shape fail above 32 or 64 dimensions, or walk all of them.
"""

from pathlib import Path

from _build import entry, run, safetensors

EXPECT = r"model\.safetensors: .*tensor 'a' has shape .* not a list of at most 32 sizes"


def make(directory: Path) -> Path:
    return safetensors(directory / "model.safetensors", {"a": entry("F32", [1] * 10**6, 0, 4)}, bytes(4))


if __name__ == "__main__":
    run(make)
