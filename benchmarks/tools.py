"""The three things that are measured: the floor, merganser and mergekit, each as commands."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cases import MEMORY_LIMIT
from dataset import BenchmarkError

REPOSITORY = Path(__file__).resolve().parent.parent
MERGEKIT = "mergekit==0.1.5"
TORCH = "torch==2.13.0"
_SHARES_BLOCKS = {"btrfs", "xfs", "zfs", "bcachefs", "apfs"}


def floor(inputs: Sequence[Path], output: Path, *, filesystem: str, sync: bool) -> list[str]:
    """Read every input with cat, write one output with cp; `sync` flushes the output and its directory."""
    copy = "cp --reflink=never" if filesystem in _SHARES_BLOCKS else "cp"
    target = output / "model.safetensors"
    steps = [
        f"cat {shlex.join(map(str, inputs))} > /dev/null",
        f"mkdir {shlex.quote(str(output))}",
        f"{copy} {shlex.join([str(inputs[0]), str(target)])}",
    ]
    if sync:
        steps.append(f"sync {shlex.join([str(target), str(output)])}")
    return ["sh", "-c", " && ".join(steps)]


def moved_floor(reads: Mapping[Path, int], sized: Path, output: Path, *, filesystem: str) -> list[str]:
    """Read so many bytes of each input, write one output with cp from a file of its size."""
    copy = "cp --reflink=never" if filesystem in _SHARES_BLOCKS else "cp"
    steps = [f"head -c {count} {shlex.quote(str(path))} > /dev/null" for path, count in reads.items()]
    steps.append(f"mkdir {shlex.quote(str(output))}")
    steps.append(f"{copy} {shlex.join([str(sized), str(output / 'model.safetensors')])}")
    return ["sh", "-c", " && ".join(steps)]


def merganser(recipe: Path, output: Path, *, sync: bool) -> list[str]:
    """A whole merge by this checkout; run it in REPOSITORY."""
    command = [
        sys.executable,
        "-m",
        "merganser",
        "merge",
        str(recipe),
        str(output),
        "--memory",
        MEMORY_LIMIT,
        "--quiet",
    ]
    return command if sync else [*command, "--no-sync"]


@dataclass(frozen=True)
class Mergekit:
    """mergekit in a virtual environment of its own, with its default options."""

    python: Path
    environment: ClassVar[dict[str, str]] = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }

    def command(self, *words: str | Path) -> list[str]:
        """`mergekit-yaml` with these words."""
        return [str(self.python.with_name("mergekit-yaml")), *map(str, words)]

    def versions(self) -> dict[str, str]:
        """The versions of mergekit and what it computes with."""
        return versions(self.python, ("mergekit", "torch", "transformers", "safetensors", "numpy"))


def mergekit(python: Path | None, work: Path) -> Mergekit:
    """The given environment, or one made under `work` with pip (so that torch's CPU build can be taken)."""
    if python is None:
        home = work / "mergekit-venv"
        python = home / "bin" / "python"
        if not python.with_name("mergekit-yaml").exists():
            venv.create(home, with_pip=True, clear=True)
            for words in ([TORCH], [TORCH, MERGEKIT]):
                subprocess.run([python, "-m", "pip", "install", "--quiet", *words], check=True)
    tool = Mergekit(python.absolute())
    found = tool.versions().get("mergekit")
    if f"mergekit=={found}" != MERGEKIT:
        raise BenchmarkError(f"the benchmark is against {MERGEKIT}, but {python} has {found}")
    return tool


def versions(python: Path | str, packages: Sequence[str]) -> dict[str, str]:
    """The Python and the packages' versions in an environment, asked in a process of its own."""
    program = (
        "import importlib.metadata as m, json, platform, sys\n"
        "found = {'python': platform.python_version()}\n"
        "for name in sys.argv[1:]:\n"
        "    try: found[name] = m.version(name)\n"
        "    except m.PackageNotFoundError: pass\n"
        "print(json.dumps(found))\n"
    )
    done = subprocess.run([str(python), "-c", program, *packages], check=True, capture_output=True, text=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found
