"""An index that names a file that is not there.

A partial download: a careless reader gives a model without those tensors.
"""

from pathlib import Path

from _build import index, run, shard

EXPECT = r"model\.safetensors\.index\.json: .*names the file 'gone\.safetensors', which is missing"


def make(directory: Path) -> Path:
    shard(directory / "here.safetensors", "a")
    return index(directory, {"a": "here.safetensors", "b": "gone.safetensors"})


if __name__ == "__main__":
    run(make)
