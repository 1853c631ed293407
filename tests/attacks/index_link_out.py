"""A shard that is a link to a file outside.

The name is plain, so a check of names passes, and the model reads another's bytes.
"""

from pathlib import Path

from _build import index, run, shard

EXPECT = r"shard\.safetensors: is a link that leads out of its directory"


def make(directory: Path) -> Path:
    secret = shard(directory / "secret.safetensors", "a")
    model = directory / "model"
    model.mkdir()
    (model / "shard.safetensors").symlink_to(secret)
    return index(model, {"a": "shard.safetensors"})


if __name__ == "__main__":
    run(make)
