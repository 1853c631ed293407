"""Stored and live names: transformers' own renaming decides, and what is not certain is left alone."""

from __future__ import annotations

from typing import Any

import pytest
from live_table import line
from tiny_live import CASES

from merganser.architectures.live_names import live_class, stored_names
from merganser.errors import RequestError

LAYER = "layers.0.self_attn.q_proj.weight"


def test_the_class_is_that_of_the_config():
    told = live_class({"model_type": "gpt2", "architectures": ["GPT2ForTokenClassification"]})
    assert told is not None and told.name == "GPT2ForTokenClassification"
    assert told.live("h.0.attn.c_attn.weight") == "transformer.h.0.attn.c_attn.weight"
    assert told.live("transformer.h.0.attn.c_attn.weight") == "transformer.h.0.attn.c_attn.weight"
    assert told.live("classifier.weight") == "classifier.weight"
    assert told.live("lm_head.weight") is None
    assert told.kind("transformer.h.0.attn.c_attn") == "conv1d"
    assert told.kind("transformer.wte") == "embedding" and told.kind("classifier") == "linear"


def test_another_class_by_name():
    told = live_class({"architectures": ["BertModel"]}, architecture="BertForTokenClassification")
    assert told is not None and told.live("pooler.dense.weight") is None
    assert told.live("embeddings.LayerNorm.gamma") == "bert.embeddings.LayerNorm.weight"
    with pytest.raises(RequestError, match=r"no model class of transformers 5.*did you mean 'BertModel'"):
        live_class({}, architecture="BertModell")


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["bert.embeddings.word_embeddings.weight", "qa_outputs.weight"], "BertForQuestionAnswering"),
        (["pooler.dense.weight", "embeddings.word_embeddings.weight"], "BertModel"),
    ],
)
def test_without_architectures_the_names_tell(names, kind):
    told = live_class({"model_type": "bert"}, names)
    assert told is not None and told.name == kind


def test_models_that_transformers_does_not_have():
    assert live_class({"model_type": "of_a_lab", "architectures": ["OfALab"]}) is None
    assert live_class(None) is None


def test_tensors_that_the_live_model_holds_in_another_form():
    told = live_class({"architectures": ["MixtralForCausalLM"]})
    assert told is not None
    moe = "model.layers.1.block_sparse_moe"
    assert told.live(f"{moe}.experts.3.w1.weight") is None
    assert told.live(f"{moe}.gate.weight") == "model.layers.1.mlp.gate.weight"
    assert told.kind("model.layers.1.mlp.gate") == "other"


def test_an_older_transformers_named_modules_as_the_files_of_today():
    config = {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]}
    old, new = f"language_model.model.{LAYER}", f"model.language_model.{LAYER}"
    assert stored_names(config, [old], [new]) == {new: old}
    assert stored_names(config, [new], [old]) == {old: new}
    assert stored_names(config, [old], [old]) == {}


@pytest.mark.parametrize("prefix", ["model.", "module.", "_orig_mod.", "backbone.text."])
def test_one_prefix_more_or_less_is_certain(prefix):
    bare = [LAYER, "layers.1.self_attn.q_proj.weight"]
    longer = [prefix + name for name in bare]
    assert stored_names({"model_type": "of_a_lab"}, longer, bare) == dict(zip(bare, longer, strict=True))
    assert stored_names({"model_type": "of_a_lab"}, bare, longer) == dict(zip(longer, bare, strict=True))


@pytest.mark.parametrize(
    ("held", "named"),
    [
        ([f"text.{LAYER}", f"vision.{LAYER}"], [LAYER]),  # two towers
        (
            [f"text.{LAYER}", "vision.layers.1.self_attn.q_proj.weight"],
            [LAYER, "layers.1.self_attn.q_proj.weight"],
        ),
        ([LAYER], ["layers.0.self_attn.k_proj.weight"]),
        ([LAYER], [f"wrong.{LAYER}", "layers.0.self_attn.q_proj.bias"]),
    ],
)
def test_what_is_not_certain_is_left_alone(held, named):
    assert stored_names(None, held, named) == {}


@pytest.mark.models
@pytest.mark.parametrize("name", ["ViT", "Qwen2-VL", "Gemma 3", "BLOOM of the hub", "CLIP"])
def test_the_table_says_what_the_installed_transformers_does(name, tmp_path):
    """Every stored tensor of a live model, as transformers saved it, comes back to the name of its parameter."""
    pytest.importorskip("torch")
    from safetensors import safe_open
    from transformers.conversion_mapping import get_model_conversion_mapping

    case = CASES[name]
    model: Any = case.build()
    base = case.write(tmp_path, model)
    told = live_class(None, architecture=case.kind)
    assert told is not None
    with safe_open(base / "model.safetensors", "np") as file:
        stored = list(file.keys())
    assert {told.live(one) for one in stored} <= set(model.state_dict())
    now = [line(one) for one in get_model_conversion_mapping(model)]
    held = [[t.kind, t.scope, t.prefix, t.pattern.pattern, t.target] for t in told.transforms]
    assert sorted(map(str, held)) == sorted(map(str, now))
