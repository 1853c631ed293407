"""An index without a weight map.

A careless reader gives a model without tensors.
"""

from pathlib import Path

from _build import index, run

EXPECT = r"model\.safetensors\.index\.json: .*has no weight_map"


def make(directory: Path) -> Path:
    return index(directory, [])


if __name__ == "__main__":
    run(make)
