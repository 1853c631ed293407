"""Groups of tensors that share a number, told from their names, and how a recipe says so."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from merganser.algebra import Weights

GROUPINGS = ("layer", "tensor")
_LAYER = re.compile(r"(?:^|\.)\d+\.")


@dataclass(frozen=True)
class Group:
    """Tensors whose names begin with `prefix`, or the one that is called so (`whole`)."""

    label: str
    prefix: str
    whole: bool

    @property
    def pattern(self) -> str:
        """As a shell pattern of a recipe."""
        escaped = re.sub(r"([*?[])", r"[\1]", self.prefix)
        return escaped if self.whole else escaped + "*"


def float_names(weights: Weights) -> list[str]:
    """The tensors that arithmetic reaches."""
    return [name for name in weights if not weights.entry(name).carried]


def groups(names: Sequence[str], by: str) -> dict[str, Group]:
    """The group of every name, by "tensor" (one a name) or "layer" (one a layer, and one a module outside them).

    A layer is what shares a name up to and with the first number in it (`model.layers.3.`), a module outside the layers
    what shares a name up to the last dot.
    """
    found: dict[str, Group] = {}
    for name in names:
        if by == "tensor":
            found[name] = Group(name, name, True)
        elif (match := _LAYER.search(name)) is not None:
            prefix = name[: match.end()]
            found[name] = Group(prefix.rstrip("."), prefix, False)
        elif "." in name:
            module = name.rpartition(".")[0]
            found[name] = Group(module, module + ".", False)
        else:
            found[name] = Group(name, name, True)
    return found


def setting(values: Mapping[Group, Any], *, patterns: bool) -> Any:
    """The value of a parameter that has a number for each group, as a recipe has it.

    With `patterns` {pattern: value}, merganser's own form; without them [{filter, value}], which mergekit's form takes
    too. The longest prefix comes first, because the first that applies counts.
    """
    order = sorted(values, key=lambda group: (-len(group.prefix), group.prefix))
    if patterns:
        return {group.pattern: values[group] for group in order}
    return [{"filter": group.prefix, "value": values[group]} for group in order]
