"""A tensor name with the one-character form of a terminal's escape sequence (U+009B).

A check for characters below 32 does not see it.
"""

from pathlib import Path

from _build import entry, run, safetensors

EXPECT = r"model\.safetensors: .*tensor name .*x9b.*control characters"


def make(directory: Path) -> Path:
    return safetensors(directory / "model.safetensors", {"\x9b2Ja": entry("F32", [1], 0, 4)}, bytes(4))


if __name__ == "__main__":
    run(make)
