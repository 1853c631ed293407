"""A config.json that nests a hundred thousand arrays.

A recursive parser overflows its stack.
"""

from pathlib import Path

from _build import run, shard

EXPECT = r"config\.json: not acceptable JSON: it nests too deep"


def make(directory: Path) -> Path:
    shard(directory / "model.safetensors", "a")
    (directory / "config.json").write_text('{"a":' + "[" * 100_000 + "]" * 100_000 + "}")
    return directory


if __name__ == "__main__":
    run(make)
