"""A dtype whose name has a million characters.

An error message that repeats it, or looks for the nearest known name, takes that much memory and time.
"""

from pathlib import Path

from _build import entry, run, safetensors

EXPECT = r"model\.safetensors: .*tensor 'a' has dtype 'F.{1,40}, which is not read"


def make(directory: Path) -> Path:
    return safetensors(directory / "model.safetensors", {"a": entry("F" * 10**6, [1], 0, 4)}, bytes(4))


if __name__ == "__main__":
    run(make)
