"""Two tensors over the very same bytes.

As an overlap, but a check that only compares neighbours' starts does not see it.
"""

from pathlib import Path

from _build import entry, run, safetensors

EXPECT = r"model\.safetensors: .*tensor 'b' starts at byte 0 inside 'a'"


def make(directory: Path) -> Path:
    header = {"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 0, 4)}
    return safetensors(directory / "model.safetensors", header, bytes(4))


if __name__ == "__main__":
    run(make)
