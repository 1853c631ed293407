"""Steps that change model_type: what config.json leaves to the old loader stays, and what the new one cannot
say is refused.

Models are built and answered by transformers; their config.json is then cut to what older releases wrote.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import merganser as mg
from merganser.errors import MerganserError
from merganser.methods import get_step
from merganser.methods.experts.assemble import Expert, mixture

pytestmark = pytest.mark.models
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 53,
    "hidden_size": 32,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
IDS = torch.arange(3, 50).reshape(1, -1)


def stored(place: Path, kind: str, head: str = "CausalLM", *, without=(), also=None, edit=None, **more):
    """A model of transformers on disk, `without` some keys of its config.json and `also` with others."""
    auto = getattr(transformers, f"AutoModelFor{head}")
    torch.manual_seed(1)
    model = auto.from_config(transformers.AutoConfig.for_model(kind, **{**SIZES, **more}))
    with torch.no_grad():
        for name, value in model.named_parameters():
            value += 0.2 * torch.randn(value.shape)
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                value *= 4  # so that positions and windows count
    if edit:
        edit(model)
    model.save_pretrained(place)
    config = json.loads((place / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in without} | (also or {})
    (place / "config.json").write_text(json.dumps(config))
    return place


def opened(place: Path, head: str = "CausalLM"):
    auto = getattr(transformers, f"AutoModelFor{head}")
    model, info = auto.from_pretrained(place, output_loading_info=True, dtype=torch.float32)
    assert not info["missing_keys"], info["missing_keys"]
    assert not info["unexpected_keys"], info["unexpected_keys"]
    return model.eval()


def answer(model):
    model.set_experts_implementation("eager")
    with torch.no_grad():
        found = model(IDS, use_cache=False)
    return next(v for v in found.values() if torch.is_tensor(v) and v.is_floating_point()).double()


def same(place: Path, made: mg.Weights, head: str = "CausalLM"):
    made.save(place.parent / "out", sync=False)
    before, after = answer(opened(place, head)), answer(model := opened(place.parent / "out", head))
    assert (before - after).abs().max() < 1e-4 * before.abs().max()
    return model


def up(place: Path, **more):
    return get_step("upcycle").function(mg.open(place), experts=3, **more)


ROPE = ("rope_parameters", "rope_theta")
SILENT = [
    (
        "llama",
        (*ROPE, "rms_norm_eps", "head_dim", "max_position_embeddings", "hidden_act"),
        {},
        {"rms_norm_eps": 1e-6},
    ),
    (
        "mistral",
        ("sliding_window", "num_key_value_heads", *ROPE),
        {},
        {"num_key_value_heads": 8, "sliding_window": 4096},
    ),
    (
        "llama",
        (),
        {"sliding_window": 5, "layer_types": ["sliding_attention"] * 3},
        {},
    ),  # Llama's loader reads neither
    ("llama", ("rope_parameters",), {"rope_scaling": {"type": "linear", "factor": 3.0}}, {}),
    ("mistral", (), {"sliding_window": 5}, {}),
    ("ministral", ("layer_types",), {"sliding_window": 6}, {}),
    ("seed_oss", (), {}, {"attention_bias": False}),
    ("qwen3", ("head_dim", *ROPE), {}, {"head_dim": 128}),
    (
        "qwen3",
        ("layer_types",),
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0},
        {},
    ),
    ("qwen3", (), {}, {"attention_bias": True}),
]


@pytest.mark.parametrize(("kind", "without", "also", "more"), SILENT)
def test_what_the_old_loader_takes_by_itself_stays(tmp_path, kind, without, also, more):
    place = stored(tmp_path / "dense", kind, without=without, also=also, **more)
    same(place, up(place))


@pytest.mark.parametrize("head", ["SequenceClassification", "QuestionAnswering"])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_heads_open_under_the_new_type(tmp_path, kind, head):
    place = stored(tmp_path / "dense", kind, head)
    same(place, up(place), head)


MIXED = {"layer_types": ["full_attention", "sliding_attention", "full_attention"], "sliding_window": 5}
REFUSED = [
    (
        "granite",
        {"logits_scaling": 3.0, "attention_multiplier": 0.5},
        None,
        r"granite reads \w+ = .*has no such key",
    ),
    ("granite", {}, None, r"granite reads attention_multiplier = "),
    (
        "seed_oss",
        {},
        None,
        r"no place for the biases of self_attn\.k_proj, self_attn\.q_proj, self_attn\.v_proj",
    ),
    ("llama", {"mlp_bias": True}, None, r"no place for the biases of mlp\.down_proj"),
    ("ministral", MIXED, None, r"some layers have a sliding window and some not.*sliding_window: null"),
    (
        "qwen3",
        {**MIXED, "use_sliding_window": True},
        None,
        r"some layers have a sliding window.*use_sliding_window: false",
    ),
    ("ernie4_5", {}, None, r"ernie4_5: its rotary positions turn other pairs"),
    ("smollm3", {}, None, r"smollm3: some layers have no rotary positions"),
    (
        "gemma",
        {},
        "mixtral",
        "gemma and mixtral compute different things",
    ),
    ("qwen3", {}, "mixtral", r"qwen3 and mixtral compute different things.*queries and keys have norms"),
]


@pytest.mark.parametrize(("kind", "more", "family", "match"), REFUSED)
def test_what_the_new_loader_cannot_say_is_refused_by_name(tmp_path, kind, more, family, match):
    place = stored(tmp_path / "dense", kind, **more)
    with pytest.raises(MerganserError, match=match):
        up(place, family=family)


@pytest.mark.parametrize(
    ("kind", "more", "remedy"),
    [
        ("ministral", MIXED, {"sliding_window": None}),
        ("qwen3", {**MIXED, "use_sliding_window": True}, {"use_sliding_window": False}),
    ],
)
def test_a_window_is_given_up_in_the_config_as_the_message_says(tmp_path, kind, more, remedy):
    place = stored(tmp_path / "dense", kind, **more)
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | remedy))
    up(place).save(tmp_path / "out", sync=False)
    model = opened(tmp_path / "out")
    assert model.config.sliding_window is None
    assert torch.isfinite(answer(model)).all()


def test_biases_find_a_place_in_the_mixture_that_the_message_names(tmp_path):
    place = stored(tmp_path / "dense", "qwen2")
    with pytest.raises(
        MerganserError, match=r"recipe for a mixture .*`architecture: qwen` and a shared expert"
    ):
        up(place)
    base = mg.open(place)
    shared = [Expert(base, residual_scale=0.0)]
    same(place, mixture(base, [Expert(base)] * 2, shared=shared, architecture="qwen", gate_mode="random"))


def equal(model):
    with torch.no_grad():
        for layer in model.model.layers:
            for value in layer.mlp.experts.parameters():
                value.copy_(value[:1].expand_as(value))


MOE = {"num_local_experts": 3, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
BACK = [
    ("mixtral", ROPE, {}, {}),
    ("mixtral", ("sliding_window", "rms_norm_eps"), {}, {"rms_norm_eps": 1e-5}),
    ("mixtral", ("num_key_value_heads",), {}, {"num_key_value_heads": 8}),
    ("qwen3_moe", ("head_dim", *ROPE), {}, {"norm_topk_prob": True}),
    ("qwen3_moe", (), {"use_sliding_window": True, "sliding_window": 5}, {"norm_topk_prob": True}),
]


@pytest.mark.parametrize(("kind", "without", "also", "more"), BACK)
def test_the_mean_of_equal_experts_is_the_same_function(tmp_path, kind, without, also, more):
    place = stored(tmp_path / "moe", kind, without=without, also=also, edit=equal, **{**MOE, **more})
    same(place, get_step("average_experts").function(mg.open(place)))


def test_shares_that_do_not_sum_to_one_need_a_scale(tmp_path):
    """With a router of zeros each of 3 experts has a third, so that 2 chosen ones sum to two thirds."""

    def edit(model):
        equal(model)
        with torch.no_grad():
            for layer in model.model.layers:
                layer.mlp.gate.weight.zero_()

    place = stored(tmp_path / "moe", "qwen3_moe", without=("norm_topk_prob",), edit=edit, **MOE)
    average = get_step("average_experts").function
    with pytest.raises(MerganserError, match=r"do not sum to 1 here \(norm_topk_prob: false\).*give scale"):
        average(mg.open(place))
    same(place, average(mg.open(place), scale=2 / 3))
    plain = average(mg.open(place), scale=1.0)
    assert plain.keys() == average(mg.open(place), scale=0.5).keys()
    with pytest.raises(MerganserError, match="scale must be above 0"):
        average(mg.open(place), scale=0.0)


def test_feed_forward_blocks_of_two_sizes_are_no_dense_model(tmp_path):
    sizes = {**MOE, "moe_intermediate_size": 12, "mlp_only_layers": [1], "norm_topk_prob": True}
    place = stored(tmp_path / "moe", "qwen3_moe", **sizes)
    with pytest.raises(MerganserError, match=r"layers\.1\.mlp\.down_proj.* would have shape \[32, 20\]"):
        get_step("average_experts").function(mg.open(place))


def test_deepseeks_class_reads_rotary_positions_as_older_releases_wrote_them(tmp_path):
    told = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}}
    base = mg.open(stored(tmp_path / "base", "llama", without=ROPE, also=told))
    mixture(base, [Expert(base)] * 2, gate_mode="random", architecture="deepseek").save(
        tmp_path / "moe", sync=False
    )
    config = json.loads((tmp_path / "moe" / "config.json").read_text())
    assert config["rope_theta"] == 5e5
    assert config["rope_scaling"] == {"type": "linear", "factor": 2.0}
    assert "rope_parameters" not in config
    odd = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64, "rope_theta": 1e4}
    base = mg.open(stored(tmp_path / "yarn", "llama", without=ROPE, also={"rope_parameters": odd}))
    with pytest.raises(MerganserError, match="scaled by 'yarn', which DeepSeek MoE cannot do"):
        mixture(base, [Expert(base)] * 2, gate_mode="random", architecture="deepseek")
    mixture(base, [Expert(base)] * 2, gate_mode="random")  # another architecture, as the message says


def test_a_mixture_of_deepseeks_kind_has_no_window(tmp_path):
    place = stored(tmp_path / "base", "mistral", sliding_window=7)
    base = mg.open(place)
    with pytest.raises(
        MerganserError, match=r"sliding window of 7, which deepseek cannot have.*sliding_window: null"
    ):
        mixture(base, [Expert(base)] * 2, gate_mode="random", architecture="deepseek")
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"sliding_window": None}))
    base = mg.open(place)
    mixture(base, [Expert(base)] * 2, gate_mode="random", architecture="deepseek")
