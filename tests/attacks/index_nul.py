"""An index with a NUL in a shard's name.

The system's calls end the name there, after the check of its suffix has passed, or raise what no one
catches.
"""

from pathlib import Path

from _build import index, run

EXPECT = r"model\.safetensors\.index\.json: .*names the file .*x00.*only plain file names"


def make(directory: Path) -> Path:
    return index(directory, {"a": "secret\0.safetensors"})


if __name__ == "__main__":
    run(make)
