"""An index with its shards, and a model.safetensors beside them.

Libraries differ in which they load, so what was evaluated and what is merged can be two models.
"""

from pathlib import Path

from _build import index, run, shard

EXPECT = r"holds both model\.safetensors\.index\.json and model\.safetensors; it is not clear which"


def make(directory: Path) -> Path:
    shard(directory / "model.safetensors", "a")
    shard(directory / "1.safetensors", "a")
    return index(directory, {"a": "1.safetensors"})


if __name__ == "__main__":
    run(make)
