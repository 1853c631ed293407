"""Tied names in arithmetic: one matrix stays one matrix, or becomes a tensor for every name in all operands.

A tied model stores one tensor under one of several names. Where another operand gives those names different values (a
fine-tune with a head of its own, a LoRA on the embedding alone), the matrix is written out under every name first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser.algebra.expression import Expression
from merganser.algebra.live import onto
from merganser.architectures import ties
from merganser.checkpoint import StoredTensor
from merganser.checkpoint.tensor import same_content
from merganser.errors import AlgebraError

if TYPE_CHECKING:
    from merganser.algebra.weights import Entry, Weights


def levelled(*parts: Weights) -> list[Weights]:
    """The same weights, with a tensor for every name of a tied matrix that is not one matrix in all of them.

    Raises `AlgebraError` where an adapter changes one side of a tie and the other side's name is not known.
    """
    base = next((part for part in parts if part.origin is not None), None)
    parts = parts if base is None else tuple(p if p.origin is not None else onto(base, p) for p in parts)
    found = list(parts)
    for names in _groups(parts):
        apart = [part for part in parts if not _is_one(part, names)]
        if apart:
            found = [_written_out(part, names, parts, apart) for part in found]
    return found


def one_matrix(weights: Weights) -> dict[str, str]:
    """The aliases of these weights, without stored copies that have become matrices of their own."""
    return {
        name: answer
        for name, answer in weights.aliases.items()
        if name not in weights or (answer in weights and same(weights[name], weights[answer]))
    }


def same(a: Expression, b: Expression) -> bool:
    """Whether two expressions are the same function of the same bytes; stored copies are compared."""
    return _Same().nodes(a, b)


# Helpers --------------------------------------------------------------------------------------------------------------


def _groups(parts: Iterable[Weights]) -> list[list[str]]:
    """Names of one matrix, where at least one part lacks one of them and has it under another."""
    home: dict[str, list[str]] = {}
    wanted: set[int] = set()
    for part in parts:
        for name, answer in part.aliases.items():
            one, other = home.setdefault(answer, [answer]), home.setdefault(name, [name])
            if one is not other:
                one += other
                home.update(dict.fromkeys(other, one))
                wanted |= {id(one)} if id(other) in wanted else set()
            if name not in part and answer in part:
                wanted.add(id(one))
    return [group for group in {id(g): g for g in home.values()}.values() if id(group) in wanted]


def _is_one(part: Weights, names: Sequence[str]) -> bool:
    """Whether a part gives all names one value. A vector that lacks a name leaves it as it is; a model has no such."""
    found = [part.find(name) for name in names]
    held = [entry for entry in found if entry is not None]
    if part.origin is None and held and len(held) < len(found) and not part.aliases.keys() & set(names):
        return False
    return all(entry is held[0] or same(entry.expression, held[0].expression) for entry in held[1:])


def _written_out(
    part: Weights, names: Sequence[str], parts: Sequence[Weights], apart: Sequence[Weights]
) -> Weights:
    absent = {n: part.aliases[n] for n in names if n not in part and part.aliases.get(n) in part}
    if not absent:
        return part
    stored = {name for other in parts for name in names if name in other}
    checkpoint = next(iter(part.checkpoints), None)
    certain = ties.certain(checkpoint) if checkpoint is not None else frozenset()
    # The config has one flag for all ties, so a loader that reads it looks for the names of the others too.
    absent |= {
        n: answer for n, answer in part.aliases.items() if n in certain and n not in part and answer in part
    }
    added = {name: answer for name, answer in absent.items() if name in stored or name in certain}
    if not added:
        if checkpoint is None or not ties.flag(checkpoint.config or {}):
            return part
        answer, kind = next(iter(absent.values())), (checkpoint.config or {}).get("model_type")
        raise AlgebraError(
            f"{apart[0].label!r} changes {answer!r} alone, and the head of {part.label!r} shares it "
            f"(tie_word_embeddings). What the head is called is not known for model_type {kind!r}, so it cannot keep "
            "the old matrix. Give the model a head of its own first, in transformers: load it, set "
            "model.config.tie_word_embeddings = False and model.get_output_embeddings().weight = "
            "torch.nn.Parameter(model.get_input_embeddings().weight.clone()), and save_pretrained"
        )
    entries: dict[str, Entry] = {name: part.entry(name) for name in part}
    entries |= {name: entries[answer] for name, answer in added.items()}
    reading = part.reading
    if reading is not None:
        reading = replace(reading, tensors={**reading.tensors, **reading.named(added)})
    return part._with(entries, reading=reading)


class _Same:
    """Two graphs walked side by side, every pair of nodes once."""

    def __init__(self) -> None:
        self.known: set[tuple[int, int]] = set()

    def nodes(self, a: Expression, b: Expression) -> bool:
        if a is b or (id(a), id(b)) in self.known:
            return True
        if type(a) is not type(b) or a.shape != b.shape or not self._fields(a, b):
            return False
        self.known.add((id(a), id(b)))
        return True

    def _fields(self, a: Any, b: Any) -> bool:
        return all(self._value(getattr(a, field.name), getattr(b, field.name)) for field in fields(a))

    def _value(self, a: Any, b: Any) -> bool:
        if a is b:
            return True
        if type(a) is not type(b):
            return False
        if isinstance(a, Expression):
            return self.nodes(a, b)
        if isinstance(a, StoredTensor):
            return same_content(a, b)
        if isinstance(a, np.ndarray):
            return np.array_equal(a, b)
        if isinstance(a, tuple | list):
            return len(a) == len(b) and all(map(self._value, a, b))
        if is_dataclass(a):
            return self._fields(a, b)
        return bool(a == b)
