"""An index that lists a tensor that no shard holds.

A careless reader gives a model without it, which a library then fills with random numbers.
"""

from pathlib import Path

from _build import index, run, shard

EXPECT = r"model\.safetensors\.index\.json: .*says that 1\.safetensors holds tensor 'b', but no shard does"


def make(directory: Path) -> Path:
    shard(directory / "1.safetensors", "a")
    return index(directory, {"a": "1.safetensors", "b": "1.safetensors"})


if __name__ == "__main__":
    run(make)
