"""A header length that is allowed but goes beyond the file.

A careless reader takes a short read for the header, or waits for bytes that never come.
"""

from pathlib import Path

from _build import entry, run, safetensors

EXPECT = r"model\.safetensors: .*the header claims 90,000,000 bytes but the file has"


def make(directory: Path) -> Path:
    return safetensors(
        directory / "model.safetensors", {"a": entry("F32", [1], 0, 4)}, bytes(4), length=90_000_000
    )


if __name__ == "__main__":
    run(make)
