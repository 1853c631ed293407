"""The four merges: recipes, the settings to choose from, and running them with the command `merganser merge`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from demo.fetch import DemoError


@dataclass(frozen=True)
class Candidate:
    """One merge with its settings: `method` and `parameters` as they stand in the recipe."""

    title: str
    method: str
    parameters: Mapping[str, float]

    @property
    def settings(self) -> str:
        """The settings as text, for people."""
        return ", ".join(f"{name} {value:g}" for name, value in self.parameters.items()) or "-"

    @property
    def slug(self) -> str:
        """A name for files."""
        return "-".join([self.method, *(f"{name}{value:g}" for name, value in self.parameters.items())])

    def recipe(self, base: Path, siblings: Mapping[str, Path]) -> dict[str, Any]:
        """The recipe as it is written to a file."""
        models = [{"model": str(path), "name": name} for name, path in siblings.items()]
        found: dict[str, Any] = {"method": self.method, "base_model": str(base), "models": models}
        if self.parameters:
            found["parameters"] = dict(self.parameters)
        if self.method.startswith("dare"):
            found["seed"] = 1
        return found


def grid() -> list[list[Candidate]]:
    """For every merge, the settings that are tried on the validation rows."""
    scales = (0.6, 1.0, 1.4)
    return [
        [Candidate("mean", "linear", {})],
        [Candidate("task arithmetic", "task_arithmetic", {"lambda": s}) for s in scales],
        [Candidate("TIES", "ties", {"density": d, "lambda": s}) for d in (0.2, 0.5) for s in (1.0, 2.0)],
        [Candidate("DARE", "dare_linear", {"density": 0.5, "lambda": s}) for s in scales],
    ]


def merge(
    candidate: Candidate,
    base: Path,
    siblings: Mapping[str, Path],
    folder: Path,
    name: str,
    *,
    final: bool = False,
) -> Path:
    """Write the recipe `name`.yaml in `folder`, run it, and return the merged model's directory, `name`."""
    recipe, out = folder / f"{name}.yaml", folder / name
    recipe.write_text(yaml.safe_dump(candidate.recipe(base, siblings), sort_keys=False))
    merganser("merge", str(recipe), str(out), "--overwrite", "--quiet", *([] if final else ["--no-sync"]))
    return out


def merganser(*words: str) -> str:
    """What `merganser WORDS` prints; `DemoError` with its message where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "merganser", *words], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise DemoError(f"merganser {' '.join(words)} failed:\n{(done.stderr or done.stdout).strip()}")
    return done.stdout.strip()


def clear(folder: Path) -> None:
    """Remove a candidate that has been scored."""
    shutil.rmtree(folder)
    folder.with_suffix(".yaml").unlink()
