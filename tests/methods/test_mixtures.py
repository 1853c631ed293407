"""Mixtures of experts put together from dense models, opened and run by transformers, against the formula in torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from makers import files_of, read_model, same_bytes

import merganser as mg
from merganser.algebra import axes
from merganser.errors import MerganserError
from merganser.methods import get_step
from merganser.methods.experts.assemble import Expert, mixture
from merganser.methods.experts.gates import Prompts

pytestmark = pytest.mark.models
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tiny_tokenizers  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from torch import nn  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402

SIZES = {
    "vocab_size": 430,
    "hidden_size": 24,
    "intermediate_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
KINDS = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "olmo2": "Olmo2"}
IDS = torch.arange(3, 33)[None]
FOX, DOG, SUN, NOTHING = (
    Prompts(("the fox", "a quick fox")),
    Prompts(("dogs",), ("the fox",)),
    Prompts(("sun",)),
    Prompts(),
)


def dense(kind: str, seed: int, **more: object):
    """A dense model whose norms and biases are not what they start as."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    config = getattr(transformers, f"{KINDS[kind]}Config")(**{**SIZES, **more})
    model = getattr(transformers, f"{KINDS[kind]}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model.eval()


def stored(kind: str, place: Path, seed: int = 0, **more: object) -> mg.Weights:
    dense(kind, seed, **more).save_pretrained(place)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizers.byte_level(), bos_token="<|endoftext|>"
    )
    tokenizer.save_pretrained(place)
    return mg.open(place)


def three(kind: str, tmp_path: Path, **more: object) -> list[mg.Weights]:
    return [stored(kind, tmp_path / name, seed, **more) for seed, name in enumerate(("base", "a", "b"))]


def logits(model) -> np.ndarray:
    with torch.no_grad():
        return model(IDS).logits.double().numpy()


def opened(place: Path):
    model, info = transformers.AutoModelForCausalLM.from_pretrained(place, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    return model.eval()


def dense_at(weights: mg.Weights):
    return transformers.AutoModelForCausalLM.from_pretrained(weights.origin.directory).eval()


class Block(nn.Module):
    """The formula: softmax of the router, the largest shares divided by their sum, the shared expert beside it."""

    def __init__(self, router, experts, per_token, shared=None, shared_gate=None):
        super().__init__()
        self.gate = nn.Linear(router.shape[1], router.shape[0], bias=False)
        self.gate.weight = nn.Parameter(torch.tensor(router))
        self.experts = nn.ModuleList(experts)
        self.shared_experts = shared
        self.shared_gate = None if shared_gate is None else torch.tensor(shared_gate)
        self.per_token = per_token

    def forward(self, x):
        shares = self.gate(x).softmax(-1)
        smallest = shares.topk(self.per_token, -1).values[..., -1:]
        shares = torch.where(shares >= smallest, shares, 0.0)
        shares = shares / shares.sum(-1, keepdim=True)
        y = sum(shares[..., k, None] * expert(x) for k, expert in enumerate(self.experts))
        if self.shared_experts is not None:
            weight = 1.0 if self.shared_gate is None else torch.sigmoid(x @ self.shared_gate.T)
            y = y + weight * self.shared_experts(x)
        return y


# The function ---------------------------------------------------------------------------------------------------------

WAYS = [("llama", "mixtral"), ("mistral", "mixtral"), ("qwen3", "qwen3"), ("olmo2", "flex")]
CLASSES = {"mixtral": "MixtralForCausalLM", "qwen3": "Qwen3MoeForCausalLM", "flex": "FlexOlmoForCausalLM"}


@pytest.mark.parametrize(("kind", "family"), WAYS)
@pytest.mark.parametrize("per_token", [1, 2, 3])
def test_experts_that_are_all_the_same_give_the_dense_model(tmp_path, kind, family, per_token):
    base = stored(kind, tmp_path / "base")
    made = mixture(base, [Expert(base)] * 3, architecture=family, gate_mode="random", per_token=per_token)
    made.save(tmp_path / "moe", sync=False)
    model = opened(tmp_path / "moe")
    assert type(model).__name__ == CLASSES[family]
    assert model.config.num_experts_per_tok == per_token
    assert np.allclose(logits(model), logits(dense_at(base)), atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "router"),
    [
        ("llama", "model.layers.{}.block_sparse_moe.gate.weight"),
        ("mistral", "model.layers.{}.block_sparse_moe.gate.weight"),
        ("qwen3", "model.layers.{}.mlp.gate.weight"),
        ("olmo2", "model.layers.{}.mlp.gate.weight"),
    ],
)
@pytest.mark.parametrize("mode", ["random", "uniform_random", "cheap_embed"])
def test_different_experts_answer_by_the_formula(tmp_path, kind, router, mode):
    base, a, b = three(kind, tmp_path)
    made = mixture(
        base, [Expert(a, FOX), Expert(b, DOG), Expert(base, SUN)], gate_mode=mode, per_token=2, seed=4
    )
    made.save(tmp_path / "moe", sync=False)
    tensors = read_model(tmp_path / "moe")
    expected = dense_at(base)
    parts = [dense_at(model) for model in (a, b, base)]
    for layer, block in enumerate(expected.model.layers):
        experts = [part.model.layers[layer].mlp for part in parts]
        block.mlp = Block(tensors[router.format(layer)], experts, 2)
    found = logits(opened(tmp_path / "moe"))
    assert np.allclose(found, logits(expected), atol=1e-4)
    assert not np.allclose(found, logits(dense_at(base)), atol=1e-2)


@pytest.mark.parametrize("kind", ["qwen2", "llama", "mistral"])
def test_qwen_adds_a_shared_expert_with_a_gate(tmp_path, kind):
    base, a, b = three(kind, tmp_path)
    wider = stored(kind, tmp_path / "wider", 3, intermediate_size=50)
    made = mixture(
        base,
        [Expert(a, FOX), Expert(b, DOG)],
        shared=[Expert(wider, SUN, residual_scale=0.3)],
        gate_mode="cheap_embed",
        per_token=1,
        architecture="qwen",
    )
    made.save(tmp_path / "moe", sync=False)
    tensors = read_model(tmp_path / "moe")
    model = opened(tmp_path / "moe")
    assert type(model).__name__ == "Qwen2MoeForCausalLM"
    assert model.config.shared_expert_intermediate_size == 50
    expected = dense_at(base)
    parts = [dense_at(one) for one in (a, b, wider)]
    for layer, block in enumerate(expected.model.layers):
        *experts, shared = [part.model.layers[layer].mlp for part in parts]
        shared.down_proj.weight.data *= 0.3
        router, gate = (
            tensors[f"model.layers.{layer}.mlp.{n}.weight"] for n in ("gate", "shared_expert_gate")
        )
        assert gate.shape == (1, 24)
        block.mlp = Block(router, experts, 1, shared, gate)
    assert np.allclose(logits(model), logits(expected), atol=1e-4)
    if kind != "qwen2":
        assert not tensors["model.layers.1.self_attn.k_proj.bias"].any()


@pytest.mark.parametrize("shared", [0, 1, 2])
def test_deepseek_is_a_llama_with_its_own_blocks(tmp_path, shared):
    """Its class is not in transformers: a Llama whose blocks are DeepSeek-MoE's takes every tensor, and no other."""
    base, a, b = three("llama", tmp_path)
    extra = [stored("llama", tmp_path / f"s{k}", 5 + k) for k in range(shared)]
    made = mixture(
        base,
        [Expert(a), Expert(b), Expert(base)],
        shared=[Expert(one, residual_scale=0.5) for one in extra],
        gate_mode="random",
        architecture="deepseek",
    )
    made.save(tmp_path / "moe", sync=False)
    config = json.loads((tmp_path / "moe" / "config.json").read_text())
    assert config["model_type"] == "deepseek"
    assert config["architectures"] == ["DeepseekForCausalLM"]
    assert config.get("n_shared_experts") == (shared or None)
    assert (config["n_routed_experts"], config["num_experts_per_tok"], config["norm_topk_prob"]) == (
        3,
        2,
        True,
    )

    class Sum(nn.Module):
        def __init__(self, parts):
            super().__init__()
            self.parts = nn.ModuleList(parts)

        def forward(self, x):
            return sum(0.5 * part(x) for part in self.parts)

    tensors = read_model(tmp_path / "moe")
    expected, parts, more = dense_at(base), [dense_at(m) for m in (a, b, base)], [dense_at(m) for m in extra]
    model = dense_at(base)
    wide = transformers.LlamaConfig(**{**SIZES, "intermediate_size": 36 * max(1, shared)})
    mlp = type(model.model.layers[0].mlp)
    for layer in range(2):
        router = tensors[f"model.layers.{layer}.mlp.gate.weight"]
        experts = [part.model.layers[layer].mlp for part in parts]
        together = Sum([part.model.layers[layer].mlp for part in more]) if shared else None
        expected.model.layers[layer].mlp = Block(router, experts, 2, together)
        empty = [mlp(model.config) for _ in range(3)]
        model.model.layers[layer].mlp = Block(router * 0, empty, 2, mlp(wide) if shared else None)
    model.load_state_dict({name: torch.tensor(array) for name, array in tensors.items()}, strict=True)
    assert np.allclose(logits(model), logits(expected), atol=1e-4)


class DeepseekBlock(nn.Module):
    """DeepSeek-MoE's blocks by its config.json: one expert's share is not divided, whatever `norm_topk_prob` says."""

    def __init__(self, config, tensors, place):
        super().__init__()
        self.config = config
        self.held = {
            n.removeprefix(place): torch.tensor(a) for n, a in tensors.items() if n.startswith(place)
        }

    def forward(self, x):
        def block(name):
            gate, up, down = (self.held[f"{name}.{part}_proj.weight"] for part in ("gate", "up", "down"))
            return (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T

        k = self.config["num_experts_per_tok"]
        shares, chosen = (x @ self.held["gate.weight"].T).softmax(-1).topk(k, -1)
        if k > 1 and self.config["norm_topk_prob"]:
            shares = shares / shares.sum(-1, keepdim=True)
        y = block("shared_experts") if "shared_experts.up_proj.weight" in self.held else torch.zeros_like(x)
        for e in range(self.config["n_routed_experts"]):
            y = y + (shares * (chosen == e)).sum(-1, keepdim=True) * block(f"experts.{e}")
        return y


def as_deepseek(dense_model, place):
    """The logits of a DeepSeek MoE on disk, whose blocks stand in a Llama."""
    config, tensors = json.loads((place / "config.json").read_text()), read_model(place)
    for layer, block in enumerate(dense_model.model.layers):
        block.mlp = DeepseekBlock(config, tensors, f"model.layers.{layer}.mlp.")
    return config, logits(dense_model)


@pytest.mark.parametrize("per_token", [1, 2])
def test_experts_of_deepseek_are_split_taken_and_put_in_another_order(tmp_path, per_token):
    """DeepSeekMoE's layout out of a mixture: fine experts beside shared ones (Dai et al. 2024, arXiv:2401.06066)."""
    base, a, b = three("llama", tmp_path)
    made = mixture(
        base,
        [Expert(a), Expert(b), Expert(base)],
        shared=[Expert(a, residual_scale=0.5)],
        gate_mode="random",
        architecture="deepseek",
        per_token=per_token,
    )
    made.save(tmp_path / "moe", sync=False)
    _, expected = as_deepseek(dense_at(base), tmp_path / "moe")
    moe = mg.open(tmp_path / "moe")
    get_step("split_experts").function(moe, parts=3).save(tmp_path / "split", sync=False)
    config, found = as_deepseek(dense_at(base), tmp_path / "split")
    assert (config["n_routed_experts"], config["num_experts_per_tok"]) == (9, 3 * per_token)
    assert (config["moe_intermediate_size"], config["n_shared_experts"]) == (12, 3)
    assert np.allclose(found, expected, atol=1e-4)
    axes.permute(moe, "expert", [2, 0, 1]).save(tmp_path / "order", sync=False)
    assert np.allclose(as_deepseek(dense_at(base), tmp_path / "order")[1], expected, atol=1e-4)
    axes.take(moe, "expert", [2, 1]).save(tmp_path / "two", sync=False)
    two = mixture(
        base,
        [Expert(base), Expert(b)],
        shared=[Expert(a, residual_scale=0.5)],
        gate_mode="random",
        architecture="deepseek",
        per_token=per_token,
    )
    assert read_model(tmp_path / "two").keys() == {*two}
    with pytest.raises(MerganserError, match="dense sibling"):
        get_step("average_experts").function(moe)


def test_tensors_that_do_not_change_keep_their_bits(tmp_path):
    base, a, b = three("llama", tmp_path, tie_word_embeddings=True)
    mixture(base, [Expert(a), Expert(b)], gate_mode="random").save(tmp_path / "moe", sync=False)
    made, sources = read_model(tmp_path / "moe"), [read_model(w.origin.directory) for w in (base, a, b)]
    assert "lm_head.weight" not in made
    for name, array in sources[0].items():
        if ".mlp." not in name:
            assert same_bytes(made.pop(name), array), name
    for layer in range(2):
        for k, source in enumerate(sources[1:]):
            for theirs, mine in {"w1": "gate", "w3": "up", "w2": "down"}.items():
                name = f"model.layers.{layer}.block_sparse_moe.experts.{k}.{theirs}.weight"
                assert same_bytes(made.pop(name), source[f"model.layers.{layer}.mlp.{mine}_proj.weight"])
        assert made.pop(f"model.layers.{layer}.block_sparse_moe.gate.weight").shape == (2, 24)
    assert not made
    assert opened(tmp_path / "moe").config.tie_word_embeddings


@pytest.mark.parametrize(
    ("kind", "architecture", "window"),
    [
        ("mistral", "mixtral", {"sliding_window": 4}),
        ("mistral", "qwen", {"sliding_window": 4}),
        ("mistral", "mixtral", {"sliding_window": None}),
        ("llama", "mixtral", {"sliding_window": 4}),
        ("qwen2", "qwen", {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 1}),
        ("qwen2", "qwen", {"sliding_window": 4}),
        ("qwen3", "qwen3", {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 0}),
    ],
)
def test_attention_stays_that_of_the_base(tmp_path, kind, architecture, window):
    base = stored(kind, tmp_path / "base", **window)
    shared = [Expert(base, residual_scale=0.0)] if architecture == "qwen" else []
    made = mixture(base, [Expert(base)] * 2, shared=shared, gate_mode="random", architecture=architecture)
    made.save(tmp_path / "moe", sync=False)
    assert np.allclose(logits(opened(tmp_path / "moe")), logits(dense_at(base)), atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "architecture"), [("llama", "mixtral"), ("qwen2", "qwen"), ("qwen3", "qwen3")]
)
def test_what_the_config_does_not_say_stays_what_the_dense_loader_takes(tmp_path, kind, architecture):
    base = stored(kind, tmp_path / "base", rms_norm_eps=1e-6)
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    for key in (
        "rms_norm_eps",
        "rope_theta",
        "rope_parameters",
        "hidden_act",
        "tie_word_embeddings",
        "rope_scaling",
    ):
        config.pop(key, None)
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    base = mg.open(tmp_path / "base")
    shared = [Expert(base, residual_scale=0.0)] if architecture == "qwen" else []
    mixture(base, [Expert(base)] * 2, shared=shared, gate_mode="random").save(tmp_path / "moe", sync=False)
    model = opened(tmp_path / "moe")
    assert model.config.rms_norm_eps == 1e-6
    assert np.allclose(logits(model), logits(dense_at(base)), atol=1e-5)


# Gates ----------------------------------------------------------------------------------------------------------------


def unit(x):
    return x / max(np.linalg.norm(x), 1e-8)


def gates(weights, place, name="model.layers.{}.block_sparse_moe.gate.weight", **options):
    weights.save(place, sync=False, **options)
    tensors = read_model(place)
    return np.stack([tensors[name.format(layer)] for layer in range(2)])


PROMPTS = [
    Prompts(("the quick brown fox", "a fox")),
    Prompts(("dogs sleep", "the dog, the dog"), ("the fox",)),
    Prompts(("sun",), ("rows of data", "weights")),
]


def tokens(base: mg.Weights, text: str) -> list[int]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(base.origin.directory)
    return tokenizer(tokenizer.bos_token + text, add_special_tokens=False).input_ids


def test_cheap_embed_is_the_direction_of_the_prompts_embeddings(tmp_path):
    base, a, b = three("llama", tmp_path)
    experts = [Expert(m, p) for m, p in zip((base, a, b), PROMPTS, strict=True)]
    found = gates(mixture(base, experts, gate_mode="cheap_embed"), tmp_path / "moe")
    embedding = read_model(tmp_path / "base")["model.embed_tokens.weight"].astype(np.float64)

    def side(prompts):
        return unit(sum(embedding[tokens(base, p)].sum(axis=0) for p in prompts)) if prompts else 0.0

    expected = [unit(side(p.positive) - side(p.negative)) for p in PROMPTS]
    assert np.allclose(found[0], expected, atol=1e-6)
    assert same_bytes(found[0], found[1])


@pytest.mark.parametrize("mode", ["hidden", "hidden_last", "hidden_avg"])
def test_hidden_gates_are_the_direction_of_what_goes_into_the_layers(tmp_path, mode):
    base, a, b = three("mistral", tmp_path)
    experts = [Expert(m, p) for m, p in zip((base, a, b), PROMPTS, strict=True)]
    found = gates(mixture(base, experts, gate_mode=mode), tmp_path / "moe")
    model = dense_at(base)

    def side(prompts, layer):
        states = []
        for prompt in prompts:
            with torch.no_grad():
                out = model(torch.tensor([tokens(base, prompt)]), output_hidden_states=True)
            state = out.hidden_states[layer][0].double().numpy()
            states.append(state.mean(axis=0) if mode == "hidden_avg" else state[-1])
        return np.mean(states, axis=0) if states else 0.0

    for layer in range(2):
        expected = [unit(side(p.positive, layer) - side(p.negative, layer)) for p in PROMPTS]
        assert np.allclose(found[layer], expected, atol=1e-5)


def test_hidden_gates_of_a_base_that_is_a_formula_are_those_of_the_model_it_makes(tmp_path):
    base, a, b = three("llama", tmp_path)
    settings = LoraConfig(r=3, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    get_peft_model(dense_at(base), settings).save_pretrained(tmp_path / "lora")
    changed = base + mg.open(tmp_path / "lora")
    changed.save(tmp_path / "changed", sync=False)
    experts = [Expert(a, FOX), Expert(b, DOG)]
    found = gates(mixture(changed, experts), tmp_path / "moe")
    again = gates(mixture(mg.open(tmp_path / "changed"), experts), tmp_path / "again")
    assert same_bytes(found, again)
    assert not np.allclose(found, gates(mixture(base, experts), tmp_path / "plain"), atol=1e-3)


def test_random_gates_are_drawn_by_seed_and_name(tmp_path):
    base, a, b = three("llama", tmp_path, num_hidden_layers=2)

    def of(mode, count, seed, place):
        experts = [Expert(m) for m in (a, b, base)][:count]
        return gates(mixture(base, experts, gate_mode=mode, seed=seed), tmp_path / place)

    for mode in ("random", "uniform_random"):
        one = of(mode, 3, 1, f"{mode}1")
        assert same_bytes(one, of(mode, 3, 1, f"{mode}2"))
        assert not np.isclose(one, of(mode, 3, 2, f"{mode}3")).any()
        assert not np.isclose(one[0], one[1]).any()
        assert same_bytes(np.ascontiguousarray(one[:, :2]), of(mode, 2, 1, f"{mode}4"))


def test_random_gates_have_the_distribution_they_are_said_to_have(tmp_path):
    base = stored("llama", tmp_path / "base")
    for mode in ("random", "uniform_random"):
        values = gates(
            mixture(base, [Expert(base)] * 64, gate_mode=mode, per_token=1), tmp_path / mode
        ).ravel()
        if mode == "uniform_random":
            bound = 1 / np.sqrt(24)
            assert -bound <= values.min() < -0.98 * bound
            assert 0.98 * bound < values.max() < bound
            quantiles = bound * np.array([-0.8, -0.5, 0.0, 0.5, 0.8])
        else:
            quantiles = np.array([-1.2816, -0.6745, 0.0, 0.6745, 1.2816])
            assert 2.5 < np.abs(values).max() < 5.9
        shares = [np.mean(values < quantile) for quantile in quantiles]
        assert np.allclose(shares, [0.1, 0.25, 0.5, 0.75, 0.9], atol=0.03)


# Noise, scales, bytes -------------------------------------------------------------------------------------------------


def test_noise_and_residual_scale(tmp_path):
    base, a, _ = three("llama", tmp_path)
    experts = [
        Expert(a, residual_scale=-0.25),
        Expert(a, noise_scale=0.1),
        Expert(a, noise_scale=0.1, residual_scale=2.0),
    ]
    mixture(base, experts, gate_mode="random", seed=9).save(tmp_path / "moe", sync=False)
    made, source = read_model(tmp_path / "moe"), read_model(tmp_path / "a")
    noises = []
    for layer in range(2):
        for theirs, mine in {"w1": "gate", "w3": "up", "w2": "down"}.items():
            plain = source[f"model.layers.{layer}.mlp.{mine}_proj.weight"]
            of = [
                made[f"model.layers.{layer}.block_sparse_moe.experts.{k}.{theirs}.weight"] for k in range(3)
            ]
            assert same_bytes(of[0], plain * np.float32(-0.25) if mine == "down" else plain)
            noises.append((of[1] - plain) / 0.1)
            noises.append((of[2] / np.float32(2.0 if mine == "down" else 1.0) - plain) / 0.1)
    every = np.stack([noise.ravel() for noise in noises]).astype(np.float64)
    assert abs(every.mean()) < 0.03
    assert abs(every.std() - 1) < 0.03
    assert abs(np.mean(every**4) - 3) < 0.3
    assert np.abs(np.corrcoef(every) - np.eye(len(every))).max() < 0.15


def test_the_bytes_do_not_depend_on_threads_or_tiles(tmp_path):
    base = stored("llama", tmp_path / "base", intermediate_size=25_001)
    made = mixture(
        base,
        [Expert(base, FOX, noise_scale=0.1), Expert(base, DOG, residual_scale=0.5)],
        shared=[Expert(base, noise_scale=0.2), Expert(base)],
        gate_mode="cheap_embed",
        architecture="deepseek",
    )
    made.save(tmp_path / "one", sync=False, threads=1)
    made.save(tmp_path / "two", sync=False, threads=2, tile=2**18)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    mg.verify(tmp_path / "one")


# What cannot be -------------------------------------------------------------------------------------------------------


def test_architectures_that_do_not_fit_say_why(tmp_path):
    base, a, b = three("llama", tmp_path)
    qwen = stored("qwen3", tmp_path / "qwen3")
    experts = [Expert(a), Expert(b)]

    def refused(match, *args, error=MerganserError, **more):
        with pytest.raises(error, match=match):
            mixture(*args, **{"gate_mode": "random", **more})

    refused("Mixtral has no shared experts", base, experts, shared=[Expert(a)], architecture="mixtral")
    refused("exactly one shared expert .* not 0", base, experts, architecture="qwen moe")
    refused("Qwen3 MoE takes qwen3 models, not llama", base, experts, architecture="qwen3")
    refused("did you mean 'mixtral'", base, experts, architecture="mixtrl")
    refused("one model type, and here .*base is llama, qwen3 is qwen3", base, [Expert(a), Expert(qwen)])
    prompted = [Expert(a, FOX), Expert(b, DOG)]
    refused(
        "DeepSeek MoE has no gate for shared experts.*; Qwen3 MoE takes qwen3|Mixtral has no shared",
        base, prompted, shared=[Expert(a, SUN)] * 2, gate_mode="cheap_embed",
    )  # fmt: skip
    refused(
        "Qwen MoE has a gate",
        base,
        prompted,
        shared=[Expert(a)],
        gate_mode="cheap_embed",
        architecture="qwen",
    )


def test_models_that_do_not_fit_each_other(tmp_path):
    base, a, b = three("llama", tmp_path)
    experts = [Expert(a), Expert(b)]
    other = {
        "neurons are 36 in 'a' and 40": {"intermediate_size": 40},
        "residual is 24 in 'base' and 36": {"hidden_size": 36, "head_dim": 4},
        "layer is 2 in 'base' and 3": {"num_hidden_layers": 3},
        r"hidden_act is silu in 'base' and gelu .*\.allow\('hidden_act'\)": {"hidden_act": "gelu"},
        "rope_theta is 10000.0 in 'base' and 500": {"rope_theta": 5e5},
        "rms_norm_eps is 1e-06 in 'base' and": {"rms_norm_eps": 1e-3},
        "head_dim is 4 in 'base' and 6": {"head_dim": 6},
        "have biases, experts have none": {"mlp_bias": True},
    }
    for k, (match, more) in enumerate(other.items()):
        odd = Expert(stored("llama", tmp_path / f"odd{k}", **more))
        with pytest.raises(MerganserError, match=match):
            mixture(base, [*experts, odd], gate_mode="random")
    biased = stored("llama", tmp_path / "biased", attention_bias=True)
    with pytest.raises(MerganserError, match=r"has no place for the biases of .*q_proj"):
        mixture(biased, experts, gate_mode="random")
    mixture(biased, experts, gate_mode="random", architecture="deepseek").save(tmp_path / "moe", sync=False)
    assert "model.layers.0.self_attn.o_proj.bias" in read_model(tmp_path / "moe")
    odd_heads = stored("llama", tmp_path / "heads", head_dim=6)
    with pytest.raises(MerganserError, match="residual / heads"):
        mixture(odd_heads, [Expert(odd_heads)] * 2, gate_mode="random", architecture="deepseek")
    mixed = stored(
        "qwen3", tmp_path / "mixed", sliding_window=4, use_sliding_window=True, max_window_layers=1
    )
    with pytest.raises(MerganserError, match="some layers have a sliding window"):
        mixture(mixed, [Expert(mixed)] * 2, gate_mode="random")
    smaller = Expert(stored("llama", tmp_path / "smaller", intermediate_size=30))
    with pytest.raises(MerganserError, match=r"30 neurons in all.*multiples of an expert's 36"):
        mixture(base, experts, shared=[smaller], gate_mode="random", architecture="deepseek")


def test_prompts_and_numbers_that_cannot_be(tmp_path):
    base, a, b = three("llama", tmp_path)
    for match, experts, more in [
        ("no gate_mode 'hiden'; did you mean 'hidden'", [Expert(a)], {"gate_mode": "hiden"}),
        ("1 experts with 2 per token", [Expert(a)], {}),
        ("2 experts with 0 per token", [Expert(a), Expert(b)], {"per_token": 0}),
        ("expert 1 has no positive prompts", [Expert(a, FOX), Expert(b)], {}),
        ("same prompts", [Expert(a, FOX), Expert(b, FOX)], {}),
        ("noise_scale 0 or more", [Expert(a, FOX), Expert(b, DOG, noise_scale=-1.0)], {}),
        ("residual_scale must be a number", [Expert(a, FOX), Expert(b, DOG, residual_scale=np.inf)], {}),
    ]:
        with pytest.raises(MerganserError, match=match):
            mixture(base, experts, **{"gate_mode": "cheap_embed", **more})
    few = stored("llama", tmp_path / "few", vocab_size=300)
    with pytest.raises(MerganserError, match="has 300 rows; take the tokenizer"):
        mixture(few, [Expert(a, FOX), Expert(b, DOG)], gate_mode="cheap_embed")
    (tmp_path / "base" / "tokenizer.json").unlink()
    with pytest.raises(MerganserError, match=r"has no tokenizer\.json"):
        mixture(mg.open(tmp_path / "base"), [Expert(a, FOX), Expert(b, DOG)], gate_mode="cheap_embed")


def test_an_adapter_is_no_expert(tmp_path):
    base, a, _ = three("llama", tmp_path)
    settings = LoraConfig(r=3, target_modules=["down_proj"], init_lora_weights=False)
    get_peft_model(dense_at(base), settings).save_pretrained(tmp_path / "lora")
    adapter = mg.open(tmp_path / "lora")
    with pytest.raises(MerganserError, match="give the model with the adapter on it"):
        mixture(base, [Expert(a), Expert(adapter)], gate_mode="random")
    mixture(base, [Expert(a), Expert(base + adapter)], gate_mode="random").save(tmp_path / "moe", sync=False)
    made = read_model(tmp_path / "moe")["model.layers.0.block_sparse_moe.experts.1.w2.weight"]
    assert np.allclose(made, mg.compute(base + adapter, "model.layers.0.mlp.down_proj.weight"))


def test_without_torch_the_hidden_modes_say_so(tmp_path, monkeypatch):
    import sys

    base, a, b = three("llama", tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MerganserError, match=r"merganser\[models\], or use gate_mode cheap_embed"):
        mixture(base, [Expert(a, FOX), Expert(b, DOG)])
