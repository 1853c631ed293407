"""An index that names a shard above its directory.

A downloaded model reads what lies beside it: another model, a private one, or a secret with the right
bytes.
"""

from pathlib import Path

from _build import index, run, shard

EXPECT = r"model\.safetensors\.index\.json: .*names the file '\.\./secret\.safetensors'"


def make(directory: Path) -> Path:
    shard(directory / "secret.safetensors", "a")
    model = directory / "model"
    model.mkdir()
    return index(model, {"a": "../secret.safetensors"})


if __name__ == "__main__":
    run(make)
