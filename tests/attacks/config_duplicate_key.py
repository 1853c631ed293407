"""A config.json that says one thing twice.

Two readers see two architectures.
"""

from pathlib import Path

from _build import run, shard

EXPECT = r"config\.json: not acceptable JSON: the key 'hidden_size' stands twice"


def make(directory: Path) -> Path:
    shard(directory / "model.safetensors", "a")
    (directory / "config.json").write_text('{"hidden_size": 8, "hidden_size": 16}')
    return directory


if __name__ == "__main__":
    run(make)
