"""A weights file that is a link to itself.

Resolving it never ends, or raises what no one catches.
"""

from pathlib import Path

from _build import run

EXPECT = r"weights\.safetensors: (is a link that leads in a circle|cannot be read)"


def make(directory: Path) -> Path:
    (directory / "weights.safetensors").symlink_to("weights.safetensors")
    return directory


if __name__ == "__main__":
    run(make)
