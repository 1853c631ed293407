"""What mergekit's form does otherwise than our own with tensors: their precision, and those that it passes over.

In mergekit a result without `dtype` has the type that its inputs promote to, tensor by tensor; and what its template of
the architecture does not name is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

from merganser.algebra import Expression, Leaf, Weights
from merganser.algebra.expression import Written, walk
from merganser.architectures import family_of
from merganser.architectures.reading import unnamed
from merganser.checkpoint.dtypes import BF16, F16, F32, F64
from merganser.recipe.lacking import is_vector

_ORDER = (F16, BF16, F32, F64)


def promoted(weights: Weights) -> Weights:
    """The weights with every tensor in the dtype that the stored tensors it is made of promote to.

    Two of one dtype promote to it, F16 and BF16 to F32, and any with a wider one to that. Tensors of other dtypes, and
    those that are carried, stay as they are.
    """

    def one(_: str, node: Expression) -> Expression:
        found = {
            leaf.tensor.dtype
            for leaf in walk([node])
            if isinstance(leaf, Leaf) and leaf.tensor.dtype.is_float
        }
        if len(found) < 2 or not found <= set(_ORDER):
            return node
        wide = max(found, key=_ORDER.index)
        return Written(F32 if wide == BF16 else wide, node)

    return weights.map(one)


def without_unnamed(models: Sequence[Weights], merged: Sequence[int]) -> tuple[list[Weights], list[str]]:
    """The models without tensors that their family's file does not name and that not all of the merged ones have.

    A value head that training left, for instance. Also gives what was left out, for the report.
    """
    taking = [k for k in merged if not is_vector(models[k])]
    found, told = list(models), []
    for k in taking:
        odd = [
            name for name in _unnamed(models[k]) if any(models[other].find(name) is None for other in taking)
        ]
        if odd:
            gone = set(odd)
            rest = {name: models[k].entry(name) for name in models[k] if name not in gone}
            found[k] = models[k]._with(rest, passed_over=models[k].passed_over | gone)
            told += [f"{name} of {models[k].label}" for name in odd]
    return found, told


def _unnamed(weights: Weights) -> list[str]:
    origin = weights.origin
    config = None if origin is None else origin.config
    family = None if config is None else family_of(str(config.get("model_type")))
    return [] if family is None else unnamed(family, list(weights))


__all__ = ["promoted", "without_unnamed"]
