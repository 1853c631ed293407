"""A directory that looks like the Hugging Face cache but links to a file outside its blobs.

The exception made for the cache's own links must not let any other through.
"""

from pathlib import Path

from _build import run, shard

EXPECT = r"model\.safetensors: is a link that leads out of its directory"


def make(directory: Path) -> Path:
    secret = shard(directory / "secret.safetensors", "a")
    model = directory / "models--o--n" / "snapshots" / "abc"
    model.mkdir(parents=True)
    (directory / "models--o--n" / "blobs").mkdir()
    (model / "model.safetensors").symlink_to(secret)
    return model


if __name__ == "__main__":
    run(make)
