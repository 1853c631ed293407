"""A size that is true.

In Python true is an integer and counts as one; other readers refuse or read something else.
"""

from pathlib import Path

from _build import entry, run, safetensors

EXPECT = r"model\.safetensors: .*tensor 'a' has shape \[True\]"


def make(directory: Path) -> Path:
    return safetensors(directory / "model.safetensors", {"a": entry("F32", [True], 0, 4)}, bytes(4))


if __name__ == "__main__":
    run(make)
