"""An index that leaves out a tensor of its shard.

Weights that no listing shows but that whoever reads all of the shard loads.
"""

from pathlib import Path

from _build import index, run, shard

EXPECT = r"model\.safetensors\.index\.json: .*does not list tensors that its shards hold: b"


def make(directory: Path) -> Path:
    shard(directory / "1.safetensors", "a", "b")
    return index(directory, {"a": "1.safetensors"})


if __name__ == "__main__":
    run(make)
