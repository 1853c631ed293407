"""An index that names a pipe.

Opening it waits for a writer that never comes: the tool hangs without a word.
"""

import os
from pathlib import Path

from _build import index, run

EXPECT = r"model\.safetensors\.index\.json: .*names 'pipe\.safetensors', which is not a regular file"


def make(directory: Path) -> Path:
    os.mkfifo(directory / "pipe.safetensors")
    return index(directory, {"a": "pipe.safetensors"})


if __name__ == "__main__":
    run(make)
