"""A header length of 2**63 - 1.

A careless reader allocates what the length says, and dies of it or takes the machine with it.
"""

from pathlib import Path

from _build import run, safetensors

EXPECT = r"model\.safetensors: .*the header claims 9,223,372,036,854,775,807 bytes, above the cap"


def make(directory: Path) -> Path:
    return safetensors(directory / "model.safetensors", {}, length=2**63 - 1)


if __name__ == "__main__":
    run(make)
