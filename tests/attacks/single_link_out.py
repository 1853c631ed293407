"""A model.safetensors that is a link to a file outside.

A downloaded model that merges in, and so publishes, someone's private weights.
"""

from pathlib import Path

from _build import run, shard

EXPECT = r"model\.safetensors: is a link that leads out of its directory"


def make(directory: Path) -> Path:
    secret = shard(directory / "secret.safetensors", "a")
    model = directory / "model"
    model.mkdir()
    (model / "model.safetensors").symlink_to(secret)
    return model


if __name__ == "__main__":
    run(make)
