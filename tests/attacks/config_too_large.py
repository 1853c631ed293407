"""A config.json of a terabyte (a sparse file, which takes no disk).

A careless reader reads all of it.
"""

import os
from pathlib import Path

from _build import run, shard

EXPECT = r"config\.json: larger than the cap"


def make(directory: Path) -> Path:
    shard(directory / "model.safetensors", "a")
    (directory / "config.json").touch()
    os.truncate(directory / "config.json", 2**40)
    return directory


if __name__ == "__main__":
    run(make)
