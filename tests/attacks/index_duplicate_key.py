"""An index that lists one tensor twice, in two shards.

Which weights are loaded depends on the parser.
"""

from pathlib import Path

from _build import run, shard

EXPECT = r"model\.safetensors\.index\.json: .*the key 'a' stands twice"


def make(directory: Path) -> Path:
    shard(directory / "1.safetensors", "a")
    text = '{"weight_map": {"a": "1.safetensors", "a": "2.safetensors"}}'
    (directory / "model.safetensors.index.json").write_text(text)
    return directory


if __name__ == "__main__":
    run(make)
