"""Configs that mean the same however they are written, and those that contradict each other."""

from __future__ import annotations

import copy
import json

import pytest

from merganser.architectures.meaning import check_keys, differences, meaning

LLAMA_3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
PUBLISHED = {
    "llama 2": {
        "model_type": "llama",
        "hidden_size": 64,
        "num_attention_heads": 4,
        "rms_norm_eps": 1e-05,
        "hidden_act": "silu",
        "rope_scaling": None,
        "pretraining_tp": 1,
        "torch_dtype": "float16",
        "num_hidden_layers": 2,
    },
    "llama 3.1": {
        "model_type": "llama",
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_theta": 500000.0,
        "rope_scaling": {**LLAMA_3, "rope_type": "llama3"},
        "max_position_embeddings": 131072,
    },
    "vicuna": {
        "model_type": "llama",
        "hidden_size": 64,
        "num_attention_heads": 4,
        "rope_scaling": {"type": "linear", "factor": 4.0},
    },
    "mistral": {
        "model_type": "mistral",
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "num_hidden_layers": 2,
    },
    "qwen 2": {
        "model_type": "qwen2",
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_theta": 1000000.0,
        "use_sliding_window": False,
        "sliding_window": 131072,
        "max_window_layers": 1,
        "num_hidden_layers": 2,
    },
    "gemma 2": {
        "model_type": "gemma2",
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "num_hidden_layers": 2,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
    },
    "gemma 3": {
        "model_type": "gemma3_text",
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "num_hidden_layers": 6,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window_pattern": 6,
    },
    "phi 3": {
        "model_type": "phi3",
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "rope_theta": 10000.0,
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "partial_rotary_factor": 1.0,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
    },
    "gpt 2": {
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "n_head": 12,
        "n_ctx": 1024,
        "layer_norm_epsilon": 1e-05,
    },
    "pythia": {
        "model_type": "gpt_neox",
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000,
        "hidden_act": "gelu",
        "hidden_size": 64,
        "num_attention_heads": 4,
    },
    "modernbert": {
        "model_type": "modernbert",
        "global_rope_theta": 160000.0,
        "local_rope_theta": 10000.0,
        "local_attention": 128,
        "num_hidden_layers": 3,
    },
    "bert": {
        "model_type": "bert",
        "gradient_checkpointing": False,
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
    },
    "t5": {"model_type": "t5", "feed_forward_proj": "gated-gelu", "d_kv": 64},
    "falcon": {
        "model_type": "falcon",
        "hidden_size": 64,
        "num_attention_heads": 4,
        "multi_query": True,
        "alibi": False,
    },
}


@pytest.mark.models
@pytest.mark.parametrize("name", PUBLISHED)
def test_what_transformers_writes_of_a_published_config_means_the_same(name):
    transformers = pytest.importorskip("transformers")
    old = PUBLISHED[name]
    made = transformers.AutoConfig.for_model(**copy.deepcopy(old))
    new = json.loads(json.dumps(made.to_dict()))
    assert differences(old, new) == []
    changed = {
        **copy.deepcopy(old),
        "layer_norm_eps": 0.3,
        "rms_norm_eps": 0.3,
        "layer_norm_epsilon": 0.3,
        "norm_eps": 0.3,
    }
    assert [one.broken for one in differences(changed, new)] == [False]


@pytest.mark.models
def test_the_table_of_defaults_is_that_of_the_installed_transformers():
    pytest.importorskip("transformers")
    import loader_table

    stored = json.loads(loader_table.FILE.read_text())
    kinds = (
        "llama",
        "gpt2",
        "bert",
        "t5",
        "gemma3_text",
        "mixtral",
        "clip",
        "whisper",
        "qwen3",
        "glm4_moe",
        "modernbert",
    )
    for kind in kinds:
        made = loader_table.table(kind)
        assert stored[kind]["defaults"].items() <= made.pop("defaults").items()
        assert {key: stored[kind][key] for key in made} == made


CONTRADICTING = [
    ("llama 3.1", {"rope_theta": 1e6}, "rope_theta", False),
    ("llama 3.1", {"rope_scaling": None}, "rope_scaling", False),
    ("llama 2", {"num_attention_heads": 8}, "num_attention_heads", True),
    ("llama 2", {"head_dim": 32}, "head_dim", True),
    ("llama 2", {"hidden_act": "gelu"}, "hidden_act", True),
    ("llama 2", {"model_type": "granite"}, "model_type", True),
    ("mistral", {"sliding_window": None}, "sliding_window", False),
    ("gemma 2", {"attn_logit_softcapping": None}, "attn_logit_softcapping", False),
    ("gemma 3", {"rope_local_base_freq": 20000.0}, "rope_theta.sliding_attention", False),
    ("pythia", {"rotary_pct": 1.0}, "partial_rotary_factor", True),
    ("pythia", {"use_parallel_residual": False}, "use_parallel_residual", True),
    ("gpt 2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx", False),
    ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type", True),
    ("t5", {"feed_forward_proj": "relu"}, "feed_forward_proj", True),
    ("falcon", {"alibi": True}, "alibi", True),
]


@pytest.mark.parametrize(("name", "change", "key", "broken"), CONTRADICTING)
def test_a_contradiction_is_found_whichever_config_comes_first(name, change, key, broken):
    a, b = PUBLISHED[name], PUBLISHED[name] | change
    for first, second in ((a, b), (b, a)):
        found = {one.key: one for one in differences(first, second)}
        assert key in found
        assert found[key].broken == broken
        assert found[key].first == meaning(first)[key]
        assert found[key].second == meaning(second)[key]


@pytest.mark.parametrize(
    "change",
    [
        {
            "max_position_embeddings": 99,
            "use_cache": False,
            "torch_dtype": "float32",
            "transformers_version": "4.1",
        },
        {"_name_or_path": "x", "architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "x"}},
        {"attention_dropout": 0.3, "initializer_range": 0.5, "pad_token_id": 7, "eos_token_id": [1, 2]},
        {
            "vocab_size": 5,
            "intermediate_size": 7,
            "num_hidden_layers": 9,
            "attention_bias": True,
            "mlp_bias": True,
        },
        {"rope_scaling": {"rope_type": "default"}, "rope_theta": 10000},
        {"num_key_value_heads": 4, "head_dim": 16, "hidden_act": "swish", "rms_norm_eps": 0.00001},
        {
            "unsloth_version": "2024.9",
            "sliding_window": 12,
            "logit_scale": 3.0,
        },  # keys that the loader does not read
    ],
)
def test_what_changes_nothing_is_no_contradiction(change):
    base = PUBLISHED["llama 2"]
    assert differences(base, base | change) == []


def test_configs_inside_a_config_are_compared_by_their_own_type():
    inner = {"model_type": "llama", "rms_norm_eps": 1e-6}
    a = {"model_type": "llava", "text_config": inner, "vision_config": {"model_type": "clip_vision_model"}}
    assert (
        differences(a, {**a, "vision_config": {"model_type": "clip_vision_model", "layer_norm_eps": 1e-5}})
        == []
    )
    (found,) = differences(a, {**a, "text_config": {"model_type": "llama", "rope_theta": 5}})
    assert found.key == "text_config.rope_theta"
    (found,) = differences(
        a, {**a, "text_config": {**inner, "model_type": "mistral", "sliding_window": None}}
    )[:1]
    assert (found.key, found.broken) == ("text_config.model_type", True)


def test_unknown_types_are_compared_by_what_both_say():
    a = {"model_type": "mine", "num_attention_heads": 4, "rms_norm_eps": 1e-6, "flavour": 1}
    assert differences(a, {**a, "flavour": 2, "rope_theta": 4.0}) == []
    assert [one.key for one in differences(a, {**a, "num_attention_heads": 2})] == ["num_attention_heads"]


def test_keys_that_no_loader_has():
    assert (
        check_keys(["rope_theta", "model_type", "text_config.rms_norm_eps", "rope_theta.full_attention"])
        is None
    )
    assert check_keys(["rope_thta"]) == (
        "no loader has a key 'rope_thta' that changes what tensors mean; did you mean 'rope_theta'?"
    )
