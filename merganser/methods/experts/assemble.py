"""Dense models of one kind as the experts of a mixture: everything else from a base, and a router over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from merganser.algebra import Entry, Expression, Weights
from merganser.algebra.agreement import check_agreement
from merganser.algebra.axes import reading_of
from merganser.algebra.rearranged import Array, joined
from merganser.architectures import Axis, Family, NamedTensor, Reading, family_of
from merganser.architectures.loader import window_keys
from merganser.architectures.reading import read_tensors
from merganser.checkpoint import Checkpoint
from merganser.errors import AlgebraError, RequestError, did_you_mean, listing
from merganser.methods.experts._loaders import biased, config_for, layers_of, loaders_of
from merganser.methods.experts.gates import MODES, RANDOM, Prompts, normal, prompt_rows, random_rows

MLP = "layers.{layer}.mlp."
GATE, UP, DOWN = "gate_proj", "up_proj", "down_proj"
BUFFER = "rotary_emb.inv_freq"
NO_PROMPTS = Prompts()
NOT_OF_EXPERTS = frozenset({"tokenizer"})
"""In what models may differ whose feed-forward blocks are all that is taken of them: no row of a token is."""


@dataclass(frozen=True)
class Expert:
    """A model whose feed-forward blocks become an expert, one in every layer.

    `noise_scale` is the standard deviation of noise added to its three matrices, `residual_scale` a factor of its down
    projection: gate + noise_scale n, up + noise_scale n, residual_scale (down + noise_scale n), with n independent
    standard normal numbers by (seed, the expert's number, tensor name, index).
    """

    model: Weights
    prompts: Prompts = NO_PROMPTS
    residual_scale: float = 1.0
    noise_scale: float = 0.0


@dataclass(frozen=True)
class Target:
    """A kind of mixture.

    `dense` are the model types of its experts. `block` is the module with the router and the experts, `parts` what an
    expert's gate, up and down projections are called, `shared` its shared experts, `shared_gate` their gate; `biases`
    are the attention projections that may have one.
    """

    title: str
    model_type: str
    dense: tuple[str, ...]
    block: str
    parts: Mapping[str, str]
    shared: str = ""
    shared_gate: str = ""
    biases: str = ""

    @property
    def family(self) -> Family:
        """How its tensors are called."""
        found = family_of(self.model_type)
        assert found is not None
        return found


_PLAIN = {GATE: GATE, UP: UP, DOWN: DOWN}
TARGETS = (
    Target(
        "Mixtral", "mixtral", ("llama", "mistral"), "block_sparse_moe", {GATE: "w1", UP: "w3", DOWN: "w2"}
    ),
    Target(
        "DeepSeek MoE",
        "deepseek",
        ("llama", "mistral"),
        "mlp",
        _PLAIN,
        shared="shared_experts",
        biases="qkvo",
    ),
    Target(
        "Qwen MoE",
        "qwen2_moe",
        ("llama", "mistral", "qwen2"),
        "mlp",
        _PLAIN,
        shared="shared_expert",
        shared_gate="shared_expert_gate",
        biases="qkv",
    ),
    Target("Qwen3 MoE", "qwen3_moe", ("qwen3",), "mlp", _PLAIN, biases="qkvo"),
    Target("FlexOlmo", "flex_olmo", ("olmo2",), "mlp", _PLAIN, biases="qkvo"),
)
"""The kinds of mixtures, the first that fits being the default."""


def mixture(
    base: Weights,
    experts: Sequence[Expert],
    *,
    shared: Sequence[Expert] = (),
    architecture: str | None = None,
    gate_mode: str = "hidden",
    per_token: int = 2,
    seed: int = 0,
) -> Weights:
    """A mixture of experts: each expert's feed-forward blocks side by side, a router, and the rest from the base.

    y(x) = sum over the chosen experts e of g_e(x) E_e(x), where g is the softmax of `router @ x` over the experts, the
    `per_token` largest of it divided by their sum; with a shared expert S, y(x) + sigmoid(s . x) S(x) (Qwen MoE) or
    y(x) + S(x) (DeepSeek MoE). Experts that are all the same thus give the dense model, whatever the router says. (In
    DeepSeek MoE the share of a single chosen expert is not divided: with per_token 1 it counts as its softmax.)

    architecture: the beginning of Mixtral, DeepSeek MoE, Qwen MoE, Qwen3 MoE or FlexOlmo in any case; without it the
    first that fits. Mixtral: llama or mistral models, no shared experts. DeepSeek MoE: llama or mistral, any number of
    shared experts, joined to one. Qwen MoE: qwen2, llama or mistral, exactly one shared expert, with prompts unless
    gates are random. Qwen3 MoE: qwen3, no shared experts. FlexOlmo: olmo2, no shared experts. All models have one model
    type, the same layers and residual size, experts also the same number of neurons; the feed-forward blocks of the
    base are not used. Configs that contradict the base's (activation, rotary base, epsilon, heads ...) are refused
    unless allowed (`Weights.allow`): an expert gets what the base's attention writes.

    gate_mode: hidden (default), hidden_avg, hidden_last, cheap_embed (see `prompt_rows`), random or uniform_random (see
    `random_rows`). per_token: 1 to the number of experts (default 2). seed: a whole number, for random gates and noise.

    Each tensor keeps the dtype of the model it comes from; routers have the base's. Raises `RequestError` where no
    architecture fits, saying why, and for numbers out of range; `AlgebraError` for shapes, layers or biases that do
    not fit.
    """
    _check_numbers(experts, shared, gate_mode, per_token)
    models = [base, *(expert.model for expert in (*experts, *shared))]
    readings = [_dense(model) for model in models]
    target = _chosen(readings, shared, architecture, gate_mode)
    _check_alike(models, readings, len(experts))
    for model in models[1:]:
        check_agreement((base, model), NOT_OF_EXPERTS)
    dense, own, others = readings[0], readings[1 : 1 + len(experts)], readings[1 + len(experts) :]
    neurons, wide = _neurons(own[0]), sum(map(_neurons, others))
    if target.model_type == "deepseek" and wide % neurons:
        raise RequestError(
            f"the shared experts have {wide} neurons in all; DeepSeek MoE counts them in multiples of an expert's "
            f"{neurons}"
        )
    config = _config(target, dense, len(experts), per_token, neurons, wide)
    routers = [[expert.prompts for expert in experts]]
    if target.shared_gate:
        routers.append([expert.prompts for expert in shared])
    rows = None if gate_mode in RANDOM else prompt_rows(base, routers, gate_mode)
    made, block = _Made(target, dense, config), f"layers.{{layer}}.{target.block}"

    def put_block(layer: int) -> None:
        at = {"layer": layer}
        for k, gate in enumerate(("gate", target.shared_gate)[: len(routers)]):
            pattern, shape = f"{block}.{gate}.weight", (len(routers[k]), dense.sizes[Axis("residual")])
            name = made.name(pattern, at)
            node = random_rows(name, shape, gate_mode, seed) if rows is None else rows[k][layer]
            made.put(pattern, at, node)
        for k, (expert, reading) in enumerate(zip(experts, own, strict=True)):
            for part, theirs in target.parts.items():
                node = _matrix(expert, reading, layer, part, (str(seed), "mixture", f"expert {k}"))
                made.put(f"{block}.experts.{{expert}}.{theirs}.weight", {**at, "expert": k}, node)
        for part in (GATE, UP, DOWN) if shared else ():
            parts = [
                _matrix(expert, reading, layer, part, (str(seed), "mixture", f"shared expert {k}"))
                for k, (expert, reading) in enumerate(zip(shared, others, strict=True))
            ]
            node = joined(parts, 1 if part == DOWN else 0)
            made.put(f"{block}.{target.shared}.{part}.weight", at, node)

    done: set[int] = set()
    for name, named in dense.tensors.items():
        at = dict(named.at)
        if named.spec.module.startswith(MLP):
            if at["layer"] not in done:
                done.add(at["layer"])
                put_block(at["layer"])
        elif not named.spec.pattern.endswith(BUFFER):
            if not made.has_place(named.spec.pattern):
                raise dense.refused(f"a {target.title} has no place for the tensor {name!r}")
            made.put(named.spec.pattern, at, base[name], base.entry(name).degree)
    if target.model_type == "qwen2_moe":
        made.put_zero_biases(sorted(done))
    checkpoints: dict[int, Checkpoint] = {id(c): c for model in models for c in model.checkpoints}
    result = base._with(
        made.entries, reading=made.reading(), checkpoints=tuple(checkpoints.values()), dropped=frozenset()
    )
    return result.with_note(_note(target, experts, shared, gate_mode, per_token))


class _Made:
    """The tensors of a mixture, by their place in its family's file."""

    def __init__(self, target: Target, dense: Reading, config: Mapping[str, Any]) -> None:
        self.target = target
        self.by_pattern = {tensor.pattern: tensor for tensor in target.family.tensors}
        self.shell = Reading(target.family, config, {}, {}, dense.prefix, dense.source)
        self.entries: dict[str, Entry] = {}
        self.tensors: dict[str, NamedTensor] = {}

    def has_place(self, pattern: str) -> bool:
        """Whether the mixture's loader has such a tensor."""
        if not pattern.endswith(".bias"):
            return pattern in self.by_pattern
        return any(pattern.endswith(f"self_attn.{side}_proj.bias") for side in self.target.biases)

    def name(self, pattern: str, at: Mapping[str, int]) -> str:
        """The name of a tensor."""
        return self.shell.name(self.by_pattern[pattern], at)

    def put(self, pattern: str, at: Mapping[str, int], node: Expression, degree: float = 1.0) -> None:
        """Add a tensor."""
        spec, name = self.by_pattern[pattern], self.name(pattern, at)
        self.entries[name] = Entry(node, degree)
        self.tensors[name] = NamedTensor(spec, tuple((index, at[index]) for index in spec.indices))

    def put_zero_biases(self, layers: Sequence[int]) -> None:
        """Qwen2-MoE's attention has biases; a base without gets zeros."""
        for layer in layers:
            for side in "qkv":
                module, at = f"layers.{{layer}}.self_attn.{side}_proj", {"layer": layer}
                if self.name(f"{module}.bias", at) not in self.entries:
                    size = self.entries[self.name(f"{module}.weight", at)].expression.shape[0]
                    self.put(f"{module}.bias", at, Array(np.zeros(size, np.float32)))

    def reading(self) -> Reading:
        """How it is read. Raises `AlgebraError` where a tensor's shape is not that of its axes."""
        shell = self.shell
        reading = read_tensors(shell.family, shell.config, self.tensors, shell.prefix, shell.source)
        for name, named in self.tensors.items():
            shape, expected = self.entries[name].expression.shape, reading.shape(named)
            if shape != expected:
                raise reading.refused(
                    f"tensor {name!r} would have shape {list(shape)}, and as {' '.join(map(str, named.spec.dims))} it "
                    f"has {list(expected)}"
                )
        return reading


# Checks ---------------------------------------------------------------------------------------------------------------


def _check_numbers(
    experts: Sequence[Expert], shared: Sequence[Expert], gate_mode: str, per_token: int
) -> None:
    if gate_mode not in MODES:
        raise RequestError(
            f"no gate_mode {gate_mode!r}{did_you_mean(gate_mode, MODES)} (known: {', '.join(MODES)})"
        )
    if not experts or not 1 <= per_token <= len(experts):
        raise RequestError(f"{len(experts)} experts with {per_token} per token; it must be 1 to all of them")
    for k, expert in enumerate((*experts, *shared)):
        if not (
            np.isfinite(expert.residual_scale) and np.isfinite(expert.noise_scale) and expert.noise_scale >= 0
        ):
            raise RequestError(
                f"expert {k}: residual_scale must be a number and noise_scale 0 or more, not "
                f"{expert.residual_scale} and {expert.noise_scale}"
            )
    if gate_mode in RANDOM:
        return
    for k, expert in enumerate(experts):
        if not expert.prompts.positive:
            raise RequestError(f"expert {k} has no positive prompts, which gate_mode {gate_mode} needs")
    if len(experts) > 1 and len({expert.prompts for expert in experts}) == 1:
        raise RequestError(
            f"all experts have the same prompts, so with gate_mode {gate_mode} all would be chosen alike; give each "
            "prompts of its own, or use gate_mode random"
        )
    if len({bool(expert.prompts.positive) for expert in shared}) > 1:
        raise RequestError("either all shared experts have positive prompts, or none")


def _dense(model: Weights) -> Reading:
    if model.origin is None:
        raise RequestError(
            f"{model.label!r} is not a model but a change of one (a LoRA adapter), or has no directory; give the model "
            "with the adapter on it"
        )
    return reading_of(model)


def _chosen(
    readings: Sequence[Reading], shared: Sequence[Expert], architecture: str | None, gate_mode: str
) -> Target:
    titles = [target.title for target in TARGETS]
    wanted = (architecture or "").lower()
    named = [target for target in TARGETS if target.title.lower().startswith(wanted)]
    if not named:
        raise RequestError(
            f"no architecture {architecture!r}{did_you_mean(wanted, [t.lower() for t in titles])} "
            f"(known: {', '.join(titles)})"
        )
    kinds: dict[str, str] = {}
    for reading in readings:
        kinds.setdefault(str(reading.config.get("model_type")), reading.source)
    if len(kinds) > 1:
        told = ", ".join(f"{source} is {kind}" for kind, source in kinds.items())
        raise RequestError(f"the models of a mixture have one model type, and here {told}")
    (kind,) = kinds
    reasons = {}
    for target in named:
        reason = _unfit(target, kind, shared, gate_mode)
        if reason is None:
            return target
        reasons[target.title] = reason
    raise RequestError(
        "no architecture fits these models: " + "; ".join(f"{title} {why}" for title, why in reasons.items())
    )


def _unfit(target: Target, kind: str, shared: Sequence[Expert], gate_mode: str) -> str | None:
    """Why a kind of mixture cannot be made of these models, None where it can."""
    if kind not in target.dense:
        return f"takes {' or '.join(target.dense)} models, not {kind}"
    if shared and not target.shared:
        return "has no shared experts"
    gated = any(expert.prompts.positive or expert.prompts.negative for expert in shared)
    if not target.shared_gate:
        return "has no gate for shared experts, so they take no prompts" if gated else None
    if len(shared) != 1:
        return f"has exactly one shared expert (shared_experts), not {len(shared)}"
    if gate_mode not in RANDOM and not gated:
        return "has a gate for its shared expert, which needs positive_prompts"
    return None


def _check_alike(models: Sequence[Weights], readings: Sequence[Reading], count: int) -> None:
    """Raise `AlgebraError` where layers, residual sizes or the neurons of experts differ."""

    def facts(reading: Reading) -> dict[str, Any]:
        return {axis: reading.sizes[Axis(axis)] for axis in ("layer", "residual")}

    for k, (model, reading) in enumerate(zip(models, readings, strict=True)):
        for what, value in facts(reading).items():
            if value != (first := facts(readings[0])[what]):
                raise AlgebraError(
                    f"{what} is {first} in {models[0].label!r} and {value} in {model.label!r}; an expert must fit"
                    " the base"
                )
        if k == 0:
            continue
        if lost := [
            n for n, t in reading.tensors.items() if t.spec.module.startswith(MLP) and n.endswith(".bias")
        ]:
            raise reading.refused(f"its feed-forward blocks have biases, experts have none: {listing(lost)}")
        if 1 < k <= count and _neurons(reading) != _neurons(readings[1]):
            raise AlgebraError(
                f"neurons are {_neurons(readings[1])} in {models[1].label!r} and {_neurons(reading)} in "
                f"{model.label!r}; all experts have one size"
            )


def _neurons(reading: Reading) -> int:
    sizes = {reading.sizes[one] for one in reading.instances("neurons")}
    if len(sizes) != 1:
        raise reading.refused(f"layers have different numbers of neurons: {sorted(sizes)}; experts have one")
    return sizes.pop()


# Parts ----------------------------------------------------------------------------------------------------------------


def _matrix(expert: Expert, reading: Reading, layer: int, part: str, key: tuple[str, ...]) -> Expression:
    """A matrix of an expert, with its noise and scale."""
    spec = next(s for s in reading.family.by_module[f"{MLP}{part}"] if s.pattern.endswith(".weight"))
    name = reading.name(spec, {"layer": layer})
    node = expert.model[name]
    if expert.noise_scale:
        node = node + normal((*key, name), node.shape) * expert.noise_scale
    if part == DOWN and expert.residual_scale != 1.0:
        node = node * expert.residual_scale
    return node


# The config -----------------------------------------------------------------------------------------------------------

_CODE = "deepseek-ai/deepseek-moe-16b-base"
"""Where the class of DeepSeek MoE lies; transformers does not have it."""
_GONE = ("auto_map", "mlp_bias", "pretraining_tp", "layer_types", "use_sliding_window", "max_window_layers")


_WRITTEN = (
    "hidden_act",
    "tie_word_embeddings",
    "rope_theta",
    "max_position_embeddings",
    "rms_norm_eps",
    "bos_token_id",
    "eos_token_id",
)
"""Keys that are written down wherever the base's config.json leaves them to its loader."""
_QKV = frozenset(f"self_attn.{side}_proj" for side in "qkv")


def _config(
    target: Target, dense: Reading, experts: int, per_token: int, neurons: int, shared: int
) -> dict[str, Any]:
    old, _ = loaders_of(dense, target.family, target.model_type, target.title)
    written = {key: old.defaults[key] for key in _WRITTEN if old.defaults[key] is not None}
    if {"rope_theta", "rope_parameters"} & dense.config.keys():
        written.pop("rope_theta", None)
    base = replace(dense, config={**written, **dense.config})
    own = {
        module for module in biased(dense) if not module.startswith("mlp.")
    }  # the base's blocks are not used
    if target.model_type == "qwen2_moe":
        own |= _QKV  # zeros where the base has none
    plain = config_for(base, target.family, target.model_type, {}, target.title, biases=own)
    config = {key: value for key, value in plain.items() if key not in _GONE}
    heads, groups, size = (
        dense.sizes[dense.instances(axis)[0]] for axis in ("kv_heads", "groups", "head_dim")
    )
    config["num_key_value_heads"] = heads
    if target.model_type == "deepseek":
        config.pop("head_dim", None)
        config = _older_rotary(config, dense)
        if heads * groups * size != dense.sizes[Axis("residual")]:
            raise dense.refused(
                f"DeepSeek MoE takes the size of a head as residual / heads, and here {heads * groups} heads have "
                f"{size}"
            )
    else:
        config["head_dim"] = size
    config |= _attention(target, dense)
    if target.model_type == "mixtral":
        config |= {"num_local_experts": experts, "intermediate_size": neurons, "router_jitter_noise": 0.0}
    elif target.model_type == "flex_olmo":
        config |= {"num_experts": experts, "intermediate_size": neurons, "norm_topk_prob": True}
    elif target.model_type == "deepseek":
        config |= {
            "n_routed_experts": experts,
            "moe_intermediate_size": neurons,
            "first_k_dense_replace": 0,
            "moe_layer_freq": 1,
            "scoring_func": "softmax",
            "norm_topk_prob": True,
            "auto_map": {
                "AutoConfig": f"{_CODE}--configuration_deepseek.DeepseekConfig",
                "AutoModel": f"{_CODE}--modeling_deepseek.DeepseekModel",
                "AutoModelForCausalLM": f"{_CODE}--modeling_deepseek.DeepseekForCausalLM",
            },
        }
        if shared:
            config["n_shared_experts"] = shared // neurons
    else:
        config |= {
            "num_experts": experts,
            "moe_intermediate_size": neurons,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
        if shared:
            config |= {"shared_expert_intermediate_size": shared, "qkv_bias": True}
    if target.model_type != "deepseek":
        config |= {"router_aux_loss_coef": 0.001, "output_router_logits": False}
    return {**config, "num_experts_per_tok": per_token}


def _attention(target: Target, dense: Reading) -> dict[str, Any]:
    """The keys that keep the sliding windows of the base."""
    old, new = loaders_of(dense, target.family, target.model_type, target.title)
    windows = old.windows_of(dense.config, layers_of(dense))
    if not any(windows):
        return {"sliding_window": None}
    keys = window_keys(windows, new, dense.refused)
    # Releases before `layer_types` count the layers without a window from the first.
    return keys | ({"max_window_layers": 0} if "layer_types" in keys else {})


def _older_rotary(config: Mapping[str, Any], dense: Reading) -> dict[str, Any]:
    """Rotary positions as the class of DeepSeek MoE reads them, which is older than `rope_parameters`."""
    told = config.get("rope_scaling") or config.get("rope_parameters")
    if not told:
        return dict(config)
    kind = told.get("rope_type", told.get("type", "default"))
    if kind not in ("default", "linear", "dynamic"):
        raise dense.refused(
            f"rotary positions are scaled by {kind!r}, which DeepSeek MoE cannot do (it knows linear and dynamic); "
            "take another architecture"
        )
    found = {key: value for key, value in config.items() if key != "rope_parameters"}
    found["rope_theta"] = told.get("rope_theta", config.get("rope_theta"))
    found["rope_scaling"] = None if kind == "default" else {"type": kind, "factor": told.get("factor")}
    return found


def _note(
    target: Target,
    experts: Sequence[Expert],
    shared: Sequence[Expert],
    gate_mode: str,
    per_token: int,
) -> dict[str, Any]:
    return {
        "step": "mixture",
        "architecture": target.title,
        "experts": [expert.model.label for expert in experts],
        **({"shared_experts": [expert.model.label for expert in shared]} if shared else {}),
        "per_token": per_token,
        "gate_mode": gate_mode,
    }


__all__ = ["TARGETS", "Expert", "Target", "mixture"]
