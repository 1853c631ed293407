"""Names that differ by a prefix only: what a trainer put before every name, or a body saved without its wrapper."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from merganser.architectures import family_of
from merganser.architectures.ties import prefix_of
from merganser.errors import AlgebraError

if TYPE_CHECKING:
    from merganser.algebra.weights import Weights

_WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Modules that torch puts around others (compile, FSDP, checkpointed activations); no model has names of its own so."""
_LEADING = re.compile(r"^(?:module\.|base_model\.model\.|base_model\.)+")
"""What DataParallel and PEFT put in front of every name."""


def trainer_prefixes(names: Iterable[str]) -> dict[str, str]:
    """The names without what trainers put into them, by those that have it; what all begin with may go as well."""
    names = list(names)
    found = {name: _WRAPPERS.sub("", name) for name in names}
    if names and all(_LEADING.match(name) for name in found.values()):
        found = {name: _LEADING.sub("", short) for name, short in found.items()}
    return {name: short for name, short in found.items() if name != short}


def without_trainers(weights: Weights) -> Weights:
    """The weights under the names that their library gives them."""
    return under_names(weights, trainer_prefixes(weights))


def prefix_between(reference: Iterable[str], names: Iterable[str]) -> tuple[str, str] | None:
    """("add" or "remove", prefix) by which most of `names` become names of `reference`; None where there is no such.

    Where two prefixes would do, as of an encoder and a decoder, neither is meant.
    """
    own, theirs = list(reference), list(names)
    if 2 * len(set(own) & set(theirs)) > min(len(own), len(theirs)):
        return None
    found: Counter[tuple[str, str]] = Counter()
    for way, short, long in (("add", theirs, set(own)), ("remove", own, set(theirs))):
        ends: dict[str, list[str]] = {}
        for name in long:
            words = name.split(".")
            for k in range(1, min(len(words), 6)):
                ends.setdefault(".".join(words[k:]), []).append(".".join(words[:k]) + ".")
        for name in short:
            if name not in long:
                found.update((way, prefix) for prefix in ends.get(name, ()))
    if not found:
        return None
    (best, count), *rest = found.most_common(2)
    if 2 * count <= min(len(own), len(theirs)) or (rest and 2 * rest[0][1] > count):
        return None
    return best


def lined_up(reference: Weights, weights: Weights) -> tuple[Weights, str]:
    """The weights under the names of `reference` where a prefix is all that differs, and what was done, in words."""
    between = prefix_between(reference, weights)
    if between is None:
        return _by_wrapper(reference, weights)
    way, prefix = between
    new: Callable[[str], str] = (
        (lambda name: name if name in reference else prefix + name)
        if way == "add"
        else (lambda name: name if name in reference else name.removeprefix(prefix))
    )
    names = {name: new(name) for name in weights}
    if way == "add":  # what the reference has under no such name keeps its own: a head stands beside the body
        names = {name: long if long in reference else name for name, long in names.items()}
    changed = {name: one for name, one in names.items() if name != one}
    word = "with" if way == "add" else "without"
    return under_names(weights, changed), f"{word} the prefix {prefix!r}"


def _by_wrapper(reference: Weights, weights: Weights) -> tuple[Weights, str]:
    """The weights with the reference's body prefix instead of their own, where the family knows both."""
    configs = [one.origin.config if one.origin is not None else None for one in (reference, weights)]
    kinds = {str((config or {}).get("model_type")) for config in configs}
    family = family_of(kinds.pop()) if len(kinds) == 1 else None
    if family is None:
        return weights, ""
    wanted, own = prefix_of(family, reference), prefix_of(family, weights)
    names = {name: wanted + name.removeprefix(own) for name in weights if own and name.startswith(own)}
    if wanted == own or 2 * sum(name in reference for name in names.values()) <= len(reference):
        return weights, ""
    return under_names(weights, names), f"with the prefix {wanted!r} for {own!r}"


def under_names(weights: Weights, names: Mapping[str, str]) -> Weights:
    """The weights, and the checkpoint that they come from, under other names: the same model, read as such.

    Raises `AlgebraError` where two tensors would have one name.
    """
    if not names:
        return weights
    new = {name: names.get(name, name) for name in weights}
    if len(set(new.values())) < len(new):
        twice = next(one for one, count in Counter(new.values()).items() if count > 1)
        raise AlgebraError(f"{weights.label!r}: two tensors would be called {twice!r} without their prefixes")
    origin = weights.origin
    if origin is not None:
        origin = replace(origin, tensors={names.get(n, n): tensor for n, tensor in origin.tensors.items()})
    reading = weights.reading
    if reading is not None:
        tensors = {names.get(name, name): one for name, one in reading.tensors.items()}
        reading = replace(reading, tensors=tensors, prefix=prefix_of(reading.family, tensors))
    return weights._with(
        {new[name]: weights.entry(name) for name in weights},
        origin=origin,
        checkpoints=tuple(origin if one is weights.origin and origin else one for one in weights.checkpoints),
        aliases={names.get(a, a): names.get(b, b) for a, b in weights.aliases.items()},
        dropped=frozenset(names.get(name, name) for name in weights.dropped),
        reading=reading,
    )


def aligned(models: Sequence[Weights], reference: int) -> tuple[list[Weights], dict[str, str]]:
    """Models under the names of one of them where only prefixes differ, and by label what was done to whose names.

    What trainers put into names goes from all, so that the result has the names that a library loads.
    """
    found, done = [], {}
    for weights in models:
        own = without_trainers(weights)
        if own is not weights:
            done[weights.label] = "without what a trainer put before or into them"
        found.append(own)
    for k, weights in enumerate(found):
        if k != reference and weights.origin is not None:
            found[k], words = lined_up(found[reference], weights)
            if words:
                done[weights.label] = words
    return found, done


def told(named: Iterable[str], names: Iterable[str], label: str) -> str:
    """The way out for an error about missing names, where prefixes are all that differs; else nothing."""
    names, named = list(names), list(named)
    if trainer_prefixes(names) or trainer_prefixes(named):
        return (
            ". A trainer put a prefix before or into names: join merganser.algebra.prefixes.without_trainers(...) of "
            "the weights"
        )
    between = prefix_between(named, names)
    if between is None:
        return ""
    way, prefix = between
    call = f"{prefix!r} + name" if way == "add" else f"name.removeprefix({prefix!r})"
    return f". Their names differ by a prefix: join .rename(lambda name: {call}) of {label!r}"


__all__ = [
    "aligned",
    "lined_up",
    "prefix_between",
    "told",
    "trainer_prefixes",
    "under_names",
    "without_trainers",
]
