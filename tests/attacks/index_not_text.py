"""An index that names a shard by a number.

The path operations raise a type error, or worse: to open(), a number is a file descriptor of the process.
"""

from pathlib import Path

from _build import index, run

EXPECT = r"model\.safetensors\.index\.json: .*the entry of tensor 'a' is not a file name"


def make(directory: Path) -> Path:
    return index(directory, {"a": 0})


if __name__ == "__main__":
    run(make)
