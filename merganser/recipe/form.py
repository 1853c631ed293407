"""What a recipe says, checked: everything that can be known without opening a checkpoint.

A merge is made of parts (one, or one for each module of a model), a part of slices (one, or several that are stacked),
a slice of sources: models, or ranges of their layers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merganser.errors import RequestError
from merganser.methods import Method, Step
from merganser.recipe.reference import Reference
from merganser.recipe.settings import Setting

if TYPE_CHECKING:
    from merganser.recipe.experts import Mixture
    from merganser.recipe.mismatch import Policy
    from merganser.recipe.vocabularies import Vocabulary


@dataclass(frozen=True)
class Model:
    """A model that a recipe opens, and what it is called."""

    reference: Reference
    label: str
    place: str = field(default="", compare=False)
    """Where the recipe names it first, for errors."""

    @property
    def path(self) -> str:
        """As written."""
        return str(self.reference)


@dataclass(frozen=True)
class Source:
    """A model in a slice: an index into the recipe's models, its layers (None: all), its own parameters.

    `statistics` is where those of the model lie, as written.
    """

    model: int
    layers: tuple[int, int] | None
    parameters: Mapping[str, Setting]
    place: str
    statistics: str | None = None


@dataclass(frozen=True)
class Slice:
    """Sources that are merged into one run of layers. `base` is an index into the recipe's models."""

    sources: tuple[Source, ...]
    base: int | None
    parameters: Mapping[str, Setting]
    place: str

    def inputs(self, method: Method) -> tuple[Source, ...]:
        """The sources that are merged: where the method sets the base apart, all but the base."""
        if not method.base_apart:
            return self.sources
        return tuple(source for source in self.sources if source.model != self.base)

    def base_alone(self, method: Method) -> bool:
        """Whether layers of the base alone are taken by a method that would change it: they are the base's."""
        base = self.base_source
        return method.base_apart and base is not None and base.layers is not None and len(self.sources) == 1

    @property
    def base_source(self) -> Source | None:
        """The base among the sources, with its layers."""
        return next((source for source in self.sources if source.model == self.base), None)


@dataclass(frozen=True)
class Part:
    """A module of the model, or all of it (no name): slices in their order."""

    name: str | None
    slices: tuple[Slice, ...]
    parameters: Mapping[str, Setting]

    @property
    def sliced(self) -> bool:
        """Whether ranges of layers are taken."""
        return any(source.layers is not None for slice_ in self.slices for source in slice_.sources)


@dataclass(frozen=True)
class StepCall:
    """A step of a recipe: its settings as written, and its place in the recipe."""

    step: Step
    raw: Any
    place: str


@dataclass(frozen=True)
class Recipe:
    """A checked merge. `canonical` is what it says, in plain JSON; `directory` is where it lay.

    `models` are all that are opened. `documents` are the other merges of the same file, by name, that may be named as
    models.
    """

    method: Method
    mergekit: bool
    models: tuple[Model, ...]
    base: int | None
    parts: tuple[Part, ...]
    parameters: Mapping[str, Setting]
    vocabulary: Vocabulary | None
    mismatch: Policy | None
    allow: tuple[str, ...]
    dtype: str | None
    seed: int | None
    degree: float | None
    steps: tuple[StepCall, ...]
    documents: Mapping[str, Recipe | Mixture]
    directory: Path | None
    source: str
    canonical: Mapping[str, Any]
    ignored: tuple[str, ...] = ()
    """What it says that is read over, as mergekit does."""

    @property
    def summary(self) -> str:
        """What the method does, in a line."""
        return self.method.summary

    @property
    def settings(self) -> list[Setting]:
        """All settings, wherever they stand."""
        return [setting for _, setting in self._named()]

    def settings_by_names(self, inward: bool) -> list[Setting]:
        """Settings whose patterns look at the models' names (of parameters per model), or at the result's."""
        per_model = {parameter.name for parameter in self.method.parameters if parameter.per_model}
        return [setting for name, setting in self._named() if (name in per_model) == inward]

    def _holders(self) -> list[Mapping[str, Setting]]:
        holders = [self.parameters]
        for part in self.parts:
            holders.append(part.parameters)
            for slice_ in part.slices:
                holders += [slice_.parameters, *(source.parameters for source in slice_.sources)]
        return holders

    def _named(self) -> list[tuple[str, Setting]]:
        return [item for holder in self._holders() for item in holder.items()]

    @property
    def merged(self) -> tuple[int, ...]:
        """The models that take part, as indices; the others only lend a tokenizer or rows of tokens."""
        slices = [slice_ for part in self.parts for slice_ in part.slices]
        found = {source.model for slice_ in slices for source in slice_.sources}
        found |= {slice_.base for slice_ in slices if slice_.base is not None}
        return tuple(sorted(found if self.base is None else found | {self.base}))

    @property
    def ends(self) -> tuple[frozenset[int], frozenset[int]] | None:
        """The models of the first slice and those of the last, where mergekit tells them apart: its rows are theirs."""
        if not self.mergekit or len(self.parts) != 1 or len(self.parts[0].slices) < 2:
            return None
        first, *_, last = self.parts[0].slices
        before, after = (frozenset(source.model for source in one.sources) for one in (first, last))
        return before, after

    @property
    def needs_axes(self) -> bool:
        """Whether layers or tokens must be known: for slices, modules, gradients, another tokenizer."""
        rows = self.vocabulary is not None and self.vocabulary.source is not None
        return rows or not self.simple or any(setting.graded for setting in self.settings)

    @property
    def simple(self) -> bool:
        """Whether whole models are merged, all in one way."""
        return len(self.parts) == 1 and len(self.parts[0].slices) == 1 and not self.parts[0].sliced


def load(
    path_or_text: str | os.PathLike[str] | Mapping[str, Any], *, strict: bool = False
) -> Recipe | Mixture:
    """Read and check a recipe: a file, YAML text (it has a line break or a `: `) or a mapping already read.

    A file may hold several documents (`---`), each with a `name` by which the others use it as a model; the one without
    a name, or the last, is the result. Opens no checkpoint. Raises `RequestError` that names the place, such as
    `models[1].parameters.densty`, for anything it does not understand. What mergekit's form has that mergekit reads
    over (`Recipe.ignored`) is an error too if `strict`.
    """
    found = _load(path_or_text)
    if strict:
        refuse_ignored(found.source, found.ignored)
    return found


def refuse_ignored(source: str, ignored: Sequence[str]) -> None:
    """Raise `RequestError` for what a recipe has that mergekit reads over, where there is any."""
    from merganser.recipe.keys import told

    if ignored:
        raise RequestError(f"{source}: {told(ignored)}; without --strict it is a warning")


def documents_of(text: str, source: str) -> tuple[list[Any], tuple[str, ...]]:
    """The documents of a recipe's text, and what is read otherwise than it stands there, as PyYAML reads it.

    A key that is given twice and merge keys (`<<`) are for mergekit's form alone: elsewhere they raise `RequestError`.
    """
    from merganser.document import parse_all
    from merganser.recipe.documents import is_mergekits

    loose: list[tuple[int, RequestError]] = []
    raws = parse_all(text, source, loose=loose)
    for number, error in loose:
        if not is_mergekits(raws[number]):
            raise error
    return raws, tuple(f"{str(error).removeprefix(f'{source}: ')} (as PyYAML reads it)" for _, error in loose)


def _load(path_or_text: str | os.PathLike[str] | Mapping[str, Any]) -> Recipe | Mixture:
    from merganser.checkpoint.layout import at_home
    from merganser.document import read_file
    from merganser.recipe.documents import read_documents

    if isinstance(path_or_text, Mapping):
        return read_documents([dict(path_or_text)], "recipe", None)
    if isinstance(path_or_text, str) and ("\n" in path_or_text or ": " in path_or_text):
        source, directory, text = "recipe", None, path_or_text
    else:
        path = at_home(path_or_text)
        source, directory, text = str(path), path.parent, read_file(path)
    raws, odd = documents_of(text, source)
    found = read_documents(raws, source, directory)
    return replace(found, ignored=(*odd, *found.ignored)) if odd else found
