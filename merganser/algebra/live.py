"""An adapter's names are those of the live model; on its base they become those of the base's files."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from merganser.algebra.expression import apply
from merganser.architectures.live_names import stored_names

if TYPE_CHECKING:
    from merganser.algebra.weights import Entry, Weights


def onto(base: Weights, vector: Weights) -> Weights:
    """`vector` under the names of `base`, where it is made of adapters and has names that the base lacks.

    What two names of the live model mean of one tensor is added up. Names that are not certain stay as they are.
    """
    if base.origin is None or not any(checkpoint.is_adapter for checkpoint in vector.checkpoints):
        return vector
    if all(base.find(name) is not None for name in vector):
        return vector
    held = dict.fromkeys([*base, *base.aliases])  # a tied head may be changed without being stored
    names = stored_names(base.origin.config, held, list(vector))
    if not names:
        return vector
    entries: dict[str, Entry] = {}
    for name in vector:
        new, entry = names.get(name, name), vector.entry(name)
        if (other := entries.get(new)) is not None and other.expression.shape == entry.expression.shape:
            entry = replace(entry, expression=apply("add", other.expression, entry.expression))
        entries[new] = entry
    return vector._with(entries)
