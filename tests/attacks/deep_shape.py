"""A shape that nests just less deep than the JSON parser allows.

The header parses, but the error message that shows the shape recurses once more than the stack takes.
"""

from pathlib import Path

from _build import run, safetensors

EXPECT = r"model\.safetensors: .*tensor 'a' has shape .* not a list"


def make(directory: Path) -> Path:
    shape = b"[" * 900 + b"]" * 900
    header = b'{"a":{"dtype":"F32","shape":' + shape + b',"data_offsets":[0,4]}}'
    return safetensors(directory / "model.safetensors", header, bytes(4))


if __name__ == "__main__":
    run(make)
