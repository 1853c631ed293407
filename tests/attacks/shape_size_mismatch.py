"""A shape that needs more bytes than its offsets span.

A reader that trusts the shape reads the next tensor or beyond the buffer.
"""

from pathlib import Path

from _build import entry, run, safetensors

EXPECT = r"model\.safetensors: .*'a' of shape \[1000\] and dtype F32 needs 4,000 bytes but its offsets span 4"


def make(directory: Path) -> Path:
    return safetensors(directory / "model.safetensors", {"a": entry("F32", [1000], 0, 4)}, bytes(4))


if __name__ == "__main__":
    run(make)
