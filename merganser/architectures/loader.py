"""What the stock loader of a model type takes for granted: values that config.json leaves out, and what no key says.

Two loaders may read the same tensors and compute other things of them: another rotary base, another norm epsilon, no
place for a bias, a window in every layer. A step that changes `model_type` carries the config from one to the other
here, or refuses by name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from merganser.architectures.notation import FamilyError, Formula
from merganser.errors import did_you_mean, listing

KEYS = ("computes", "because", "defaults", "plain", "biases", "windows", "shares", "wrapped")
WINDOW, SLIDING, FULL = "sliding_window", "sliding_attention", "full_attention"
THETA, ROPE = "rope_theta", ("rope_scaling", "rope_parameters")
Refuse = Callable[[str], Exception]


@dataclass(frozen=True)
class Windows:
    """Which layers' attention has a sliding window, of `sliding_window` tokens.

    `gate` is a key that must be true for any window, `types` the list that names each layer's kind of attention, and
    `layers`, a formula of `layer`, says which have one where that list is not there.
    """

    layers: Formula
    gate: str | None = None
    types: str | None = None


@dataclass(frozen=True)
class Loader:
    """The stock loader of one model type.

    `computes` names the arithmetic: loaders with the same word compute the same from the same tensors and the same
    values of the keys below, and `because` says in words what is peculiar about it. `defaults` are the values of keys
    that config.json leaves out, `plain` the values at which a key changes nothing (None: it has no such value), for
    keys that other loaders may not read. `biases` are modules that have biases where a key is true, "always" for those
    that have them whatever config.json says. `shares`, of mixtures, is the key that says whether the shares of the
    chosen experts are divided by their sum, True where they are in any case. `wrapped` are classes, by the end of their
    names, whose body has a prefix of its own.
    """

    model_type: str
    computes: str
    because: str = ""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    plain: Mapping[str, Any] = field(default_factory=dict)
    biases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    windows: Windows | None = None
    shares: str | bool | None = None
    wrapped: Mapping[str, str] = field(default_factory=dict)

    def value(self, config: Mapping[str, Any], key: str) -> Any:
        """What the loader takes for a key; None where neither config.json nor the loader says."""
        return config[key] if key in config else self.defaults.get(key)

    def reads(self, key: str) -> bool:
        """Whether the key means something to the loader."""
        return key in self.defaults

    def windows_of(self, config: Mapping[str, Any], layers: int) -> list[int | None]:
        """The window of each layer's attention in tokens, None where it sees everything."""
        rule = self.windows
        window = self.value(config, WINDOW) if rule is not None else None
        if rule is None or not window or (rule.gate is not None and not self.value(config, rule.gate)):
            return [None] * layers
        named = config.get(rule.types) if rule.types is not None else None
        if isinstance(named, list) and len(named) == layers:
            return [window if one == SLIDING else None for one in named]

        def slides(layer: int) -> bool:
            return bool(rule.layers(lambda name: layer if name == "layer" else self.value(config, name)))

        return [window if slides(layer) else None for layer in range(layers)]

    def normalises_shares(self, config: Mapping[str, Any]) -> bool:
        """Whether the shares of the experts that a token gets sum to 1."""
        return self.shares is True or (isinstance(self.shares, str) and bool(self.value(config, self.shares)))

    def prefix(self, config: Mapping[str, Any], body: str) -> str:
        """The prefix of the body's tensors in the class that config.json names."""
        for name in map(str, config.get("architectures") or ()):
            for ending, prefix in self.wrapped.items():
                if name.endswith(ending):
                    return f"{prefix}."
        return f"{body}." if body else ""


def parse_loaders(raw: Mapping[str, Any], model_types: Collection[str], place: str) -> dict[str, Loader]:
    """The section `loaders` of a family's file. Raises `FamilyError` that says where it is wrong."""
    found = {}
    for kind, entry in raw.items():
        here = f"{place}: loaders: {kind}"
        if kind not in model_types:
            raise FamilyError(f"{here}: is no model type of this file{did_you_mean(str(kind), model_types)}")
        if not isinstance(entry, Mapping) or "computes" not in entry:
            raise FamilyError(f"{here}: expected a mapping that says what it computes")
        if unknown := [key for key in entry if key not in KEYS]:
            raise FamilyError(f"{here}: unknown key {unknown[0]!r}{did_you_mean(str(unknown[0]), KEYS)}")
        for key in ("defaults", "plain", "biases", "windows", "wrapped"):
            if not isinstance(entry.get(key, {}), Mapping):
                raise FamilyError(f"{here}: {key}: expected a mapping")
        windows = entry.get("windows")
        if windows is not None and not {"layers"} <= windows.keys() <= {"layers", "gate", "types"}:
            raise FamilyError(f"{here}: windows: has layers, and may have gate and types")
        if lost := sorted(set(entry.get("plain", {})) - set(entry.get("defaults", {}))):
            raise FamilyError(f"{here}: plain: {lost[0]} has no default")
        found[str(kind)] = Loader(
            model_type=str(kind),
            computes=str(entry["computes"]),
            because=str(entry.get("because", "")),
            defaults=dict(entry.get("defaults", {})),
            plain=dict(entry.get("plain", {})),
            biases={str(k): tuple(str(v).split()) for k, v in entry.get("biases", {}).items()},
            windows=None
            if windows is None
            else Windows(Formula(str(windows["layers"])), windows.get("gate"), windows.get("types")),
            shares=entry.get("shares"),
            wrapped=dict(entry.get("wrapped", {})),
        )
    return found


# From one loader to another -------------------------------------------------------------------------------------------


def carried(
    config: Mapping[str, Any],
    old: Loader,
    new: Loader,
    *,
    layers: int,
    biased: Collection[str],
    refuse: Refuse,
) -> dict[str, Any]:
    """A config of one loader as the other must read it to compute the same; `model_type` is left to the caller.

    layers: how many the model has. biased: the modules inside a layer that have biases. What both say in the same way
    stays as it is written; what the new loader would take from its own defaults is written down. `refuse` makes the
    error out of the reason, where the new loader cannot say something.
    """
    if old.computes != new.computes:
        told = [f"{one.model_type}: {one.because}" for one in (old, new) if one.because]
        raise refuse(
            f"{old.model_type} and {new.model_type} compute different things from the same numbers, whatever "
            f"config.json says" + (f" ({'; '.join(told)})" if told else "")
        )
    made = dict(config)
    bias_keys = {*old.biases, *new.biases} - {"always"}
    of_windows = {WINDOW}
    for rule in (old.windows, new.windows):
        if rule is not None:
            of_windows |= {*rule.layers.names, *filter(None, (rule.gate, rule.types))} - {"layer"}
    shares = {one.shares for one in (old, new) if isinstance(one.shares, str)}
    apart = {*bias_keys, *of_windows, *shares, THETA}
    for key in dict.fromkeys((*old.defaults, *new.defaults)):
        if key not in apart:
            _carry_key(made, key, old, new, refuse)
    made |= _rotary_base(made, old, new)
    made |= _biases(made, new, biased, refuse)
    _carry_windows(made, config, old, new, layers, refuse)
    return made


def _carry_key(made: dict[str, Any], key: str, old: Loader, new: Loader, refuse: Refuse) -> None:
    """One key: written down where the loaders' defaults differ, held to its plain value where only one reads it."""
    if old.reads(key) and new.reads(key):
        if key not in made and old.defaults[key] != new.defaults[key]:
            made[key] = old.defaults[key]
        return
    reader = old if old.reads(key) else new
    plain = reader.plain.get(key)
    if reader is new and plain is not None:
        if new.value(made, key) != plain:
            made[key] = plain
        return
    if plain is None or reader.value(made, key) != plain:
        other = new if reader is old else old
        raise refuse(
            f"{reader.model_type} reads {key} = {reader.value(made, key)}, and {other.model_type} has no such key"
            + (f" and computes as with {plain}" if plain is not None else "")
        )


def _rotary_base(made: Mapping[str, Any], old: Loader, new: Loader) -> dict[str, Any]:
    """`rope_theta`, where nothing in config.json gives it and the defaults differ."""
    inside: Mapping[str, Any] = next(
        (made[k] for k in ROPE if isinstance(made.get(k), Mapping) and made[k]), {}
    )
    if THETA in inside or THETA in made or old.defaults.get(THETA) == new.defaults.get(THETA):
        return {}
    return {THETA: old.defaults.get(THETA)}


def _biases(made: Mapping[str, Any], new: Loader, biased: Collection[str], refuse: Refuse) -> dict[str, bool]:
    """The keys of biases, as the tensors need them."""
    written: dict[str, bool] = {}
    placed: set[str] = set()
    for key, modules in new.biases.items():
        held = [module for module in modules if module in biased]
        if (held and len(held) < len(modules)) or (not held and key == "always"):
            lacking = [module for module in modules if module not in biased]
            raise refuse(
                f"{new.model_type} needs biases in {listing(lacking)}"
                + (f" as well as in {listing(held)}" if held else "")
                + ", and the model has none there"
            )
        placed |= set(held)
        if key != "always" and bool(new.value(made, key)) != bool(held):
            written[key] = bool(held)
    if lost := sorted(set(biased) - placed):
        raise refuse(f"{new.model_type} has no place for the biases of {listing(lost)}")
    return written


def _carry_windows(
    made: dict[str, Any],
    config: Mapping[str, Any],
    old: Loader,
    new: Loader,
    layers: int,
    refuse: Refuse,
) -> None:
    wanted = old.windows_of(config, layers)
    if new.windows_of(made, layers) == wanted:
        return
    made |= window_keys(wanted, new, refuse)


def window_keys(wanted: Sequence[int | None], new: Loader, refuse: Refuse) -> dict[str, Any]:
    """The keys by which a loader gives every layer its window."""
    window = next((one for one in wanted if one is not None), None)
    rule = new.windows
    way = (
        "if no text is longer than the window, set sliding_window: null (or use_sliding_window: false) in the "
        "config.json of the model first"
    )
    if rule is None:
        if window is not None:
            raise refuse(
                f"attention has a sliding window of {window}, which {new.model_type} cannot have; {way}"
            )
        return {}
    if rule.types is None and None in wanted and window is not None:
        raise refuse(
            f"some layers have a sliding window and some not, which {new.model_type} cannot say; {way}"
        )
    keys: dict[str, Any] = {} if rule.gate is None else {rule.gate: window is not None}
    keys[WINDOW] = window
    if rule.types is not None:
        keys[rule.types] = [FULL if one is None else SLIDING for one in wanted]
    return keys


__all__ = ["Loader", "Windows", "carried", "parse_loaders", "window_keys"]
