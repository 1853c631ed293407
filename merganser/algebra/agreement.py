"""Whether the tensors of two weights mean the same: configs must not contradict each other where they are joined."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from merganser.architectures.meaning import TOKENIZER_KEY, Difference, allowed, differences
from merganser.errors import AlgebraError, MerganserError, listing

if TYPE_CHECKING:
    from merganser.algebra.weights import Weights


def config_of(weights: Weights) -> Mapping[str, Any] | None:
    """The config that these weights have as they are; None where nothing says."""
    if weights.reading is not None:
        try:
            return weights.reading.followed()
        except MerganserError:  # sizes that belong together are changed one by one
            return weights.reading.config
    return None if weights.origin is None else weights.origin.config


def contradictions(first: Weights, second: Weights, besides: Collection[str] = ()) -> list[Difference]:
    """Keys by which the configs of two weights give tensors another meaning, but for `besides` and allowed ones.

    Tokenizers that give rows which both have to other tokens are one of them, called `tokenizer`.
    """
    if first.origin is second.origin and first.reading is second.reading and first.files == second.files:
        return []
    own, other = config_of(first), config_of(second)
    if own is None or other is None:
        return []
    allow = first.allowed | second.allowed

    def counts(key: str) -> bool:
        return key not in besides and not allowed(key, allow)

    found = [one for one in differences(own, other) if counts(one.key)]
    if counts(TOKENIZER_KEY):
        from merganser.algebra.tokens import other_tokens  # it brings what reads tokenizers along

        tokens = other_tokens(first, second)
        if tokens is not None:
            found.append(tokens)
    return found


def check_agreement(parts: Iterable[Weights], besides: Collection[str] = ()) -> None:
    """Raise `AlgebraError` where one of the weights contradicts the first of those with a config."""
    known = [part for part in parts if part.origin is not None and part.origin.config is not None]
    for other in known[1:]:
        if found := contradictions(known[0], other, besides):
            keys = [one.key for one in found]
            way = ""
            if TOKENIZER_KEY in keys:
                way = (
                    " To merge rows token by token, merge in a recipe with `tokenizer_source: union` (or base), or "
                    "give both one vocabulary first: `merganser reshape` with union_tokenizers or transplant_tokenizer."
                )
            raise AlgebraError(
                f"{in_words(found, known[0].label, other.label)}, so their tensors do not mean the same.{way} If this "
                f"is meant, allow it: .allow({', '.join(map(repr, keys))}) on {other.label!r}; in a recipe "
                f"allow: [{', '.join(keys)}], for soup --allow {' --allow '.join(keys)}"
            )


def in_words(found: Sequence[Difference], first: str, second: str) -> str:
    """The differences of two models, in words."""
    return listing([one.told(repr(first), repr(second)) for one in found])


__all__ = ["check_agreement", "config_of", "contradictions", "in_words"]
