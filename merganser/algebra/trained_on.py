"""What is known of the model that an adapter was trained on.

Three places may say it: a config.json beside the adapter, the directory that `base_model_name_or_path` names where
there is one on this machine, and `auto_mapping`, by the class. Names on the hub say nothing that could be compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from merganser.architectures.live_names import live_class
from merganser.architectures.meaning import Difference, differences
from merganser.checkpoint import Checkpoint
from merganser.checkpoint.layout import ADAPTER_CONFIG, read_json
from merganser.errors import MerganserError

if TYPE_CHECKING:
    from merganser.algebra.weights import Weights

_known: WeakKeyDictionary[Checkpoint, dict[str, Any] | None] = WeakKeyDictionary()


def adapters_in(weights: Weights) -> list[Checkpoint]:
    """The adapters that weights are made of which are no model, but a change of one."""
    if weights.origin is not None:
        return []
    return [checkpoint for checkpoint in weights.checkpoints if checkpoint.is_adapter]


def configs_of(weights: Weights) -> list[Mapping[str, Any]]:
    """Of every adapter in them the config of the model it was trained on, as far as it is known (its type alone)."""
    found = []
    for checkpoint in adapters_in(weights):
        if checkpoint not in _known:
            _known[checkpoint] = _config(checkpoint)
        found.append(_known[checkpoint])
    return [config for config in found if config is not None]


def named_base(weights: Weights) -> str | None:
    """What the adapters call the model that they were trained on, where they agree."""
    names = {_settings(one).get("base_model_name_or_path") for one in adapters_in(weights)}
    only = names.pop() if len(names) == 1 else None
    return only if isinstance(only, str) and only else None


def unlike(own: Mapping[str, Any], other: Mapping[str, Any]) -> list[Difference]:
    """What forbids to put a change of one model on the other: another type, heads, activation and so on.

    What may be another version of one base (its rotary base, an epsilon) does not. A part of a model with several (a
    language model in one that sees) is no other type.
    """
    types = own.get("model_type"), other.get("model_type")
    if types[0] != types[1] and (types[0] in _types(other) or types[1] in _types(own)):
        return []
    if min(len(own), len(other)) == 1:  # only the type is known
        return [Difference("model_type", *types, broken=True)] if types[0] != types[1] else []
    return [one for one in differences(own, other) if one.broken]


def _types(config: Mapping[str, Any]) -> Iterator[Any]:
    for key, value in config.items():
        if key == "model_type":
            yield value
        elif isinstance(value, Mapping):
            yield from _types(value)


def _config(checkpoint: Checkpoint) -> dict[str, Any] | None:
    settings = _settings(checkpoint)
    homes = [checkpoint.directory, settings.get("base_model_name_or_path")]
    for home in homes:
        try:
            place = Path(home) / "config.json" if home else None
            if place is not None and place.is_file():
                config = read_json(place)
                if isinstance(config.get("model_type"), str):
                    return config
        except (MerganserError, OSError, TypeError, ValueError):
            continue  # what cannot be read says nothing
    mapping = settings.get("auto_mapping")
    name = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    try:
        found = live_class(None, architecture=name) if isinstance(name, str) else None
    except MerganserError:
        return None
    return None if found is None else {"model_type": found.model_type}


def _settings(checkpoint: Checkpoint) -> dict[str, Any]:
    if checkpoint.directory is None:
        return {}
    try:
        return read_json(checkpoint.directory / ADAPTER_CONFIG)
    except MerganserError:
        return {}


__all__ = ["adapters_in", "configs_of", "named_base", "unlike"]
