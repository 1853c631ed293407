"""One field of an entry twice.

As with a name: which offsets hold depends on the parser.
"""

from pathlib import Path

from _build import run, safetensors

EXPECT = r"model\.safetensors: .*the key 'dtype' stands twice"


def make(directory: Path) -> Path:
    header = b'{"a":{"dtype":"F32","dtype":"I32","shape":[1],"data_offsets":[0,4]}}'
    return safetensors(directory / "model.safetensors", header, bytes(4))


if __name__ == "__main__":
    run(make)
