"""An index that names a shard above its directory in the way of Windows.

A check for slashes does not see it.
"""

from pathlib import Path

from _build import index, run

EXPECT = r"model\.safetensors\.index\.json: .*names the file .*only plain file names"


def make(directory: Path) -> Path:
    return index(directory, {"a": "..\\secret.safetensors"})


if __name__ == "__main__":
    run(make)
