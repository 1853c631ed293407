"""An index that is a link to a file outside.

As with a shard, but for the one file that is read before any name is checked.
"""

from pathlib import Path

from _build import index, run, shard

EXPECT = r"index\.json: is a link that leads out of its directory"


def make(directory: Path) -> Path:
    shard(directory / "shard.safetensors", "a")
    index(directory, {"a": "shard.safetensors"})
    model = directory / "model"
    model.mkdir()
    shard(model / "shard.safetensors", "a")
    name = "model.safetensors.index.json"
    (model / name).symlink_to(directory / name)
    return model


if __name__ == "__main__":
    run(make)
