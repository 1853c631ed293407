"""How recipes that merganser writes name what they found on disk: one rule.

A path that was given relative is written relative to the folder of the recipe's file, wherever it was found from, so
that the file and what lies beside it can move together; an absolute one stays absolute, and what is no path here (a hub
id, a word such as `union`, another document) stays as it is. Reading looks in the working directory first: where the
relative path leads to something else from there, the absolute one is written.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from merganser.algebra import Weights
from merganser.methods.steps import StepParameter, get_step

_KEYS = frozenset(
    ("model", "base_model", "source_model", "path", "lora", "statistics", "tokenizer_source", "source")
)
"""Keys of a recipe, its steps apart, whose text may be a path."""
_WORDS = frozenset(("union", "base"))
"""What a vocabulary's source is when it is no path."""


def moved(documents: Sequence[Any], source: Path | None, folder: Path) -> list[Any]:
    """The documents of a recipe that was read in the folder `source`, for a file in `folder`."""
    names = {one["name"] for one in documents if isinstance(one, dict) and isinstance(one.get("name"), str)}
    mover = _Mover(names, source, folder)
    return [mover.walk(one, "") for one in documents]


def path_from(folder: Path, given: str, source: Path | None = None) -> str:
    """A path for a recipe in `folder`, found in the working directory or in `source`. The name of a link stays."""
    found = _found(given, source)
    return given if found is None or Path(given).expanduser().is_absolute() else beside(folder, found)


def beside(folder: Path, place: Path) -> str:
    """The path of a place from `folder`; absolute where the working directory has something else of that name."""
    real = place.resolve() if place.name in ("", "..") else place.parent.resolve() / place.name
    spelled = Path(os.path.relpath(real, folder.resolve()))
    clashes = spelled.exists() and not (place.exists() and spelled.samefile(place))
    return str(real) if clashes else spelled.as_posix()


@dataclass(frozen=True)
class _Mover:
    documents: Collection[str]
    source: Path | None
    folder: Path

    def walk(self, value: Any, key: str) -> Any:
        if key == "steps" and isinstance(value, list):
            return [self._step(one) for one in value]
        if isinstance(value, Mapping):
            return {k: self.walk(v, str(k)) for k, v in value.items()}
        if isinstance(value, list):
            return [self.walk(v, key) for v in value]
        return self._text(value, key) if isinstance(value, str) and key in _KEYS else value

    def _text(self, value: str, key: str) -> str:
        if value in self.documents or (key in ("source", "tokenizer_source") and value in _WORDS):
            return value
        if _found(value, self.source) is None and "+" in value:  # mergekit's model+lora
            return "+".join(self._path(part) for part in value.split("+"))
        return self._path(value)

    def _path(self, value: str) -> str:
        return path_from(self.folder, value, self.source)

    def _step(self, call: Any) -> Any:
        if not isinstance(call, Mapping):
            return call
        return {name: self._settings(raw, get_step(name).parameters) for name, raw in call.items()}

    def _settings(self, raw: Any, parameters: Sequence[StepParameter]) -> Any:
        known = {one.name: one for one in parameters}
        if isinstance(raw, Mapping) and raw.keys() <= known.keys():
            return {name: self._setting(value, known[name]) for name, value in raw.items()}
        return self._setting(raw, parameters[0]) if parameters else raw

    def _setting(self, value: Any, parameter: StepParameter) -> Any:
        """The value of a step's parameter: paths where it is a file, a model, a list of these, or of parts with one."""
        if isinstance(value, str):
            return self._path(value) if {Path, Weights} & set(parameter.types) else value
        inner = [get_args(kind)[0] for kind in parameter.types if get_origin(kind) is Sequence]
        if not isinstance(value, list) or not inner:
            return value
        if inner[0] in (Path, Weights):
            return [self._path(one) if isinstance(one, str) else one for one in value]
        return [self.walk(one, "") if isinstance(one, Mapping) else one for one in value]


def _found(given: str, source: Path | None) -> Path | None:
    places = [Path(given), *([source / given] if source is not None else [])]
    try:
        return next((place for place in places if given.strip() and place.expanduser().exists()), None)
    except (OSError, ValueError, RuntimeError):
        return None
