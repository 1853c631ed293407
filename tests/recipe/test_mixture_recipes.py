"""The schema of mixtures: what it accepts, what it refuses and where, and that it reaches the operation."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tiny_tokenizers
from makers import ROOT, files_of, read_model, same_bytes, write_model

import merganser as mg
from merganser import recipe
from merganser.errors import RequestError
from merganser.recipe.experts import build_mixture, is_mixture, read_mixture

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 430,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def tiny_llama(place: Path, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (430, 8), "lm_head.weight": (430, 8)}
    for layer in range(2):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.self_attn.{side}_proj.weight": (8, 8) for side in "qkvo"}
        shapes |= {f"{at}.{norm}_layernorm.weight": (8,) for norm in ("input", "post_attention")}
        shapes |= {f"{at}.mlp.{part}_proj.weight": (12, 8) for part in ("gate", "up")}
        shapes[f"{at}.mlp.down_proj.weight"] = (8, 12)
    shapes["model.norm.weight"] = (8,)
    write_model(place, {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}, CONFIG)
    (place / "tokenizer.json").write_text(tiny_tokenizers.byte_level().to_str())
    return place


@pytest.fixture
def models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "math", "code")):
        tiny_llama(tmp_path / name, seed)
    return tmp_path


FULL = """
base_model: base
gate_mode: cheap_embed
dtype: bfloat16
experts_per_token: 1
architecture: qwen
experts:
  - source_model: math
    positive_prompts: ["solve", "integrate the sum"]
    negative_prompts: ["a poem"]
    residual_scale: 0.5
  - source_model: {model: {path: code}}
    positive_prompts: ["write a function"]
    noise_scale: 1e-3
shared_experts:
  - source_model: base
    positive_prompts: ["anything"]
    residual_scale: 0.1
"""


def raw(**more):
    plain = {
        "base_model": "base",
        "gate_mode": "random",
        "experts": [{"source_model": "math"}, {"source_model": "code"}],
    }
    return {**plain, **more}


def test_a_mixture_is_known_by_its_experts():
    assert is_mixture(raw())
    assert not is_mixture({"method": "linear", "experts": []})
    assert not is_mixture({"merge_method": "linear", "experts": []})
    assert not is_mixture({"models": []})


def test_everything_that_is_written_arrives(models):
    found = recipe.load(FULL)
    assert (found.gate_mode, found.per_token, found.architecture, found.dtype) == (
        "cheap_embed",
        1,
        "qwen",
        "bfloat16",
    )
    assert [entry.residual_scale for entry in found.experts] == [0.5, None]
    assert [entry.noise_scale for entry in found.experts] == [None, 1e-3]
    assert [model.path for model in found.models] == ["base", "math", "code"]
    said = json.loads(json.dumps(found.canonical))
    assert said["experts"][0] == {
        "model": "math",
        "positive_prompts": ["solve", "integrate the sum"],
        "negative_prompts": ["a poem"],
        "residual_scale": 0.5,
        "noise_scale": None,
    }
    assert said["shared_experts"][0]["residual_scale"] == 0.1
    weights, fields = recipe.build(found)
    assert fields["dtype"] == "bfloat16"
    assert fields["recipe"]["parameters"]["experts_per_token"] == 1
    weights.save(models / "out", sync=False, **fields)
    config = json.loads((models / "out" / "config.json").read_text())
    assert config["architectures"] == ["Qwen2MoeForCausalLM"]
    assert (config["num_experts"], config["num_experts_per_tok"]) == (2, 1)
    mg.verify(models / "out")
    made = read_model(models / "out")
    assert {array.dtype.name for array in made.values()} == {"bfloat16"}
    source = read_model(models / "base")["model.layers.1.mlp.down_proj.weight"]
    shared = made["model.layers.1.mlp.shared_expert.down_proj.weight"]
    assert same_bytes(shared, (source * np.float32(0.1)).astype(shared.dtype))


def test_defaults_are_those_of_mergekit():
    prompts = [{"source_model": n, "positive_prompts": [n]} for n in ("math", "code")]
    found = read_mixture({"base_model": "base", "experts": prompts}, "recipe", None)
    assert (found.gate_mode, found.per_token, found.architecture, found.dtype) == ("hidden", 2, None, None)
    assert found.shared == ()
    assert read_mixture(raw(architecture=None, dtype=None, shared_experts=None), "recipe", None).shared == ()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"gate_mod": "hidden"}, "recipe: gate_mod: unknown key; did you mean 'gate_mode'"),
        ({"gate_mode": "hiden"}, "recipe: gate_mode: expected one of hidden.*did you mean 'hidden'"),
        ({"gate_mode": True}, "gate_mode: expected one of"),
        ({"experts": []}, "experts: there must be one or more"),
        ({"experts": {"source_model": "a"}}, "experts: expected a list"),
        ({"experts": ["a", "b"]}, r"experts\[0\]: expected {source_model: PATH"),
        ({"experts": [{"source_model": "a"}, {}]}, r"experts\[1\].source_model: names no model"),
        ({"experts": [{"source_model": ["a"]}]}, r"experts\[0\].source_model: expected the path"),
        (
            {"experts": [{"source_model": "a", "positive_promts": []}]},
            r"experts\[0\].positive_promts: unknown key; did you",
        ),
        (
            {"experts": [{"source_model": "a", "positive_prompts": "x"}]},
            r"positive_prompts: expected a list of texts",
        ),
        (
            {"experts": [{"source_model": "a", "negative_prompts": [3]}]},
            r"negative_prompts\[0\]: expected text",
        ),
        (
            {"experts": [{"source_model": "a", "residual_scale": "much"}]},
            r"residual_scale: expected a number",
        ),
        ({"experts": [{"source_model": "a", "noise_scale": -1}]}, r"noise_scale: expected 0 or more"),
        ({"experts": [{"source_model": "a", "noise_scale": ".inf"}]}, r"noise_scale: expected a number"),
        ({"experts_per_token": 3}, "experts_per_token: 3 of 2 experts"),
        ({"experts_per_token": 0}, "experts_per_token: expected a whole number of 1 or more"),
        ({"experts_per_token": 1.5}, "experts_per_token: expected a whole number"),
        ({"base_model": None}, "base_model: names no model"),
        (
            {"architecture": "mixtrl"},
            "architecture: expected the beginning of one of Mixtral.*did you mean 'mixtral'",
        ),
        ({"dtype": "int8"}, "dtype: expected a float dtype"),
        ({"dtype": "bfloat"}, "dtype: .*bfloat"),
        ({"gate_mode": "hidden"}, r"experts\[0\]: gate_mode hidden needs positive_prompts"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(more, message):
    with pytest.raises(RequestError, match=message):
        read_mixture(raw(**more), "recipe", None)


def test_prompts_that_cannot_tell_experts_apart():
    same = [{"source_model": n, "positive_prompts": ["x"]} for n in ("math", "code")]
    with pytest.raises(RequestError, match="experts: all have the same prompts"):
        read_mixture(raw(experts=same, gate_mode="cheap_embed"), "recipe", None)
    read_mixture(raw(experts=same), "recipe", None)
    other = [{"source_model": n, "positive_prompts": [n]} for n in ("math", "code")]
    mixed = [{"source_model": "base", "positive_prompts": ["x"]}, {"source_model": "base"}]
    with pytest.raises(RequestError, match="shared_experts: either all"):
        read_mixture(raw(experts=other, shared_experts=mixed, gate_mode="cheap_embed"), "recipe", None)


def test_a_model_is_opened_once_and_errors_name_the_recipe(models):
    found = read_mixture(
        raw(experts=[{"source_model": "math"}, {"source_model": "./math"}]), "moe.yaml", None
    )
    asked = []

    def open_model(reference, place):
        asked.append((reference, place))
        return mg.open(reference)

    made = build_mixture(found, open_model, seed=3)
    assert asked == [("base", "moe.yaml: base_model"), ("math", "moe.yaml: experts[0].source_model")]
    made.save(models / "one", sync=False)
    build_mixture(found, open_model, seed=3).save(models / "two", sync=False)
    build_mixture(found, open_model, seed=4).save(models / "three", sync=False)
    one, two, three = (read_model(models / name) for name in ("one", "two", "three"))
    gate = "model.layers.0.block_sparse_moe.gate.weight"
    assert same_bytes(one[gate], two[gate])
    assert not same_bytes(one[gate], three[gate])
    wrong = read_mixture(raw(architecture="qwen3"), "moe.yaml", None)
    with pytest.raises(
        RequestError, match=r"moe\.yaml: no architecture fits these models: Qwen3 MoE takes qwen3"
    ):
        build_mixture(wrong, open_model, seed=0)


def test_a_file_is_merged_by_the_command_with_the_same_bytes(models):
    from typer.testing import CliRunner

    from merganser.cli import app

    (models / "moe.yaml").write_text(FULL)
    done = CliRunner().invoke(app, ["merge", "moe.yaml", "out", "--seed", "5", "--no-sync"])
    assert done.exit_code == 0, done.output
    weights, fields = recipe.build(recipe.load(models / "moe.yaml"), seed=5)
    weights.save(models / "again", sync=False, generator="merganser merge", **fields)
    assert files_of(models / "out") == files_of(models / "again")
    told = CliRunner().invoke(app, ["explain", "moe.yaml"])
    assert told.exit_code == 0, told.output
    assert "mixture" in told.output


def test_the_page_with_prompts_builds(models):
    """The snippets under `yml` need a tokenizer, which the models of tests/docs do not have."""
    page = (ROOT / "docs" / "mixtures.md").read_text()
    texts = re.findall(r"```yml\n(.*?)```", page, re.DOTALL)
    assert texts
    for text in texts:
        found = recipe.load(text)
        for model in found.models:
            if not Path(model.path).exists():
                tiny_llama(models / model.path, 7)
        weights, fields = recipe.build(found)
        mg.explain(weights, **fields)


OTHER = """base_model: base
gate_mode: uniform_random
experts:
- source_model: math
- source_model: code
"""


def changed(place, **keys):
    (place / "config.json").write_text(json.dumps(CONFIG | keys))


@pytest.mark.parametrize("change", [{"rope_theta": 2e6}, {"rms_norm_eps": 0.01}])
def test_an_expert_that_may_be_meant_is_named(models, change):
    changed(models / "code", **change)
    (key,) = change
    (base,) = recipe.build(recipe.load(OTHER))[0].notes[-1:]
    assert base["step"] == "parents differ"
    assert base["in config.json"][0].startswith(f"{key} is ")
    assert "in 'code'" in base["in config.json"][0]
    weights, fields = recipe.build(recipe.load(f"{OTHER}allow: {key}\n"))
    assert weights.notes[-1] == base
    assert fields["recipe"]["allow"] == [key]


@pytest.mark.parametrize("change", [{"hidden_act": "relu"}, {"num_attention_heads": 4}])
def test_an_expert_that_cannot_be_meant_is_refused_and_the_way_out_works(models, change):
    changed(models / "math", **change)
    with pytest.raises(RequestError, match=r"in 'base' and .* in 'math'.* write allow: \[(.*)\]") as told:
        recipe.build(recipe.load(OTHER))
    wanted = re.search(r"allow: \[.*\]", str(told.value))[0]
    assert next(iter(change)) in wanted
    recipe.build(recipe.load(f"{OTHER}{wanted}\n"))[0].save(models / "out", sync=False)
    assert json.loads((models / "out" / "config.json").read_text())["num_attention_heads"] == 2


def test_experts_with_other_tokens_and_models_of_other_types(models):
    (models / "code" / "tokenizer.json").write_text(tiny_tokenizers.byte_level(400).to_str())
    assert all(note["step"] != "parents differ" for note in recipe.build(recipe.load(OTHER))[0].notes)
    changed(models / "code", model_type="mistral", num_key_value_heads=2, rope_theta=7.0)
    with pytest.raises(RequestError, match=r"one model type, and here .* is llama, .* is mistral"):
        recipe.build(recipe.load(OTHER))
    with pytest.raises(RequestError, match="no loader has a key 'rope_thata'"):
        recipe.load(f"{OTHER}allow: [rope_thata]\n")
