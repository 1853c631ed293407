"""From one model type to another: config.json, class names and prefixes as the new loader must find them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from merganser.architectures import Family, Reading, families
from merganser.architectures.loader import Loader, carried
from merganser.errors import RequestError

LAYER = "layers.{layer}."


def loaders_of(dense: Reading, target: Family, kind: str, step: str) -> tuple[Loader, Loader]:
    """What is known of both loaders. Raises `AlgebraError` where one is not known, with those that are."""
    old, new = dense.family.loader(dense.config), target.loaders.get(kind)
    if old is None or new is None:
        known = sorted(
            loader.model_type
            for family in families().values()
            for loader in family.loaders.values()
            if new is None or loader.computes == new.computes
        )
        lost = kind if new is None else dense.config.get("model_type")
        raise dense.refused(
            f"{step}: what the loader of {lost} computes is not in its family's file (loaders:), so it cannot be "
            f"compared with that of {kind}; known are {', '.join(known)}"
        )
    return old, new


def config_for(
    dense: Reading,
    target: Family,
    kind: str,
    given: Mapping[str, Any],
    step: str,
    *,
    biases: Collection[str] | None = None,
    way_out: str = "",
) -> dict[str, Any]:
    """The config of `dense` as the loader of another model type must read it to compute the same.

    given: keys that the step sets itself. biases: the modules of a layer that will have biases (default: those that
    have them). way_out: what to do instead, for the messages of refusals. Raises
    `AlgebraError` that names what the new loader cannot say.
    """

    def refuse(text: str) -> Exception:
        return dense.refused(f"{step}: {text}{way_out}")

    old, new = loaders_of(dense, target, kind, step)
    made = carried(
        dense.config,
        old,
        new,
        layers=layers_of(dense),
        biased=biased(dense) if biases is None else biases,
        refuse=refuse,
    )
    sizes = dense.said()
    for key, value in made.items():
        if value is None and key not in dense.config and key in sizes:
            made[key] = sizes[key]  # what the old loader takes from other keys
    return {**renamed(made, kind), **given}


def layers_of(reading: Reading) -> int:
    """How many layers a model has."""
    return max((size for axis, size in reading.sizes.items() if axis.name == "layer"), default=0)


def biased(reading: Reading) -> set[str]:
    """The modules inside a layer that have biases, named from the layer."""
    return {
        named.spec.module.removeprefix(LAYER)
        for named in reading.tensors.values()
        if named.spec.pattern.endswith(".bias") and named.spec.module.startswith(LAYER)
    }


def prefix_for(dense: Reading, target: Family, config: Mapping[str, Any]) -> str:
    """The prefix of the body's tensors in the class that the new config names; "" for a bare body."""
    new = target.loader(config)
    if not dense.prefix or new is None:
        return dense.prefix
    return new.prefix(config, target.body)


def renamed(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The config under another model type; class names follow by transformers' own pattern (MistralForCausalLM)."""
    camel = "".join(word[:1].upper() + word[1:] for word in kind.split("_"))
    classes = []
    for name in map(str, config.get("architectures") or []):
        head = re.search(r"For[A-Z]\w*$|Model$", name)
        if head is None:
            raise RequestError(
                f"config.json's architectures names {name!r}, which is neither a Model nor a For-something"
            )
        classes.append(camel + head[0])
    return {**config, "model_type": kind, **({"architectures": classes} if classes else {})}


__all__ = ["biased", "config_for", "layers_of", "loaders_of", "prefix_for", "renamed"]
