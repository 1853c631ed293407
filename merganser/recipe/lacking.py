"""What a model has and the one that gives the names lacks: biases, heads, norms, layers. Never left out unseen."""

from __future__ import annotations

from collections.abc import Sequence

from merganser.algebra import Weights
from merganser.algebra.trained_on import named_base
from merganser.algebra.weights import extra_names, patterns_of
from merganser.errors import AlgebraError, RequestError, listing

Extras = list[tuple[Weights, list[str]]]


def extras(holder: Weights, models: Sequence[Weights]) -> Extras:
    """For every model the tensors that `holder`, which gives the names of the result, has under no name."""
    found = [(model, extra_names(holder, model)) for model in models if model is not holder]
    return [(model, names) for model, names in found if names]


def fits_for_the_most_part(holder: Weights, model: Weights) -> bool:
    """Whether a model has most of the holder's tensors: else it is of another kind, which is the greater fault."""
    return 2 * sum(model.find(name) is None for name in holder) <= len(holder)


def refuse_extras(holder: Weights, found: Extras, place: str, *, reorder: bool) -> None:
    """Raise `RequestError` that names them and the ways out; `reorder`: another model may give the names."""
    if not found:
        return
    told = "; ".join(
        f"{model.label!r} has {len(names)} tensor{'s'[: len(names) != 1]} that {holder.label!r} lacks "
        f"({listing(names, 3)})"
        for model, names in found
    )
    rules = {pattern: "skip" for _, names in found for pattern in patterns_of(names)}
    written = ", ".join(f'"{pattern}": {word}' for pattern, word in rules.items())
    first = (
        f"; or list {found[0][0].label!r} first, so that the result has it, and say with `mismatch` what stands for "
        "what the others lack (zero for biases, skip or base)"
        if reorder
        else ""
    )
    raise RequestError(
        f"{place}: {told}, and the result would be without that. Leave it out with mismatch: {{{written}}}{first}"
    )


def is_vector(weights: Weights) -> bool:
    """Whether all tensors are changes of a model's: an adapter or a task vector, which may cover some tensors only."""
    return all(weights.entry(name).carried or abs(weights.entry(name).degree) < 1e-6 for name in weights)


def refuse_targets(holder: Weights, found: Extras, place: str) -> None:
    """Raise `RequestError` where a change concerns tensors that the model lacks: a part of it is another change."""
    for vector, names in found:
        base = named_base(vector)
        home = f"the model that it was made on ({base})" if base else "the model that it was made on"
        whole = all(holder.find(name) is None for name in vector)
        rules = ", ".join(f'"{pattern}": skip' for pattern in patterns_of(names))
        rest = "" if whole else f", or leave these out by name with mismatch: {{{rules}}}"
        raise RequestError(
            f"{place}: {vector.label!r} changes {len(names)} of its {len(vector)} tensors in places that "
            f"{holder.label!r} lacks ({listing(names, 3)}), and a part of a change is another change. Take it with "
            f"{home}{rest}"
        )


def without_extras(holder: Weights, models: Sequence[Weights]) -> list[Weights]:
    """The models without what `holder` lacks."""
    gone = {id(model): set(names) for model, names in extras(holder, models)}
    return [
        model._with({n: model.entry(n) for n in model if n not in gone[id(model)]})
        if id(model) in gone
        else model
        for model in models
    ]


def refuse_part(reference: Weights, vector: Weights, left: Sequence[str], word: str) -> None:
    """Raise `AlgebraError` where a policy for everything would leave a part of a change out."""
    rules = ", ".join(f'"{pattern}": {word}' for pattern in patterns_of(left))
    raise AlgebraError(
        f"mismatch: {word} would leave out {len(left)} of the {len(vector)} tensors that {vector.label!r} changes "
        f"({listing(left, 3)}): they have other shapes in {reference.label!r}, and a part of a change is another "
        f"change. Take it with the model that it was made on; if a part is meant, say so by name: mismatch: {{{rules}}}"
    )


def refuse_wholesale(
    reference: Weights, model: Weights, left: Sequence[str], lacking: Sequence[str], word: str
) -> None:
    """Raise `AlgebraError` where a policy for everything would leave most of a model, or other names, out of a merge.

    left: the tensors that a catch-all leaves to the others. lacking: those of them that the model has under no name.
    """
    whole = sum(not reference.entry(name).carried for name in reference)
    others = len(extra_names(reference, model))
    renamed = min(len(lacking), others) > max(3, whole // 10)
    if 2 * len(left) <= whole and not renamed:
        return
    why = (
        f"it has {others} tensors under names of its own, so its names differ (a prefix?): rename them in Python "
        "(Weights.rename), and save the model first"
        if renamed
        else "these are models of another kind or size"
    )
    rules = ", ".join(f'"{pattern}": {word}' for pattern in patterns_of(left))
    raise AlgebraError(
        f"mismatch: {word} would leave {model.label!r} out of {len(left)} of the {whole} tensors of "
        f"{reference.label!r} ({listing(left, 3)}), and only the others would be merged; {why}. If it is meant, "
        f"say so by name: mismatch: {{{rules}}}"
    )
