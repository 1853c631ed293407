"""An index that says that a tensor is in one shard while it is in another.

Whoever follows the index and whoever reads all shards see different models.
"""

from pathlib import Path

from _build import index, run, shard

EXPECT = r"model\.safetensors\.index\.json: .*says that .* holds tensor .*, but .*safetensors does"


def make(directory: Path) -> Path:
    shard(directory / "1.safetensors", "a")
    shard(directory / "2.safetensors", "b")
    return index(directory, {"a": "2.safetensors", "b": "1.safetensors"})


if __name__ == "__main__":
    run(make)
