"""A shape with NaN, which Python's parser takes though it is no JSON.

NaN compares false with everything, so a check written the wrong way round passes.
"""

from pathlib import Path

from _build import entry, run, safetensors

EXPECT = r"model\.safetensors: .*not acceptable JSON: NaN is not JSON"


def make(directory: Path) -> Path:
    return safetensors(directory / "model.safetensors", {"a": entry("F32", [float("nan")], 0, 4)}, bytes(4))


if __name__ == "__main__":
    run(make)
