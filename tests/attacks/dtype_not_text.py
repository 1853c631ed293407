"""A dtype that is a list.

Looking it up in a table raises a type error, for a list cannot be a key.
"""

from pathlib import Path

from _build import entry, run, safetensors

EXPECT = r"model\.safetensors: .*tensor 'a' has dtype \['F32'\], which is not read"


def make(directory: Path) -> Path:
    return safetensors(directory / "model.safetensors", {"a": entry(["F32"], [1], 0, 4)}, bytes(4))


if __name__ == "__main__":
    run(make)
