"""A size of ten thousand digits.

Converting it takes quadratic time, and a reader that catches only syntax errors shows a stack trace.
"""

from pathlib import Path

from _build import run, safetensors

EXPECT = r"model\.safetensors: .*not acceptable JSON"


def make(directory: Path) -> Path:
    header = b'{"a":{"dtype":"F32","shape":[' + b"9" * 10_000 + b'],"data_offsets":[0,4]}}'
    return safetensors(directory / "model.safetensors", header, bytes(4))


if __name__ == "__main__":
    run(make)
