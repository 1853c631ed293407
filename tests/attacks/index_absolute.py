"""An index that names a shard by an absolute path.

Joining it to the directory gives that path: the model reads, or with a writer overwrites, any file of the
user.
"""

from pathlib import Path

from _build import index, run, shard

EXPECT = r"model\.safetensors\.index\.json: .*names the file '/.*other\.safetensors'; only plain file names"


def make(directory: Path) -> Path:
    other = directory / "other.safetensors"
    return index(directory, {"a": str(shard(other, "a"))})


if __name__ == "__main__":
    run(make)
