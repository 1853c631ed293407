"""A draft of a family file for a model that has none, from names, shapes and config, and what could not be decided."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from merganser.checkpoint import Checkpoint

KNOWN_KEYS = {
    "hidden_size": "residual",
    "d_model": "residual",
    "n_embd": "residual",
    "dim": "residual",
    "vocab_size": "vocab",
    "max_position_embeddings": "positions",
    "n_positions": "positions",
    "type_vocab_size": "token_types",
    "intermediate_size": "neurons",
    "ffn_dim": "neurons",
    "d_ff": "neurons",
    "hidden_dim": "neurons",
    "n_inner": "neurons",
    "moe_intermediate_size": "expert_neurons",
    "num_local_experts": "experts",
    "num_experts": "experts",
    "n_routed_experts": "experts",
    "num_labels": "labels",
    "state_size": "state",
}
LAYER_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers", "depth")
HEAD_KEYS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
KV_KEYS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")


@dataclass
class Draft:
    """The text of a family file, and the questions that are open."""

    text: str
    questions: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Pattern:
    """Tensors whose names differ by numbers only."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    counts: tuple[int, ...]


def draft(checkpoint: Checkpoint) -> Draft:
    """What can be told of a model's family without knowing it."""
    checkpoint.need_numbers()
    config = checkpoint.config or {}
    return _Drafter(checkpoint, config).draft()


class _Drafter:
    def __init__(self, checkpoint: Checkpoint, config: Mapping[str, Any]) -> None:
        self.checkpoint = checkpoint
        self.config = config
        self.questions: list[str] = []
        self.axes: dict[str, str] = {}
        self.sizes: dict[int, list[str]] = {}
        self.per_layer: set[str] = set()

    def draft(self) -> Draft:
        patterns = list(_patterns(self.checkpoint))
        body = _common_prefix([p.name for p in patterns])
        indices = self._indices(patterns)
        self._sizes()
        lines = [line for pattern in patterns for line in self._line(pattern, patterns, body)]
        head = [
            f"family: {self.config.get('model_type', 'NAME')}",
            f"model_types: [{self.config.get('model_type', 'NAME')}]",
        ]
        if body:
            head.append(f"body: {body}")
        if indices:
            head += ["indices:", *(f"  {name}: {size}" for name, size in indices.items())]
        head += ["axes:", *(f"  {name}: {size}" for name, size in self.axes.items())]
        inside = [line for outside, line in lines if not outside]
        outside = [line for outside, line in lines if outside]
        text = [*head, "modules:", *inside, *(["heads:", *outside] if outside else [])]
        if any("norm " in line for line in inside):
            self.questions.append(
                "norms: which modules read each norm, or whether it is on the branch or the stream"
            )
        self.questions.append("which axes have elements with fixed places (fixed:), as rotary pairs have")
        self.questions.append(
            "which sizes the loader takes for granted (require:), as residual == heads * head_dim"
        )
        return Draft("\n".join(text) + "\n", self.questions)

    def _indices(self, patterns: list[_Pattern]) -> dict[str, str]:
        counts: dict[str, int] = {}
        for pattern in patterns:
            for name, count in zip(re.findall(r"\{(\w+)\}", pattern.name), pattern.counts, strict=True):
                counts[name] = max(counts.get(name, 0), count)
        found = {}
        for name, count in counts.items():
            keys = [key for key in LAYER_KEYS if self.config.get(key) == count] if name == "layer" else []
            keys = keys or [
                key for key, value in self.config.items() if value == count and not isinstance(value, bool)
            ]
            if not keys:
                self.questions.append(f"{name}: there are {count}, and no config key says so")
            elif len(keys) > 1:
                self.questions.append(
                    f"{name}: {count} is the value of {', '.join(keys)}; {keys[0]} was taken"
                )
            found[name] = keys[0] if keys else str(count)
        return found

    def _sizes(self) -> None:
        """What sizes mean, by config keys."""
        for key, value in self.config.items():
            if isinstance(value, int) and not isinstance(value, bool) and value > 1 and key in KNOWN_KEYS:
                self.sizes.setdefault(value, []).append(key)

    def _line(self, pattern: _Pattern, patterns: list[_Pattern], body: str) -> Iterator[tuple[bool, str]]:
        module, _, suffix = pattern.name.rpartition(".")
        names = {p.name for p in patterns}
        if suffix == "bias" and f"{module}.weight" in names:
            return
        outside = bool(body) and not pattern.name.startswith(f"{body}.")
        shown = pattern.name if outside or not body else pattern.name.removeprefix(f"{body}.")
        module = shown.rpartition(".")[0]
        if len(set(pattern.shapes)) > 1:
            self.questions.append(
                f"{shown}: shapes differ from copy to copy ({', '.join(map(str, sorted(set(pattern.shapes))))})"
            )
        shape = pattern.shapes[0]
        dims = [self._axis(size, shown) for size in shape]
        last = module.rpartition(".")[2].lower()
        if suffix != "weight":
            yield outside, f"  {shown}: parameter {' '.join(dims) or '1'}"
        elif len(shape) == 1:
            kind = "layernorm" if f"{pattern.name.removesuffix('weight')}bias" in names else "rmsnorm"
            yield outside, f"  {module}: {kind} {dims[0]}"
        elif len(shape) == 2 and ("emb" in last or last in ("wte", "wpe", "shared")):
            yield outside, f"  {module}: embedding {dims[0]} -> {dims[1]}"
        elif len(shape) == 2:
            yield outside, f"  {module}: linear {dims[1]} -> {dims[0]}"
        else:
            yield outside, f"  {module}: conv {' '.join(dims[1:])} -> {dims[0]}"

    def _axis(self, size: int, name: str) -> str:
        """The axis that a size belongs to, or the bare number with a question."""
        layered = "{" in name
        keys = self.sizes.get(size, [])
        heads = next((self.config[k] for k in HEAD_KEYS if isinstance(self.config.get(k), int)), 0)
        kv = next((self.config[k] for k in KV_KEYS if isinstance(self.config.get(k), int)), heads)
        per_head = self.config.get("head_dim") or (
            (self._value("residual") // heads) if heads and self._value("residual") % heads == 0 else 0
        )
        attention = re.search(r"att|(^|[._])[qkvo](_proj)?([._]|$)", name) is not None
        if (
            attention
            and per_head
            and size in (heads * per_head, kv * per_head)
            and size != self._value("residual")
        ):
            self.questions.append(
                f"{name}: a dimension of {size} is {size // per_head} heads of {per_head}; name the axes "
                "(kv_heads groups head_dim)"
            )
        if attention and size == self._value("residual") and heads:
            self.questions.append(
                f"{name}: which dimension of {size} is the residual, and which {heads} heads of {per_head}"
            )
        if not keys:
            self.questions.append(f"{name}: what a dimension of {size} is")
            return str(size)
        axis = KNOWN_KEYS[keys[0]]
        if len({KNOWN_KEYS[key] for key in keys}) > 1:
            self.questions.append(f"{name}: {size} is the value of {', '.join(keys)}; {axis} was taken")
        spec = f"{axis}[layer]" if axis in ("neurons", "expert_neurons") and layered else axis
        self.axes.setdefault(spec, keys[0])
        return axis

    def _value(self, axis: str) -> int:
        for key, name in KNOWN_KEYS.items():
            if name == axis and isinstance(self.config.get(key), int):
                return int(self.config[key])
        return 0


def _patterns(checkpoint: Checkpoint) -> Iterator[_Pattern]:
    """Names with their numbers as indices, in the order of the checkpoint."""
    groups: dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]] = {}
    for name, tensor in checkpoint.tensors.items():
        words = name.split(".")
        numbers = [k for k, word in enumerate(words) if word.isdigit()]
        for place, index in zip(numbers, ("layer", "expert", "part", "inner"), strict=False):
            words[place] = f"{{{index}}}"
        values = tuple(int(name.split(".")[k]) for k in numbers)
        groups.setdefault(".".join(words), []).append((values, tensor.shape))
    for pattern, members in groups.items():
        columns = zip(*(values for values, _ in members), strict=True)
        counts = tuple(max(column) + 1 for column in columns)[: pattern.count("{")]
        yield _Pattern(pattern, tuple(shape for _, shape in members), counts)


def _common_prefix(names: list[str]) -> str:
    """The first word of most names, if it is no number and not one of many."""
    firsts = [name.partition(".")[0] for name in names if "." in name]
    if not firsts:
        return ""
    word = max(set(firsts), key=firsts.count)
    return (
        word
        if firsts.count(word) * 2 > len(names) and word not in ("layers", "blocks", "h", "encoder")
        else ""
    )
