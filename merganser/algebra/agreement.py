"""Whether the tensors of two weights mean the same: configs must not contradict each other where they are joined."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from merganser.algebra.trained_on import adapters_in, configs_of, named_base, unlike
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

    Tokenizers that give rows which both have to other tokens are one of them, called `tokenizer`. Of an adapter counts
    what is known of the model that it was trained on.
    """
    same = first.origin is second.origin and first.reading is second.reading and first.files == second.files
    if same and not adapters_in(first):
        return []
    own, other = config_of(first), config_of(second)
    allow = first.allowed | second.allowed
    if own is None or other is None:
        return [
            one
            for one in _of_adapters(first, second)
            if one.key not in besides and not allowed(one.key, allow)
        ]

    def counts(key: str) -> bool:
        return key not in besides and not allowed(key, allow)

    found = [one for one in differences(own, other) if counts(one.key)]
    if counts(TOKENIZER_KEY):
        from merganser.algebra.tokens import other_tokens  # it brings what reads tokenizers along

        tokens = other_tokens(first, second)
        if tokens is not None:
            found.append(tokens)
    return found


def _of_adapters(first: Weights, second: Weights) -> list[Difference]:
    """Where one of the two (or each) is an adapter: what makes it the change of another kind of model."""
    if not (adapters_in(first) or adapters_in(second)):
        return []
    both = []
    for weights in (first, second):
        config = config_of(weights)
        both.append(configs_of(weights) if config is None else [config])
    found = {one.key: one for own in both[0] for other in both[1] for one in unlike(own, other)}
    return list(found.values())


def check_agreement(parts: Iterable[Weights], besides: Collection[str] = ()) -> None:
    """Raise `AlgebraError` where one of the weights contradicts the first of those with a config."""
    found_in = list(parts)
    known = [part for part in found_in if part.origin is not None and part.origin.config is not None]
    known += [part for part in found_in if adapters_in(part)]
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
                f"{in_words(found, known[0], other)}, so their tensors do not mean the same.{way} If this "
                f"is meant, allow it: .allow({', '.join(map(repr, keys))}) on {other.label!r}; in a recipe "
                f"allow: [{', '.join(keys)}], for soup --allow {' --allow '.join(keys)}"
            )


def in_words(found: Sequence[Difference], first: Weights, second: Weights) -> str:
    """The differences of two models, in words."""
    return listing([one.told(_called(first), _called(second)) for one in found])


def _called(weights: Weights) -> str:
    if not adapters_in(weights):
        return repr(weights.label)
    name = named_base(weights)
    return f"the model that {weights.label!r} was trained on" + (f" ({name})" if name else "")


__all__ = ["check_agreement", "config_of", "contradictions", "in_words"]
