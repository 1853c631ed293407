"""Bytes behind the last tensor that belong to none.

A zip archive is found from its end, so the file can be a checkpoint and an archive of code at once.
"""

from pathlib import Path

from _build import entry, run, safetensors

EXPECT = r"model\.safetensors: .*bytes 4 to 8 at the end belong to no tensor"


def make(directory: Path) -> Path:
    return safetensors(directory / "model.safetensors", {"a": entry("F32", [1], 0, 4)}, bytes(4) + b"PK\5\6")


if __name__ == "__main__":
    run(make)
