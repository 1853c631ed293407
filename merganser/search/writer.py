"""Recipes written as files: plain YAML, numbers in full, where they come from in comments on top."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from merganser.errors import OutputError, RequestError
from merganser.search.paths import moved


def check_out(out: Path, overwrite: bool, suffix: Sequence[str] = (".yaml", ".yml")) -> None:
    """Raise `RequestError` where `out` cannot be written, before anything runs."""
    if out.suffix.lower() not in suffix:
        raise RequestError(f"{out}: the result is a file called *{' or *'.join(suffix)}")
    if out.is_dir():
        raise RequestError(f"{out}: is a directory")
    if not next(place for place in out.absolute().parents if place.exists()).is_dir():
        raise RequestError(f"{out}: a file is in the place of its folder")
    if out.exists() and not overwrite:
        raise RequestError(f"{out}: already exists. Choose another name, or pass --overwrite to replace it")


def journal_of(out: Path) -> Path:
    """Where the evaluations of a search lie: `best.yaml` has `best.journal.jsonl` beside it."""
    return out.with_suffix(".journal.jsonl")


def recipe_text(documents: Sequence[Any], provenance: Mapping[str, Any]) -> str:
    """The YAML of a recipe, under comments that say where it comes from."""
    head = yaml.safe_dump(_plain(provenance), sort_keys=False, allow_unicode=True, width=100)
    comments = "".join(f"# {line}\n" for line in head.splitlines())
    bodies = [
        yaml.safe_dump(_plain(one), sort_keys=False, allow_unicode=True, width=110) for one in documents
    ]
    return comments + "---\n".join(bodies)


def write_recipe(
    out: Path,
    documents: Sequence[Any],
    provenance: Mapping[str, Any],
    *,
    source: Path | None,
    overwrite: bool,
) -> None:
    """Write a recipe beside its place and give it its name at the end; a folder that is missing is made.

    Relative paths, found in the working directory or in `source`, the folder of the recipe they come from, are written
    anew from the folder of `out` (`merganser.search.paths`). The file is read back and must say what was to be written.
    Raises `OutputError` where it cannot be written.
    """
    check_out(out, overwrite)
    placed = moved(documents, source, out.parent)
    text = recipe_text(placed, provenance)
    _read_back(text, placed, out)
    _replace(out, text)


def _plain(value: Any) -> Any:
    """Python's own numbers and containers; NumPy's floats are f64 here, so none is rounded."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return value.item()
    return value


def _read_back(text: str, documents: Sequence[Any], out: Path) -> None:
    from merganser.document import parse_all

    if parse_all(text, str(out)) != [_plain(one) for one in documents]:
        raise OutputError(f"{out}: the recipe would not be read as it was meant; please report this")


def _replace(out: Path, text: str) -> None:
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, out)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise OutputError(f"{out}: cannot be written: {error.strerror or error}") from error
