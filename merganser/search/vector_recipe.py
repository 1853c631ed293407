"""A recipe on task vectors that is linear in its weights: theta = theta0 + sum_k c_k tau_k."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from merganser.algebra import Weights
from merganser.checkpoint.layout import at_home
from merganser.engine.memory import resident_bytes
from merganser.errors import RequestError
from merganser.recipe import Mixture, Recipe, build
from merganser.recipe.documents import read_documents
from merganser.recipe.form import documents_of, refuse_ignored
from merganser.search.groups import float_names, setting

LINEAR_TOLERANCE = 1e-3
"""How far a recipe may be from linear in its weights, as a share of the largest change."""
MODELS_HELD = 4
"""Beside a vector for each merged model: the base, the module, one merged copy, and its gradients."""
Arrays = dict[str, "np.ndarray[Any, Any]"]


class VectorRecipe:
    """A recipe whose weights are learned."""

    def __init__(self, raw: dict[str, Any], name: str, directory: Path | None, recipe: Recipe) -> None:
        self.raw = raw
        self.name = name
        self.directory = directory
        self.recipe = recipe
        only = recipe.parts[0].slices[0]
        self.places = [source.place for source in only.inputs(recipe.method)]
        self.labels = [recipe.models[source.model].label for source in only.inputs(recipe.method)]

    @classmethod
    def open(cls, source: str | Path | Mapping[str, Any], *, strict: bool = False) -> VectorRecipe:
        """Read a recipe. Raises `RequestError` for one that is no plain merge of task vectors.

        strict: as in `recipe.load`.
        """
        from merganser.document import read_file

        odd: tuple[str, ...] = ()

        if isinstance(source, Mapping):
            documents, name, directory = [dict(source)], "recipe", None
        else:
            path = at_home(source)
            name, directory = str(path), path.parent
            documents, odd = documents_of(read_file(path), name)
        if len(documents) > 1:
            raise RequestError(
                f"{name}: coefficients are learned of recipes of one document; this has {len(documents)}"
            )
        recipe = read_documents(documents, name, directory)
        if strict:
            refuse_ignored(name, (*odd, *recipe.ignored))
        if isinstance(recipe, Mixture) or not recipe.simple or recipe.steps:
            raise RequestError(
                f"{name}: coefficients are learned of recipes with base_model and models, without steps"
            )
        named = {p.name: p for p in recipe.method.parameters}
        if (
            recipe.base is None
            or recipe.method.base != "required"
            or not getattr(named.get("weight"), "per_model", False)
        ):
            raise RequestError(
                f"{name}: coefficients are learned of task vectors, by a method such as task_arithmetic with "
                f"a base_model, not of {recipe.method.name}"
            )
        return cls(documents[0], name, directory, replace(recipe, ignored=(*odd, *recipe.ignored)))

    def document(self, values: Sequence[Any]) -> dict[str, Any]:
        """The recipe with a weight for each merged model: a number, or numbers by group."""
        raw = dict(self.raw)
        shared = {key: one for key, one in (raw.get("parameters") or {}).items() if key != "weight"}
        raw.pop("parameters", None)
        models = []
        at = {place: k for k, place in enumerate(self.places)}
        for k, entry in enumerate(raw["models"]):
            entry = dict(entry)
            if (number := at.get(f"models[{k}]")) is not None:
                value = values[number]
                if isinstance(value, Mapping):
                    value = (
                        value[None] if None in value else setting(value, patterns=not self.recipe.mergekit)
                    )
                entry["parameters"] = {**(entry.get("parameters") or {}), "weight": value}
            models.append(entry)
        raw["models"] = models
        if shared:
            raw["parameters"] = shared
        return raw

    def weights(self, document: Mapping[str, Any]) -> Weights:
        """The lazy merge of a document, in f32."""
        weights, _ = build(read_documents([dict(document)], self.name, self.directory))
        return weights

    def computed(self, document: Mapping[str, Any]) -> Arrays:
        """Its tensors."""
        from merganser.running import live_tensors

        return live_tensors(self.weights(document))

    def check_memory(self, limit: int | None) -> None:
        """Raise `RequestError` where learning takes more than `limit` bytes, as far as headers tell."""
        count = len(self.places)
        zero = self.weights(self.document([0.0] * count))
        copies = 4 * sum(zero[name].size for name in zero)
        needed = resident_bytes() + (MODELS_HELD + count) * copies
        if limit is not None and needed > limit:
            raise RequestError(
                f"--memory {limit / 2**20:.0f} MiB is too little to learn coefficients of {self.name}: at least "
                f"{needed / 2**20:.0f} MiB are needed, the activations of a batch apart: the process and "
                f"{MODELS_HELD + count} times the model in f32 ({copies / 2**20:.0f} MiB)"
            )

    def vectors(self) -> tuple[Arrays, list[Arrays], Weights]:
        """theta0, the vectors (what a weight of 1 for one model adds), and theta0 as lazy weights.

        Raises `RequestError` where the recipe is not linear in its weights.
        """
        count = len(self.places)
        zero = self.weights(self.document([0.0] * count))
        base = self.computed(self.document([0.0] * count))
        names = dict.fromkeys(float_names(zero))
        base |= {name: base[name].astype(np.float32, copy=False) for name in names}
        taus: list[Arrays] = []
        for k in range(count):
            taus.append(
                _less(self.computed(self.document([float(k == j) for j in range(count)])), base, names)
            )
        trial = [0.3 + 0.4 * k / count for k in range(count)]
        made = self.computed(self.document(trial))
        size = max((float(np.abs(one).max(initial=0.0)) for tau in taus for one in tau.values()), default=0.0)
        if size == 0.0:
            raise RequestError(
                f"{self.name}: the models do not differ from the base, so there is nothing to learn"
            )
        for name in names:
            sum_ = base[name] + sum(w * tau[name] for w, tau in zip(trial, taus, strict=True) if name in tau)
            off = float(np.abs(sum_ - made[name]).max(initial=0.0)) / size
            if off > LINEAR_TOLERANCE:
                raise self.not_linear(off)
        return base, taus, zero

    def not_linear(self, off: float) -> RequestError:
        """The error of a recipe whose weights do more than scale vectors."""
        return RequestError(
            f"{self.name}: {self.recipe.method.name} as it is set here is not linear in its weights (off by "
            f"{off:.2g} of the "
            "largest change), so their gradients are not those of vectors. Take task_arithmetic, or ties with "
            "{election: unweighted, normalize: false}; normalize is false everywhere"
        )


def _less(one: Arrays, base: Arrays, names: Iterable[str]) -> Arrays:
    """The changes of the base in `one`, which is used up: only tensors that changed, and no copy of them."""
    found = {}
    for name in names:
        change = one[name].astype(np.float32, copy=False)
        np.subtract(change, base[name], out=change)
        if change.any():
            found[name] = change
    return found
