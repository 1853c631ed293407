"""The documents of a recipe file: merges that use one another as models, and the one that is the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from merganser.errors import RequestError, listing
from merganser.recipe.experts import Mixture, is_mixture, read_mixture
from merganser.recipe.form import Recipe
from merganser.recipe.reader import Reader
from merganser.recipe.settings import shown


def read_documents(raws: Sequence[Any], source: str, directory: Path | None) -> Recipe | Mixture:
    """The result's recipe, holding those it is made from.

    Raises `RequestError` for names given twice, documents that use themselves, and documents that nothing uses.
    """
    if len(raws) == 1:
        return _read(raws[0], source, directory, {})
    named: dict[str, tuple[Any, str]] = {}
    last: tuple[Any, str] | None = None
    for i, raw in enumerate(raws):
        place = f"{source}: document {i + 1}"
        name = raw.get("name") if isinstance(raw, dict) else None
        if name is None:
            if last is not None:
                raise RequestError(
                    f"{place}: has no name, and neither has another; all but the result need a name"
                )
            last = raw, place
            continue
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise RequestError(f"{place}: name: expected a name, not {shown(name)}")
        if name in named:
            raise RequestError(f"{place}: name: two documents are called {name!r}")
        named[name] = raw, place
    if last is None:
        name = list(named)[-1]
        return _Documents(named, directory).result(*named[name], name)
    return _Documents(named, directory).result(*last)


MOST_DEEP = 50
"""Documents that use one another in a chain."""


class _Documents:
    def __init__(self, named: Mapping[str, tuple[Any, str]], directory: Path | None) -> None:
        self.named = named
        self.directory = directory
        self.read: dict[str, Recipe | Mixture] = {}
        self.open: list[str] = []

    def result(self, raw: Any, place: str, name: str | None = None) -> Recipe | Mixture:
        self.open = [] if name is None else [name]
        found = _read(raw, place, self.directory, self._used(raw, place))
        inner = [f"{one}: {key}" for one, other in self.read.items() for key in other.ignored]
        if unused := [one for one in self.named if one not in (name, *self.read)]:
            if not all(is_mergekits(self.named[one][0]) for one in unused):
                raise RequestError(
                    f"{self.named[unused[0]][1]}: nothing uses the document {listing(unused)}; a file makes one "
                    "model, so every other document must be one of its models"
                )
            inner += [f"the document {one} (nothing uses it, so it is not made)" for one in unused]
        return replace(found, ignored=(*found.ignored, *inner)) if inner else found

    def _used(self, raw: Any, place: str) -> dict[str, Recipe | Mixture]:
        """The documents that one names as models, read."""
        return {name: self._document(name, place) for name in self.named if _mentions(raw, name)}

    def _document(self, name: str, place: str) -> Recipe | Mixture:
        if name in self.open:
            circle = " -> ".join([*self.open[self.open.index(name) :], name])
            raise RequestError(f"{place}: documents use one another in a circle: {circle}")
        if len(self.open) >= MOST_DEEP:
            raise RequestError(
                f"{place}: more than {MOST_DEEP} documents use one another in a chain; merge the first of them to a "
                "directory and name that as a model"
            )
        if name not in self.read:
            raw, own = self.named[name]
            self.open.append(name)
            self.read[name] = _read(raw, own, self.directory, self._used(raw, own))
            self.open.pop()
        return self.read[name]


def is_mergekits(raw: Any) -> bool:
    """Whether a document is in a form of mergekit's."""
    return isinstance(raw, dict) and ("merge_method" in raw or is_mixture(raw))


def _mentions(raw: Any, name: str) -> bool:
    """Whether a document names another as a model, with or without a LoRA after it."""
    if isinstance(raw, dict):
        return any(key != "name" and _mentions(value, name) for key, value in raw.items())
    if isinstance(raw, list):
        return any(_mentions(item, name) for item in raw)
    return isinstance(raw, str) and raw.split("+")[0] == name


def _read(
    raw: Any, source: str, directory: Path | None, documents: Mapping[str, Recipe | Mixture]
) -> Recipe | Mixture:
    if not isinstance(raw, dict):
        raise RequestError(f"{source}: a recipe is a mapping (method: ..., models: ...), not {shown(raw)}")
    if is_mixture(raw):
        if documents:
            raise RequestError(f"{source}: a mixture of experts is made of models, not of other documents")
        return read_mixture({key: value for key, value in raw.items() if key != "name"}, source, directory)
    return Reader(raw, source, directory, documents).recipe()
