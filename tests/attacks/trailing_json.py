"""A second JSON object behind the first, inside the header.

Readers that stop at the first closing brace and readers that do not see different headers.
"""

import json
from pathlib import Path

from _build import entry, run, safetensors

EXPECT = r"model\.safetensors: .*not acceptable JSON"


def make(directory: Path) -> Path:
    header = json.dumps({"a": entry("F32", [1], 0, 4)}).encode()
    return safetensors(directory / "model.safetensors", header * 2, bytes(4))


if __name__ == "__main__":
    run(make)
