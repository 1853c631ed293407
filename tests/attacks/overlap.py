"""Two tensors that share bytes.

Writing to one changes the other, and a small file can claim an endless model (a zip bomb for weights).
"""

from pathlib import Path

from _build import entry, run, safetensors

EXPECT = r"model\.safetensors: .*tensor 'b' starts at byte 2 inside 'a', which ends at 4"


def make(directory: Path) -> Path:
    header = {"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 2, 6)}
    return safetensors(directory / "model.safetensors", header, bytes(6))


if __name__ == "__main__":
    run(make)
