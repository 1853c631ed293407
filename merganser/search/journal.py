"""Evaluations that were made, one a line, so that none is made twice."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from merganser._version import __version__
from merganser.algebra import Weights
from merganser.checkpoint import Checkpoint
from merganser.checkpoint.digest import identity
from merganser.errors import OutputError, RequestError

MARK = "merganser search journal"


class Journal:
    """A JSONL file: the first line says what it is, each other is {"key", "values", "measured"} of one evaluation.

    A key stands for a recipe's content, its models' identities, what measures, and merganser's version. A last
    line that was cut by a kill is dropped. Without a path evaluations are kept in memory only.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.known: dict[str, dict[str, Any]] = {}
        self.made = 0
        self.taken = 0
        if path is not None and path.exists():
            self._read(path)

    def _read(self, path: Path) -> None:
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise OutputError(f"{path}: cannot be read: {error.strerror or error}") from error
        whole = raw[: raw.rfind(b"\n") + 1]
        lines = whole.splitlines()
        try:
            if not lines and raw:
                raise ValueError("no whole line")
            if lines and json.loads(lines[0]).get("journal") != MARK:
                raise ValueError("its first line is another")
            for line in lines[1:]:
                entry = json.loads(line)
                self.known[entry["key"]] = entry["measured"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RequestError(
                f"{path}: is no journal of a search ({error}); move it away, or write the recipe elsewhere"
            ) from None
        if len(whole) < len(raw):
            with path.open("r+b") as file:
                file.truncate(len(whole))

    def find(self, key: str) -> dict[str, Any] | None:
        """What was measured under a key."""
        found = self.known.get(key)
        self.taken += found is not None
        return found

    def add(self, key: str, values: Mapping[str, Any], measured: dict[str, Any]) -> None:
        """Keep an evaluation; it is on the disk when this returns."""
        self.known[key] = measured
        self.made += 1
        if self.path is None:
            return
        entry = {"key": key, "values": dict(values), "measured": measured}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fresh = not self.path.exists() or not self.path.stat().st_size
            with self.path.open("ab") as file:
                if fresh:
                    file.write(_line({"journal": MARK, "merganser": __version__}))
                file.write(_line(entry))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written: {error.strerror or error}") from error


def _line(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")


class Keys:
    """Keys of merges; the identity of a checkpoint is read once."""

    def __init__(self, measure: str) -> None:
        self.measure = measure
        self._identities: dict[str, str] = {}

    def identity(self, checkpoint: Checkpoint) -> str:
        """A quick identity of a checkpoint, adapters too."""
        known = self._identities.get(str(checkpoint.path))
        if known is None:
            tensors = dict(checkpoint.tensors)
            scales = {}
            for name, delta in checkpoint.deltas.items():
                tensors |= {f"{name}/left": delta.left, f"{name}/right": delta.right}
                scales[name] = delta.scale
            known = identity(tensors) + (json.dumps(sorted(scales.items())) if scales else "")
            self._identities[str(checkpoint.path)] = known
        return known

    def key(self, weights: Weights, recipe: Any) -> str:
        """The key of a merge, made by a recipe (its canonical form)."""
        held = [self.identity(checkpoint) for checkpoint in weights.checkpoints]
        text = json.dumps(
            [__version__, self.measure, _without_paths(recipe), held], sort_keys=True, default=str
        )
        return xxhash.xxh3_128_hexdigest(text.encode("utf-8", "surrogatepass"))


def _without_paths(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {str(key): _without_paths(value) for key, value in node.items() if key != "path"}
    if isinstance(node, list | tuple):
        return [_without_paths(value) for value in node]
    return node
