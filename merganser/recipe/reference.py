"""What a recipe calls a model: a path or hub id, a revision of it, and a LoRA adapter to add to it."""

from __future__ import annotations

import os
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merganser.checkpoint.layout import at_home, lies
from merganser.errors import RequestError, did_you_mean
from merganser.recipe.settings import shown


@dataclass(frozen=True)
class Reference:
    """A model as a recipe names it. `lora` is a reference without a LoRA of its own."""

    path: str
    revision: str | None = None
    lora: Reference | None = None

    def __str__(self) -> str:
        own = self.path if self.revision is None else f"{self.path}@{self.revision}"
        return own if self.lora is None else f"{own}+{self.lora}"

    @property
    def identity(self) -> tuple[str, str | None, str]:
        """Equal for references to the same model."""
        return os.path.normpath(self.path), self.revision, str(self.lora or "")

    @property
    def short(self) -> str:
        """What to call it: the last part of its path, with that of its LoRA."""
        plain = os.path.basename(os.path.normpath(self.path))
        plain = plain if plain not in ("", ".", "..") else Path(self.path).resolve().name or "model"
        return plain if self.lora is None else f"{plain}+{self.lora.short}"


def read_reference(
    raw: Any, place: str, *, mergekit: bool, directory: Path | None, documents: Container[str] = ()
) -> Reference:
    """A reference from YAML.

    Text is a path or hub id; in mergekit's form also `path@revision+adapter@revision`, unless something lies under that
    very name. A mapping is {path, revision, lora} or mergekit's {model: {path, revision}, lora: ...}. Raises
    `RequestError` with the place for anything else.
    """
    if isinstance(raw, dict):
        return _mapping(raw, place, mergekit=mergekit, directory=directory)
    if not isinstance(raw, str) or not raw.strip() or "\0" in raw:
        raise RequestError(f"{place}: expected the path of a model, in quotes if need be, not {shown(raw)}")
    if not mergekit or raw in documents or _lies_here(raw, directory):
        return Reference(raw)
    parts = raw.split("+")
    if len(parts) > 2:
        raise RequestError(
            f"{place}: {raw!r} has more than one '+'; write a mapping {{model: ..., lora: ...}}"
        )
    model, *lora = [_with_revision(part, raw, place) for part in parts]
    return Reference(model.path, model.revision, lora[0] if lora else None)


def _with_revision(text: str, raw: str, place: str) -> Reference:
    path, *revision = text.split("@")
    if not path.strip() or len(revision) > 1 or (revision and not revision[0]):
        raise RequestError(f"{place}: {raw!r} is not path[@revision][+lora[@revision]]")
    return Reference(path, revision[0] if revision else None)


def _mapping(raw: dict[str, Any], place: str, *, mergekit: bool, directory: Path | None) -> Reference:
    known = ("model", "path", "revision", "lora", "override_architecture")
    for key in raw:
        if key not in known:
            raise RequestError(
                f"{place}.{key}: unknown key{did_you_mean(key, known)} (known: path, revision, lora)"
            )
    if raw.get("override_architecture") is not None:
        raise RequestError(
            f"{place}.override_architecture: merganser reads names by the model's own family file; "
            "give it one (docs/add-a-model-family.md) instead"
        )
    if ("model" in raw) == ("path" in raw):
        raise RequestError(f"{place}: a model written as a mapping has either path or model")
    if "path" in raw:
        model = Reference(_text(raw["path"], f"{place}.path"))
    else:
        model = read_reference(raw["model"], f"{place}.model", mergekit=mergekit, directory=directory)
    revision, lora = model.revision, model.lora
    if raw.get("revision") is not None:
        revision = _text(raw["revision"], f"{place}.revision")
    if raw.get("lora") is not None:
        lora = read_reference(raw["lora"], f"{place}.lora", mergekit=mergekit, directory=directory)
        if lora.lora is not None:
            raise RequestError(f"{place}.lora: an adapter has no adapter of its own")
    return Reference(model.path, revision, lora)


def _text(raw: Any, place: str) -> str:
    if not isinstance(raw, str) or not raw.strip() or "\0" in raw:
        raise RequestError(f"{place}: expected text, not {shown(raw)}")
    return raw


def _lies_here(path: str, directory: Path | None) -> bool:
    places = [at_home(path)]
    if directory is not None:
        places.append(directory / path)
    return any(map(lies, places))
