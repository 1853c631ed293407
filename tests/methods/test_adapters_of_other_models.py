"""Adapters that were trained on another kind of model, or change what a model lacks: refused, never applied in part."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from makers import normal, read_model, write_adapter, write_model

sys.path.append(str(Path(__file__).parents[1] / "recipe"))
from tiny_llamas import config, llama_arrays

import merganser as mg
from merganser import cli, recipe
from merganser.errors import AlgebraError, MerganserError, RequestError

MODULES = {
    f"model.layers.{k}.mlp.up_proj": (normal(5, 2, seed=k), normal(2, 6, seed=9 + k)) for k in range(3)
}
RECIPE = "{form}: task_arithmetic\nbase_model: base\nmodels: [{{model: lora, parameters: {{weight: 1.0}}}}]\n{more}"


def written(home, *, base=None, lora=None, beside=None, modules=MODULES):
    """A model and an adapter, with more settings of its config and a config.json beside it."""
    write_model(home / "base", llama_arrays(0), base or config())
    write_adapter(home / "lora", modules)
    if lora:
        told = json.loads((home / "lora" / "adapter_config.json").read_text())
        (home / "lora" / "adapter_config.json").write_text(json.dumps(told | lora))
    if beside:
        (home / "lora" / "config.json").write_text(json.dumps(beside))


def ways(more=""):
    """All roads by which an adapter comes onto a model, as functions that give the weights."""

    def of(text):
        return lambda: recipe.build(recipe.load(text))[0]

    return {
        "python": lambda: mg.open("base") + mg.open("lora"),
        "scaled": lambda: mg.open("lora") * 0.5 + mg.open("base"),
        "own form": of(RECIPE.format(form="method", more=more)),
        "mergekit's": of(RECIPE.format(form="merge_method", more=more)),
        "model+lora": of(f"merge_method: passthrough\nmodels: [{{model: base+lora}}]\n{more}"),
    }


OTHER = {
    "a type, beside the adapter": {"beside": config(model_type="qwen2")},
    "an activation": {"beside": config(hidden_act="gelu")},
    "heads": {"beside": config(num_attention_heads=4, head_dim=2)},
    "a class": {"lora": {"auto_mapping": {"base_model_class": "MistralForCausalLM"}}},
    "a directory": {"lora": {"base_model_name_or_path": "elsewhere"}},
}


@pytest.mark.parametrize("case", OTHER)
def test_another_kind_of_model_is_refused_on_every_road_and_the_way_out_works(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, **OTHER[case])
    write_model(tmp_path / "elsewhere", llama_arrays(1), config(model_type="cohere"))
    for way, make in ways().items():
        with pytest.raises(
            MerganserError, match=r"in '.*' and .* in the model that '.*' was trained on"
        ) as told:
            make()
        wanted = re.search(r"allow: \[.*?\]", str(told.value))[0]
        if way == "python":
            keys = re.findall(r"[\w.]+", wanted)[1:]
            made = mg.open("base") + mg.open("lora").allow(*keys)
        elif way == "scaled":
            made = mg.open("lora").allow(*keys) * 0.5 + mg.open("base")
        else:
            made = ways(f"{wanted}\n")[way]()
        made.save(tmp_path / "out", sync=False, overwrite=True)
        factor = 0.5 if way == "scaled" else 1.0
        left, right = MODULES["model.layers.1.mlp.up_proj"]
        wanted_up = llama_arrays(0)["model.layers.1.mlp.up_proj.weight"] + factor * 2.0 * left @ right
        np.testing.assert_allclose(
            read_model(tmp_path / "out")["model.layers.1.mlp.up_proj.weight"], wanted_up, rtol=1e-5, atol=1e-5
        )


SAME = {
    "the same config": {"beside": config()},
    "a later version": {"beside": config(rope_theta=7e5, rms_norm_eps=1e-3, max_position_embeddings=99)},
    "a part of a larger model": {"beside": {"model_type": "llava", "text_config": config()}},
    "a class of that type": {"lora": {"auto_mapping": {"base_model_class": "LlamaForTokenClassification"}}},
    "a class of nobody": {"lora": {"auto_mapping": {"base_model_class": "OurOwnModel"}}},
    "a name": {"lora": {"base_model_name_or_path": "mistralai/Mistral-7B-v0.1"}},
    "what is no config": {"lora": {"base_model_name_or_path": "\0"}},
    "what is no text": {"lora": {"base_model_name_or_path": 3, "auto_mapping": [1]}},
}


@pytest.mark.parametrize("case", SAME)
def test_what_is_not_known_or_may_be_meant_is_no_reason(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, **SAME[case])
    for make in ways().values():
        assert len(make())


def test_adapters_of_two_kinds_do_not_add_up(tmp_path):
    written(tmp_path, beside=config(model_type="qwen2"))
    other = shutil.copytree(tmp_path / "lora", tmp_path / "other")
    (other / "config.json").write_text(json.dumps(config(model_type="mistral")))
    one, two = mg.open(tmp_path / "lora"), mg.open(other)
    with pytest.raises(
        AlgebraError, match="qwen2 in the model that 'lora' was trained on and mistral in the model"
    ):
        one + two
    assert len(one + two.allow("model_type")) == 3


def test_a_part_of_an_adapter_is_not_applied(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    more = {
        "model.layers.7.mlp.up_proj": (normal(5, 2), normal(2, 6)),
        "visual.fc": (normal(5, 2), normal(2, 6)),
    }
    written(tmp_path, modules=MODULES | more, lora={"base_model_name_or_path": "the/real-one"})
    with pytest.raises(
        AlgebraError, match=r"changes 2 tensors that 'base' does not have: .*layers\.7.*visual"
    ):
        mg.open("base") + mg.open("lora")
    for form in ("method", "merge_method"):
        for policy in ("", "mismatch: skip\n", "mismatch: base\n"):
            with pytest.raises(
                RequestError,
                match=r"changes 2 of its 5 tensors in places that 'base' lacks .*\(the/real-one\)",
            ) as told:
                recipe.build(recipe.load(RECIPE.format(form=form, more=policy)))
        wanted = re.search(r"mismatch: \{.*\}", str(told.value))[0]
        (tmp_path / "r.yml").write_text(RECIPE.format(form=form, more=wanted + "\n"))
        assert cli.run(["merge", "r.yml", "out", "--overwrite", "--no-sync"]) == 0
        assert "only in a model, left out" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "lora")
    write_adapter(tmp_path / "lora", more)
    with pytest.raises(RequestError, match=r"2 of its 2 tensors .* made on$"):
        recipe.build(recipe.load(RECIPE.format(form="method", more="")))


def test_factors_of_other_shapes_are_left_out_by_name_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    odd = {"model.layers.3.mlp.up_proj": (normal(9, 2), normal(2, 6))}
    written(tmp_path, modules=MODULES | odd, lora={"base_model_name_or_path": "the/real-one"})
    with pytest.raises(AlgebraError, match=r"on a model of other sizes \(the/real-one\): add it to that one"):
        mg.open("base") + mg.open("lora")
    for policy in ("skip", "base"):
        with pytest.raises(AlgebraError, match="leave out 1 of the 4 tensors that 'lora' changes") as told:
            recipe.build(recipe.load(RECIPE.format(form="method", more=f"mismatch: {policy}\n")))
        wanted = re.search(r"mismatch: \{.*\}", str(told.value))[0]
        made = recipe.build(recipe.load(RECIPE.format(form="method", more=wanted + "\n")))[0]
        made.save(tmp_path / f"out-{policy}", sync=False)
        base, found = llama_arrays(0), read_model(tmp_path / f"out-{policy}")
        changed = [name for name in base if not np.array_equal(base[name], found[name])]
        assert changed == [f"model.layers.{k}.mlp.up_proj.weight" for k in range(3)]


@pytest.mark.models
def test_what_peft_writes_says_the_type(tmp_path):
    """PEFT itself says of which class the base was, and where it lay."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4}
    for name in ("Llama", "Mistral"):
        made = getattr(transformers, f"{name}Config")(**sizes, **heads)
        getattr(transformers, f"{name}ForCausalLM")(made).save_pretrained(tmp_path / name)
    for task in (None, "CAUSAL_LM"):
        live = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "Llama")
        settings = LoraConfig(r=2, target_modules=["q_proj"], task_type=task, init_lora_weights=False)
        get_peft_model(live, settings).save_pretrained(tmp_path / f"lora-{task}")
        lora = mg.open(tmp_path / f"lora-{task}")
        with pytest.raises(
            AlgebraError, match="model_type is mistral in 'Mistral' and llama in the model that"
        ):
            mg.open(tmp_path / "Mistral") + lora
        assert len(mg.open(tmp_path / "Llama") + lora)
