"""An index that nests a hundred thousand arrays.

A recursive parser overflows its stack.
"""

from pathlib import Path

from _build import run

EXPECT = r"model\.safetensors\.index\.json: .*not acceptable JSON: it nests too deep"


def make(directory: Path) -> Path:
    (directory / "model.safetensors.index.json").write_text('{"weight_map":' + "[" * 100_000)
    return directory


if __name__ == "__main__":
    run(make)
