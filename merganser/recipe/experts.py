"""The schema of mixtures (mergekit-moe's): a base, experts with prompts, how gates are made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merganser.algebra import Weights
from merganser.algebra.agreement import config_of
from merganser.checkpoint.dtypes import parse_dtype
from merganser.errors import AlgebraError, RequestError, did_you_mean
from merganser.methods.experts.assemble import NOT_OF_EXPERTS, TARGETS, Expert, mixture
from merganser.methods.experts.gates import MODES, RANDOM, Prompts
from merganser.recipe.agreement import agreed, read_allow
from merganser.recipe.keys import Keys
from merganser.recipe.reference import Reference, read_reference
from merganser.recipe.settings import shown

KEYS = (
    "base_model",
    "experts",
    "shared_experts",
    "gate_mode",
    "experts_per_token",
    "architecture",
    "dtype",
    "allow",
)
EXPERT_KEYS = ("source_model", "positive_prompts", "negative_prompts", "residual_scale", "noise_scale")
OpenModel = Callable[[Any, str], Weights]


@dataclass(frozen=True)
class Named:
    """A model as the recipe names it: the reference, what was written, and where."""

    reference: Reference
    raw: Any
    place: str

    @property
    def path(self) -> str:
        """As written."""
        return str(self.reference)


@dataclass(frozen=True)
class ExpertEntry:
    """An entry of `experts` or `shared_experts`; None is a number that is not given."""

    model: Named
    prompts: Prompts
    residual_scale: float | None
    noise_scale: float | None

    @property
    def canonical(self) -> dict[str, Any]:
        """What it says, in plain JSON."""
        return {
            "model": self.model.path,
            "positive_prompts": list(self.prompts.positive),
            "negative_prompts": list(self.prompts.negative),
            "residual_scale": self.residual_scale,
            "noise_scale": self.noise_scale,
        }

    def opened(self, model: Weights) -> Expert:
        """The expert that it asks for, of a model that has been opened."""
        return Expert(
            model,
            self.prompts,
            1.0 if self.residual_scale is None else self.residual_scale,
            0.0 if self.noise_scale is None else self.noise_scale,
        )


@dataclass(frozen=True)
class Mixture:
    """A checked mixture. `directory` is where the recipe lay."""

    base: Named
    experts: tuple[ExpertEntry, ...]
    shared: tuple[ExpertEntry, ...]
    gate_mode: str
    per_token: int
    architecture: str | None
    dtype: str | None
    directory: Path | None
    source: str
    allow: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    """What it says that is read over, as mergekit does."""

    @property
    def models(self) -> tuple[Named, ...]:
        """The models that are opened, each once."""
        found: dict[Any, Named] = {}
        for named in (self.base, *(entry.model for entry in (*self.experts, *self.shared))):
            found.setdefault(named.reference.identity, named)
        return tuple(found.values())

    @property
    def summary(self) -> str:
        """What is made, in a line."""
        return f"A mixture of {len(self.experts)} experts, {self.per_token} for every token."

    @property
    def canonical(self) -> dict[str, Any]:
        """What the recipe says, in plain JSON."""
        return {
            "form": "mergekit",
            "method": "mixture",
            "base": self.base.path,
            "models": [{"name": named.path, "path": named.path, "parameters": {}} for named in self.models],
            "parameters": {
                "gate_mode": self.gate_mode,
                "experts_per_token": self.per_token,
                **({} if self.architecture is None else {"architecture": self.architecture}),
            },
            "experts": [entry.canonical for entry in self.experts],
            "shared_experts": [entry.canonical for entry in self.shared],
            "dtype": self.dtype,
            **({"allow": list(self.allow)} if self.allow else {}),
        }


def is_mixture(raw: Mapping[str, Any]) -> bool:
    """Whether a recipe describes a mixture: it lists experts and names no method."""
    return "experts" in raw and not {"method", "merge_method", "model"} & raw.keys()


def read_mixture(raw: Mapping[str, Any], source: str, directory: Path | None) -> Mixture:
    """Check a mixture's recipe. Opens no checkpoint.

    Raises `RequestError` that names the place, such as `experts[1].positive_promts`, for unknown keys, wrong
    values, and what cannot work whatever the models are.
    """
    return _Reader(raw, source, directory).mixture()


def build_mixture(found: Mixture, open_model: OpenModel, *, seed: int) -> Weights:
    """The lazy mixture. `open_model` opens a model by what the recipe says of it and the place where it says so.

    Only headers are read, except for the gate modes that run the base model. Raises what `mixture` raises, with the
    recipe's name before it.
    """
    opened = {named.reference.identity: open_model(named.raw, named.place) for named in found.models}
    models, differ = list(opened.values()), None
    kinds = {str((config_of(model) or {}).get("model_type")) for model in models}
    if len(kinds) == 1:  # of others there is no mixture, whatever is allowed
        models, differ = agreed(
            models,
            range(1, len(models)),
            0,
            found.allow,
            mergekit=True,
            besides=NOT_OF_EXPERTS,
            place=found.source,
        )
        opened = dict(zip(opened, models, strict=True))

    def expert(entry: ExpertEntry) -> Expert:
        return entry.opened(opened[entry.model.reference.identity])

    try:
        made = mixture(
            opened[found.base.reference.identity],
            [expert(entry) for entry in found.experts],
            shared=[expert(entry) for entry in found.shared],
            architecture=found.architecture,
            gate_mode=found.gate_mode,
            per_token=found.per_token,
            seed=seed,
        )
    except (RequestError, AlgebraError) as error:
        raise type(error)(f"{found.source}: {error}") from error
    return made if differ is None else made.with_note(differ)


class _Reader:
    def __init__(self, raw: Mapping[str, Any], source: str, directory: Path | None) -> None:
        self.source = source
        self.directory = directory
        self.keys = Keys(source, mergekit=True)
        self.raw = self.keys.check(raw, KEYS, "")

    def mixture(self) -> Mixture:
        mode = self.choice("gate_mode", MODES, "hidden")
        found = Mixture(
            base=self.model(self.raw.get("base_model"), "base_model"),
            experts=self.entries("experts"),
            shared=self.entries("shared_experts"),
            gate_mode=mode,
            per_token=self.per_token(),
            architecture=self.architecture(),
            dtype=self.dtype(),
            directory=self.directory,
            source=self.source,
            allow=read_allow(self.raw.get("allow"), f"{self.source}: allow"),
            ignored=tuple(self.keys.ignored),
        )
        if not found.experts:
            raise self.error("experts", "there must be one or more")
        if found.per_token > len(found.experts):
            raise self.error(
                "experts_per_token", f"{found.per_token} of {len(found.experts)} experts cannot be chosen"
            )
        if mode not in RANDOM:
            self.check_prompts(found)
        return found

    def error(self, place: str, text: str) -> RequestError:
        return RequestError(f"{self.source}: {place}: {text}")

    def check_prompts(self, found: Mixture) -> None:
        for i, entry in enumerate(found.experts):
            if not entry.prompts.positive:
                raise self.error(
                    f"experts[{i}]", f"gate_mode {found.gate_mode} needs positive_prompts for every expert"
                )
        if len(found.experts) > 1 and len({entry.prompts for entry in found.experts}) == 1:
            raise self.error(
                "experts",
                "all have the same prompts, so all would be chosen alike; give each prompts of its own",
            )
        if len({bool(entry.prompts.positive) for entry in found.shared}) > 1:
            raise self.error("shared_experts", "either all have positive_prompts, or none")

    def entries(self, key: str) -> tuple[ExpertEntry, ...]:
        raw = self.raw.get(key)
        if raw is None:
            return ()
        if not isinstance(raw, list):
            raise self.error(key, f"expected a list of {{source_model: PATH, ...}}, not {shown(raw)}")
        return tuple(self.entry(entry, f"{key}[{i}]") for i, entry in enumerate(raw))

    def entry(self, raw: Any, place: str) -> ExpertEntry:
        if not isinstance(raw, dict):
            raise self.error(
                place, f"expected {{source_model: PATH, positive_prompts: [...]}}, not {shown(raw)}"
            )
        raw = self.keys.check(raw, EXPERT_KEYS, place)
        noise = self.number(raw.get("noise_scale"), f"{place}.noise_scale")
        if noise is not None and noise < 0:
            raise self.error(f"{place}.noise_scale", f"expected 0 or more, not {noise:g}")
        prompts = (
            self.prompts(raw.get(f"{kind}_prompts"), f"{place}.{kind}_prompts")
            for kind in ("positive", "negative")
        )
        return ExpertEntry(
            self.model(raw.get("source_model"), f"{place}.source_model"),
            Prompts(*prompts),
            self.number(raw.get("residual_scale"), f"{place}.residual_scale"),
            noise,
        )

    def model(self, raw: Any, place: str) -> Named:
        here = f"{self.source}: {place}"
        if raw is None:
            raise RequestError(f"{here}: names no model")
        return Named(read_reference(raw, here, mergekit=True, directory=self.directory), raw, here)

    def prompts(self, raw: Any, place: str) -> tuple[str, ...]:
        if raw is None:
            return ()
        if not isinstance(raw, list):
            raise self.error(place, f"expected a list of texts, not {shown(raw)}")
        for i, prompt in enumerate(raw):
            if not isinstance(prompt, str):
                raise self.error(f"{place}[{i}]", f"expected text, in quotes if need be, not {shown(prompt)}")
        return tuple(raw)

    def number(self, raw: Any, place: str) -> float | None:
        if raw is None:
            return None
        number = math.nan
        if isinstance(raw, int | float | str) and not isinstance(raw, bool):
            try:
                number = float(raw)  # YAML 1.1 reads 1e-3 as text
            except (ValueError, OverflowError):
                number = math.nan
        if not math.isfinite(number):
            raise self.error(place, f"expected a number, not {shown(raw)}")
        return number

    def per_token(self) -> int:
        raw = self.keys.whole(self.raw.get("experts_per_token"), "experts_per_token")
        if raw is None:
            return 2
        if isinstance(raw, bool) or not isinstance(raw, int) or raw < 1:
            raise self.error("experts_per_token", f"expected a whole number of 1 or more, not {shown(raw)}")
        return raw

    def choice(self, key: str, known: Sequence[str], default: str) -> str:
        raw = self.raw.get(key)
        if raw is None:
            return default
        if not isinstance(raw, str) or raw not in known:
            near = did_you_mean(raw, known) if isinstance(raw, str) else ""
            raise self.error(key, f"expected one of {', '.join(known)}, not {shown(raw)}{near}")
        return raw

    def architecture(self) -> str | None:
        raw = self.raw.get("architecture")
        if raw is None:
            return None
        titles = [target.title for target in TARGETS]
        if not isinstance(raw, str) or not any(title.lower().startswith(raw.lower()) for title in titles):
            near = did_you_mean(raw.lower(), [t.lower() for t in titles]) if isinstance(raw, str) else ""
            raise self.error(
                "architecture",
                f"expected the beginning of one of {', '.join(titles)}, not {shown(raw)}{near}",
            )
        return raw

    def dtype(self) -> str | None:
        raw = self.raw.get("dtype")
        if raw is None:
            return None
        try:
            dtype = parse_dtype(raw) if isinstance(raw, str) else None
        except RequestError as error:
            raise self.error("dtype", str(error)) from None
        if dtype is None or not dtype.is_float:
            raise self.error("dtype", f"expected a float dtype such as bfloat16, not {shown(raw)}")
        return dtype.torch_name


__all__ = ["ExpertEntry", "Mixture", "Named", "build_mixture", "is_mixture", "read_mixture"]
