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


def without_unnamed(
    models: Sequence[Weights], merged: Sequence[int], *, mergekit: bool, axes: bool
) -> tuple[list[Weights], list[str], list[str]]:
    """The models without tensors that their family's file does not name, and what was left out, for the report.

    That is in two lists: what only some of the merged models have, and what all of them have.

    In mergekit's form those that not all of the merged models have (a value head that training left, for instance), and
    with `axes`, where layers or tokens must be known, all of them. In our own form constants alone, and with `axes`.
    """
    taking = [k for k in merged if not is_vector(models[k])]
    found, some, others = list(models), list[str](), list[str]()
    for k in taking if mergekit or axes else ():
        gone = set()
        for name in _unnamed(models[k]):
            lacking = any(models[other].find(name) is None for other in taking)
            if (mergekit and lacking) or (axes and (mergekit or models[k].entry(name).carried)):
                gone.add(name)
                (some if lacking else others).append(f"{name} of {models[k].label}")
        if gone:
            rest = {name: models[k].entry(name) for name in models[k] if name not in gone}
            found[k] = models[k]._with(rest, passed_over=models[k].passed_over | gone)
    return found, some, others


def _unnamed(weights: Weights) -> list[str]:
    origin = weights.origin
    config = None if origin is None else origin.config
    family = None if config is None else family_of(str(config.get("model_type")))
    return [] if family is None else unnamed(family, list(weights))


__all__ = ["promoted", "without_unnamed"]
