"""Tensors with a row for each token of a tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from merganser.architectures.family import family_of
from merganser.architectures.reading import name_tensors

VOCAB = "vocab"
"""The axis of families whose elements are tokens."""


def may_have_rows(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether one of the shapes may be that of an embedding or a head; costs no look at names."""
    counts = set(_counts(config))
    return not counts or any(not counts.isdisjoint(shape) for shape in shapes.values())


def token_rows(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The tensors with an element for each token, and how many these are.

    By the family's file; in a model without one, by `vocab_size` of its config, which is then the first dimension.
    """
    family = family_of(str(config.get("model_type")))
    if family is None:
        counts = set(_counts(config))
        return {name: shape[0] for name, shape in shapes.items() if shape and shape[0] in counts}
    found = {}
    for name, named in name_tensors(family, shapes).items():
        for dim, axes in enumerate(named.spec.dims):
            if axes.terms == ((VOCAB,),) and dim < len(shapes[name]):
                found[name] = shapes[name][dim]
    return found


def _counts(config: Mapping[str, Any]) -> Iterator[int]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _counts(value)
        elif key.endswith("vocab_size") and not key.endswith("type_vocab_size") and type(value) is int:
            yield value


__all__ = ["VOCAB", "may_have_rows", "token_rows"]
