"""What happens to tensors that one of the models lacks or has in another shape."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from merganser.algebra import Entry, Weights, axes
from merganser.algebra.expression import Expression, apply
from merganser.algebra.labelled import labels_of, other_rows, with_labels
from merganser.algebra.rearranged import Indices, joined, taken
from merganser.algebra.selection import matcher
from merganser.algebra.ties import same
from merganser.algebra.weights import agree, extra_names
from merganser.architectures import Axis
from merganser.errors import AlgebraError, MerganserError, RequestError, did_you_mean
from merganser.recipe.lacking import is_vector, refuse_part, refuse_wholesale
from merganser.recipe.settings import shown

POLICIES = ("error", "skip", "base", "crop", "pad", "zero")


@dataclass(frozen=True)
class Policy:
    """A word by name pattern; the first that matches counts, and "error" where none does.

    Against the reference (the base, else the first model): "error" refuses; "skip" leaves a model out where it does
    not fit; "base" keeps the reference's own tensor; "crop" cuts what is larger to the reference's shape; "pad" fills
    what is smaller with the reference's own entries; "zero" lets zeros stand for what a model lacks (a bias). Rows of a
    classifier fit where the labels are the same: "crop" leaves out the rows of other labels, "pad" gives those that a
    model lacks the reference's own. What a model has and the reference lacks is refused by "error" and "zero", and left
    out by the others.
    """

    rules: tuple[tuple[str, str], ...]

    def word(self, name: str) -> str:
        """The policy for a tensor."""
        return next((word for pattern, word in self.rules if matcher(pattern)(name)), "error")

    def for_all(self, name: str) -> bool:
        """Whether it is the pattern for everything that says the policy for a tensor."""
        return next((pattern for pattern, _ in self.rules if matcher(pattern)(name)), "") in ("*", "**")

    def idle(self, names: Sequence[str]) -> list[str]:
        """Patterns that match no name."""
        patterns = [pattern for pattern, _ in self.rules if pattern != "*"]
        return [f"{pattern!r} (mismatch)" for pattern in patterns if not any(map(matcher(pattern), names))]

    @property
    def canonical(self) -> Any:
        """As a recipe would say it."""
        return dict(self.rules)


def read_policy(raw: Any, place: str) -> Policy | None:
    """`mismatch: skip`, or `mismatch: {"*.embed_tokens.weight": crop, "*": error}`. Raises `RequestError`."""
    if raw is None:
        return None
    rules = raw if isinstance(raw, dict) else {"*": raw}
    found = []
    for pattern, word in rules.items():
        if word not in POLICIES or not isinstance(word, str):
            near = did_you_mean(word, POLICIES) if isinstance(word, str) else ""
            raise RequestError(f"{place}: expected one of {', '.join(POLICIES)}, not {shown(word)}{near}")
        try:
            matcher(str(pattern))
        except RequestError as error:
            raise RequestError(f"{place}: {error}") from None
        found.append((str(pattern), word))
    return Policy(tuple(found))


@dataclass(frozen=True)
class Conformed:
    """Models that fit the reference, and by tensor which of them (by place in the list) take part; None: none."""

    models: list[Weights]
    absent: Mapping[str, frozenset[int]]
    kept: frozenset[str]
    note: Mapping[str, Any] | None


def conform(
    reference: Weights, models: Sequence[Weights], policy: Policy, *, bounded: bool = True
) -> Conformed:
    """Make `models` fit `reference` as the policy says.

    Raises `AlgebraError` where "crop" would have to fill or "pad" to cut, and, when `bounded`, where a policy for all
    names would leave most of a model out, so that only a part of the result would be merged.
    """
    left: list[dict[str, bool]] = [{} for _ in models]
    absent: dict[str, set[int]] = {}
    kept: set[str] = set()
    counts: dict[str, list[str]] = {word: [] for word in POLICIES[1:]}
    changed: list[dict[str, Entry]] = [{} for _ in models]
    rows = [{} if model is reference else other_rows(model, reference) for model in models]
    unfit = [set(own) for own in rows]
    for name in reference:
        own = reference.entry(name)
        for k, model in enumerate(models):
            other = model.find(name)
            if model is reference or (other is None and (own.carried or _silent(model))):
                continue
            if other is not None and agree(own, other) and name not in rows[k]:
                continue
            word = policy.word(name)
            if word == "error":
                continue
            unfit[k].discard(name)
            counts[word].append(f"{name} of {model.label}")
            if word in ("skip", "base") and policy.for_all(name):
                left[k][name] = other is None
            if word == "base" or own.carried or (other is not None and other.carried):
                kept.add(name)
            elif word == "zero":
                if other is not None:
                    raise AlgebraError(
                        f"mismatch: zero stands for a tensor that is missing, and {model.label!r} has {name!r} in "
                        "another shape; use crop, pad, base or skip for it"
                    )
                changed[k][name] = Entry(apply("mul", own.expression, 0.0), own.degree)
            elif word == "skip" or other is None:
                absent.setdefault(name, set()).add(k)
            elif name in rows[k]:
                row = rows[k][name]
                made = _by_label(name, own.expression, other.expression, word, model.label, row)
                changed[k][name] = Entry(made, other.degree)
            else:
                made = _fitted(name, own.expression, other.expression, word, model.label)
                changed[k][name] = Entry(made, other.degree)
    for k, model in enumerate(models if bounded else ()):
        if left[k]:
            word = policy.word(next(iter(left[k])))
            if is_vector(model):
                refuse_part(reference, model, list(left[k]), word)
            refuse_wholesale(
                reference, model, list(left[k]), [n for n, lacks in left[k].items() if lacks], word
            )
    for name, answer in _one_matrix(
        reference, {*absent, *kept, *(n for own in changed for n in own)}
    ).items():
        words = {one: policy.word(one) for one in (name, answer)}
        if len(set(words.values())) > 1:
            raise RequestError(
                f"mismatch: gives {words[name]} for {name!r} and {words[answer]} for {answer!r}, one matrix in "
                f"{reference.label!r} (tied), which would come apart; give both the same word"
            )
        if missed := absent.get(name, set()) | absent.get(answer, set()):
            absent[name], absent[answer] = set(missed), set(missed)
        if {name, answer} & kept:
            kept |= {name, answer}
    extra = sorted({f"{name} of {model.label}" for model in models for name in extra_names(reference, model)})
    result = []
    for k, model in enumerate(models):
        gone = {name for name, who in absent.items() if k in who} | kept
        entries = {n: model.entry(n) for n in model if n in reference and n not in gone}
        entries |= {name: _standing_in(model, reference.entry(name)) for name in gone} | changed[k]
        # What a model lacks or is left out of is never used; the reference's own stands there so that names agree.
        fitting = model if model is reference else model._with(entries)
        if rows[k] and not unfit[k]:
            fitting = with_labels(fitting, labels_of(reference))
        result.append(fitting)
    found = {word: sorted(names) for word, names in counts.items() if names}
    if extra:
        found["only in a model, left out"] = extra
    note = {"step": "mismatch", **found} if found else None
    return Conformed(result, {n: frozenset(who) for n, who in absent.items()}, frozenset(kept), note)


def _one_matrix(reference: Weights, touched: Container[str]) -> dict[str, str]:
    """Stored copies of a tied matrix of which a policy concerns at least one."""
    both = {
        name: answer
        for name, answer in reference.aliases.items()
        if name in reference and answer in reference and (name in touched or answer in touched)
    }
    return {n: a for n, a in both.items() if same(reference[n], reference[a])}


def misfits(reference: Weights, models: Sequence[Weights]) -> list[str]:
    """Tensors that a model lacks, or has in another shape than the reference, each with its model."""
    note = conform(reference, models, Policy((("*", "base"),)), bounded=False).note or {}
    return list(note.get("base", ()))


def deeper(reference: Weights, models: Sequence[Weights]) -> str | None:
    """What is wrong where a model has more layers than the reference, so that its last ones would be left out."""
    own = _layers(reference)
    for model in models:
        theirs = _layers(model)
        if any(theirs.get(axis, count) > count for axis, count in own.items()):
            return (
                f"{model.label!r} has {', '.join(map(str, theirs.values()))} layers and {reference.label!r} "
                f"{', '.join(map(str, own.values()))}: the others would be lost. Write slices: with layer ranges of "
                "one length, or mismatch: skip to leave them out"
            )
    return None


def _layers(weights: Weights) -> dict[str, int]:
    """How many layers there are along every index of layers; nothing where that is not known."""
    if weights.origin is None or weights.origin.config is None:
        return {}
    try:
        reading = axes.reading_of(weights)
    except MerganserError:  # tensors are missing or unknown: whatever merges by name will say so
        return {}
    tops = [name for name, spec in reading.family.indices.items() if not spec.scope and "layer" in name]
    return {name: reading.sizes[Axis(name)] for name in tops}


def _standing_in(model: Weights, own: Entry) -> Entry:
    """What stands where a model is not used: it has the degree of the model's others."""
    return own if own.carried or not is_vector(model) else Entry(apply("mul", own.expression, 0.0), 0.0)


def _silent(model: Weights) -> bool:
    """Whether the model is a vector, which may cover some tensors only."""
    return model.origin is None


def _by_label(
    name: str,
    own: Expression,
    other: Expression,
    word: str,
    label: str,
    rows: tuple[int, Indices, Indices],
) -> Expression:
    """The rows of a classifier that has other labels than the reference, in the reference's order."""
    dim, here, extra = rows
    lacks = bool((here < 0).any())
    if (word == "crop" and lacks) or (word == "pad" and len(extra)) or not (here >= 0).any():
        raise AlgebraError(
            f"mismatch: {word} cannot fit tensor {name!r} of {label!r}, whose rows have other labels: "
            f"{f'{int((here < 0).sum())} labels are not there' if lacks else f'{len(extra)} are too many'}; "
            "use base or skip for it"
        )
    both = joined([other, own], dim) if lacks else other
    index = np.where(here >= 0, here, other.shape[dim] + np.arange(len(here)))
    return taken(both, [index if k == dim else None for k in range(len(own.shape))])


def _fitted(name: str, own: Expression, other: Expression, word: str, label: str) -> Expression:
    mine, theirs = own.shape, other.shape
    wrong = len(mine) != len(theirs) or any(
        (b < a) if word == "crop" else (b > a) for a, b in zip(mine, theirs, strict=False)
    )
    if wrong:
        verb = "cut" if word == "crop" else "fill up"
        raise AlgebraError(
            f"mismatch: {word} cannot {verb} tensor {name!r} of {label!r}, {list(theirs)}, to the shape {list(mine)}; "
            f"use {'pad' if word == 'crop' else 'crop'}, base or skip for it"
        )
    if word == "crop":
        return taken(other, [np.arange(a) if a != b else None for a, b in zip(mine, theirs, strict=True)])
    for dim, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        if a == b:
            continue
        # Dimensions after this one are still the model's, so the filling is cut to them.
        index = [np.arange(mine[d]) for d in range(dim)] + [np.arange(b, a)]
        index += [np.arange(theirs[d]) for d in range(dim + 1, len(mine))]
        other = joined([other, taken(own, index)], dim)
    return other
