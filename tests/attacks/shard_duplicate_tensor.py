"""Two shards that hold a tensor of one name.

The last one read wins, so the order of a directory listing decides what the model is.
"""

from pathlib import Path

from _build import index, run, shard

EXPECT = r"tensor 'a' is in two files, .*1\.safetensors and .*2\.safetensors"


def make(directory: Path) -> Path:
    shard(directory / "1.safetensors", "a")
    shard(directory / "2.safetensors", "a", "b")
    return index(directory, {"a": "1.safetensors", "b": "2.safetensors"})


if __name__ == "__main__":
    run(make)
