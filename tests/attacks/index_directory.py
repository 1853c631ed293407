"""An index that names a directory.

Opening it works on most systems, reading it does not.
"""

from pathlib import Path

from _build import index, run

EXPECT = r"model\.safetensors\.index\.json: .*names 'sub\.safetensors', which is not a regular file"


def make(directory: Path) -> Path:
    (directory / "sub.safetensors").mkdir()
    return index(directory, {"a": "sub.safetensors"})


if __name__ == "__main__":
    run(make)
