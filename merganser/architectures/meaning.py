"""What config.json makes of a model's tensors: the values that must agree where two models are joined.

Two configs mean the same however they are written: defaults that one leaves out, older names of keys, nested or flat
rotary settings, other names of an activation. `loader_defaults.json` holds what transformers' config classes take for
granted (a test writes it anew and compares); `meaning.yaml` says which keys matter.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from merganser.errors import did_you_mean

ROTARY = ("rope_theta", "rope_scaling", "partial_rotary_factor")
TOKENIZER_KEY = "tokenizer"
"""What it is called where two tokenizers number tokens otherwise: no key of a config, but allowed as these are."""
_OWN_LENGTH = ("llama3", "yarn", "longrope")


@dataclass(frozen=True, slots=True)
class Difference:
    """A key whose value differs. `broken`: tensors of the two cannot stand for each other at all."""

    key: str
    first: Any
    second: Any
    broken: bool

    def told(self, first: str, second: str) -> str:
        """In words, for two models of these names."""
        return f"{self.key} is {_shown(self.first)} in {first} and {_shown(self.second)} in {second}"


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    """Where two configs contradict each other about what tensors mean, in the order of their keys."""
    if first == second:
        return []
    own, other = meaning(first), meaning(second)
    found = []
    for key in dict.fromkeys((*own, *other)):
        if key in own and key in other and not _same(own[key], other[key]):
            broken = _matches(
                "broken", key.rpartition(".")[2] if key.startswith(_PARTS) else key.split(".")[0]
            )
            found.append(Difference(key, own[key], other[key], broken))
    return found


_PARTS = ("text_config", "vision_config", "audio_config", "encoder", "decoder", "thinker_config")


def meaning(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values that count, by key; what config.json leaves out as the loader fills it in, where that is known."""
    return _part(config, None if config.get("model_type") is None else str(config["model_type"]))


def check_keys(keys: Iterable[str]) -> str | None:
    """What is wrong with a list of keys that may differ, or None: a key that no config has is a slip."""
    known = _known() | {TOKENIZER_KEY}
    for key in keys:
        word = key.rpartition(".")[2]
        if key not in known and word not in known and key.split(".")[0] not in known:
            return f"no loader has a key {key!r} that changes what tensors mean{did_you_mean(key, known)}"
    return None


def allowed(key: str, allow: Iterable[str]) -> bool:
    """Whether a list of keys covers one: by its name, or its last word (`text_config.rope_theta`), or its first."""
    return any(key == one or key.endswith(f".{one}") or key.startswith(f"{one}.") for one in allow)


def _part(config: Mapping[str, Any], kind: str | None) -> dict[str, Any]:
    table = {} if kind is None else _loaders().get(kind, {})
    defaults, names = table.get("defaults", {}), table.get("names", {})
    given: dict[str, Any] = {}
    for key, value in config.items():
        own = names.get(key, key)
        if own in given and (value is None or own == key != own):
            continue
        given[own] = value
    if isinstance(config.get("hidden_activation"), str):  # Gemma's first configs have both
        given[
            names.get("hidden_activation", "hidden_act" if "hidden_act" in defaults else "hidden_activation")
        ] = config["hidden_activation"]
    found: dict[str, Any] = {} if kind is None else {"model_type": kind}
    for key in defaults if table else [key for key in given if key in _known()]:
        if key in ("rope_parameters", *ROTARY):
            continue
        if key in given:
            found[key] = _value(key, given[key])
        elif not _matches("from_others", key):
            found[key] = _value(key, defaults[key])
    if table:  # the classes of transformers 5 no longer have it, and older weights do
        found["position_embedding_type"] = given.get("position_embedding_type") or "absolute"
    _settle(found, given)
    found |= _rotary(given, table)
    for key, value in config.items():
        if isinstance(value, Mapping) and (
            key in table.get("parts", {}) or isinstance(value.get("model_type"), str)
        ):
            inner = str(value.get("model_type") or table.get("parts", {}).get(key))
            found |= {f"{key}.{word}": one for word, one in _part(value, inner).items()}
    return found


def _value(key: str, value: Any) -> Any:
    if isinstance(value, str) and _matches("activation_keys", key):
        return _data()["activations"].get(value, value)
    return value


def _settle(found: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Values that follow from others where they are null, and windows that are switched off."""
    heads = next(
        (found[key] for key in ("num_attention_heads", "n_head", "num_heads") if found.get(key)), None
    )
    for key in ("num_key_value_heads", "num_kv_heads"):
        if found.get(key, 0) is None:
            found[key] = heads
    size = given.get("hidden_size")
    if found.get("head_dim", 0) is None and isinstance(heads, int) and isinstance(size, int) and heads:
        found["head_dim"] = size // heads
    if found.get("use_sliding_window", True) is False:
        for key in ("sliding_window", "max_window_layers", "layer_types"):
            found.pop(key, None)
    if "sliding_window" in found and not found["sliding_window"]:
        found["sliding_window"] = None


def _rotary(given: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_theta`, `rope_scaling` and `partial_rotary_factor`, by kind of layer where these differ."""
    usual = table.get("defaults", {}).get("rope_parameters")
    base = _flat(usual if isinstance(usual, Mapping) else {}, given)
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in table.get("defaults", {}) and table["defaults"][key] is not None:
            base.setdefault(key, table["defaults"][key])
    told = next(
        (
            given[k]
            for k in ("rope_scaling", "rope_parameters")
            if isinstance(given.get(k), Mapping) and given[k]
        ),
        None,
    )
    names = _data()["rotary"]
    plain = {
        names.get(key, key): value
        for key, value in given.items()
        if (key in names or key in ROTARY) and key != "rope_scaling" and value is not None
    }
    if not (base or told or plain):
        return {}
    layered = any("." in key for key in base)
    if told is not None or plain:
        base = {key: value for key, value in base.items() if not key.startswith("rope_scaling")}
    if told is not None:
        base |= _flat(told, given, "full_attention" if layered else "")
    for key, value in plain.items():
        name = f"{key}.full_attention" if layered and "." not in key else key
        if not layered:
            name = name.removesuffix(".full_attention")
        if told is None or name not in _flat(told, given, "full_attention" if layered else ""):
            base[name] = value
    if not layered:
        base.setdefault("rope_scaling", None)
        base.setdefault("partial_rotary_factor", 1.0)
    return base


def _flat(told: Mapping[str, Any], given: Mapping[str, Any], kind: str = "") -> dict[str, Any]:
    """Rotary settings as `rope_theta`, `rope_scaling`, with the kind of layer behind a dot where they are by kind."""
    inner = {key: value for key, value in told.items() if isinstance(value, Mapping)}
    if inner:
        found: dict[str, Any] = {}
        for key, value in inner.items():
            found |= _flat(value, given, key)
        return found
    found = {key: told[key] for key in ("rope_theta", "partial_rotary_factor") if told.get(key) is not None}
    word = {"mrope": "default", "su": "longrope"}.get(
        told.get("rope_type") or told.get("type") or "default",
        told.get("rope_type") or told.get("type") or "default",
    )
    rest = {
        key: value
        for key, value in told.items()
        if key not in ("type", "rope_type", *found) and value is not None and key not in ROTARY
    }
    if word in _OWN_LENGTH:
        length = given.get("original_max_position_embeddings") or given.get("max_position_embeddings")
        if rest.get("original_max_position_embeddings", length) is not None:
            rest.setdefault("original_max_position_embeddings", length)
    if word != "default" or rest:
        found["rope_scaling"] = {"rope_type": word, **rest}
    return {f"{key}.{kind}" if kind else key: value for key, value in found.items()}


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, bool) or isinstance(b, bool):
        return (
            bool(a) == bool(b)
            if isinstance(a, bool | int | None) and isinstance(b, bool | int | None)
            else a == b
        )
    if isinstance(a, int | float) and isinstance(b, int | float):
        return a == b or math.isclose(a, b, rel_tol=1e-9)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


def _shown(value: Any) -> str:
    text = (
        "null" if value is None else json.dumps(value, default=str) if not isinstance(value, str) else value
    )
    return text if len(text) < 120 else f"{text[:110]} ..."


@cache
def _data() -> dict[str, Any]:
    text = files("merganser.architectures").joinpath("meaning.yaml").read_text(encoding="utf-8")
    return dict(yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


@cache
def _loaders() -> dict[str, Any]:
    text = files("merganser.architectures").joinpath("loader_defaults.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


@cache
def _known() -> frozenset[str]:
    """Every key that counts in some loader."""
    return frozenset(key for table in _loaders().values() for key in table["defaults"]) | {
        "model_type",
        *ROTARY,
    }


@cache
def _pattern(section: str) -> re.Pattern[str]:
    if section == "activation_keys":
        return re.compile(_data()["broken"][-1])
    return re.compile("|".join(f"(?:{one})" for one in _data()[section]))


@cache
def _matches(section: str, key: str) -> bool:
    return _pattern(section).fullmatch(key) is not None


def counts(key: str) -> bool:
    """Whether a key of a loader's config class changes what tensors mean."""
    return not _matches("told_elsewhere", key) and not _matches("harmless", key)
