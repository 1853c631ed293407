"""A tensor name of a million characters.

Every message and log line with the name becomes a megabyte.
"""

from pathlib import Path

from _build import entry, run, safetensors

EXPECT = r"model\.safetensors: .*tensor name 'a{80}' is empty, longer than"


def make(directory: Path) -> Path:
    return safetensors(directory / "model.safetensors", {"a" * 10**6: entry("F32", [1], 0, 4)}, bytes(4))


if __name__ == "__main__":
    run(make)
