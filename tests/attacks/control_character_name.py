"""A tensor name with a terminal's escape sequence.

A tool that prints names lets the file move the cursor, recolour or retitle the user's terminal.
"""

from pathlib import Path

from _build import entry, run, safetensors

EXPECT = r"model\.safetensors: .*tensor name .*x1b.*control characters"


def make(directory: Path) -> Path:
    return safetensors(directory / "model.safetensors", {"\x1b[2Ja": entry("F32", [1], 0, 4)}, bytes(4))


if __name__ == "__main__":
    run(make)
