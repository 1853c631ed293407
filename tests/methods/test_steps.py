"""Steps from recipes and from the command line: settings, refusals, and what they do to real small models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from makers import read_model

import merganser as mg
from merganser.algebra.axes import reading_of
from merganser.cli import run
from merganser.errors import AlgebraError, CheckpointError, MerganserError, RequestError
from merganser.methods import all_steps, get_step
from merganser.recipe import build, load

OPTIONS = ("--quiet", "--memory", "16GB")
"""The limit is that of the whole process, and these tests run inside one that holds torch."""
SIZES = {
    "vocab_size": 31,
    "hidden_size": 12,
    "intermediate_size": 10,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
}


def llama(path: Path, seed: int = 0, **changes: object) -> Path:
    """A model directory in the layout of Llama, without torch."""
    from makers import write_model

    c = SIZES | changes
    rng = np.random.default_rng(seed)
    q, kv, n, h = (
        c["num_attention_heads"] * c["head_dim"],
        c["num_key_value_heads"] * c["head_dim"],
        c["intermediate_size"],
        c["hidden_size"],
    )
    tensors = {"model.embed_tokens.weight": (c["vocab_size"], h)}
    for k in range(c["num_hidden_layers"]):
        tensors |= {
            f"model.layers.{k}.input_layernorm.weight": (h,),
            f"model.layers.{k}.self_attn.q_proj.weight": (q, h),
            f"model.layers.{k}.self_attn.k_proj.weight": (kv, h),
            f"model.layers.{k}.self_attn.v_proj.weight": (kv, h),
            f"model.layers.{k}.self_attn.o_proj.weight": (h, q),
            f"model.layers.{k}.post_attention_layernorm.weight": (h,),
            f"model.layers.{k}.mlp.gate_proj.weight": (n, h),
            f"model.layers.{k}.mlp.up_proj.weight": (n, h),
            f"model.layers.{k}.mlp.down_proj.weight": (h, n),
        }
    tensors |= {"model.norm.weight": (h,), "lm_head.weight": (c["vocab_size"], h)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in tensors.items()}
    return write_model(path, arrays, {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **c})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return llama(tmp_path / "model")


def made(model: Path, *steps: object) -> mg.Weights:
    weights, _ = build(load({"model": str(model), "steps": list(steps)}))
    return weights


def config_of(weights: mg.Weights) -> dict:
    return reading_of(weights).followed()


def test_every_step_has_a_summary_and_documented_parameters():
    steps = all_steps()
    assert {"take", "widen", "narrow", "layers", "g_stack", "stack", "upcycle", "rotate"} <= steps.keys()
    for step in steps.values():
        assert step.summary.endswith("."), step.name
        for parameter in step.parameters:
            assert parameter.name in (step.function.__doc__ or ""), (step.name, parameter.name)


def test_layers_are_kept_repeated_and_renumbered(model):
    before = read_model(model)
    weights = made(model, {"layers": "0-1, 0, 3"})
    assert config_of(weights)["num_hidden_layers"] == 4
    for new, old in enumerate([0, 1, 0, 3]):
        name = "model.layers.{}.mlp.up_proj.weight"
        assert np.array_equal(mg.compute(weights, name.format(new)), before[name.format(old)])
    dropped = made(model, {"drop_layers": [0, 2]})
    assert config_of(dropped)["num_hidden_layers"] == 2
    assert np.array_equal(
        mg.compute(dropped, "model.layers.1.mlp.up_proj.weight"), before["model.layers.3.mlp.up_proj.weight"]
    )
    assert "model.layers.2.mlp.up_proj.weight" not in dropped


def test_g_stack_and_interleave_order_layers_as_the_paper_says(model):
    before = read_model(model)
    name = "model.layers.{}.mlp.up_proj.weight"
    for step, order in (("g_stack", [0, 1, 2, 3] * 2), ("interleave", [0, 0, 1, 1, 2, 2, 3, 3])):
        weights = made(model, {step: 2})
        assert config_of(weights)["num_hidden_layers"] == 8
        for new, old in enumerate(order):
            assert np.array_equal(mg.compute(weights, name.format(new)), before[name.format(old)])
    silent = made(model, {"g_stack": {"factor": 2, "silent": True}})
    assert not mg.compute(silent, "model.layers.5.mlp.down_proj.weight").any()
    assert not mg.compute(silent, "model.layers.5.self_attn.o_proj.weight").any()
    assert mg.compute(silent, "model.layers.5.mlp.up_proj.weight").any()
    assert mg.compute(silent, "model.layers.3.mlp.down_proj.weight").any()


def test_stack_takes_ranges_of_several_models_with_coefficients(model, tmp_path):
    other = llama(tmp_path / "other", seed=1, num_hidden_layers=6)
    weights = made(
        model,
        {
            "stack": {
                "parts": [{"layers": "0-2"}, {"model": str(other), "layers": "2-5", "scale": [1, 1, 0.5, 0]}]
            }
        },
    )
    a, b = read_model(model), read_model(other)
    assert config_of(weights)["num_hidden_layers"] == 7
    name = "model.layers.{}.mlp.down_proj.weight"
    for new, (parent, old, scale) in enumerate(
        [(a, 0, 1), (a, 1, 1), (a, 2, 1), (b, 2, 1), (b, 3, 1), (b, 4, 0.5), (b, 5, 0)]
    ):
        assert np.allclose(mg.compute(weights, name.format(new)), scale * parent[name.format(old)])
    assert np.array_equal(mg.compute(weights, "model.embed_tokens.weight"), a["model.embed_tokens.weight"])
    assert np.array_equal(mg.compute(weights, "lm_head.weight"), b["lm_head.weight"])


def test_models_of_steps_are_looked_for_beside_the_recipe(model, tmp_path, monkeypatch):
    llama(tmp_path / "home" / "other", seed=1)
    steps = "steps:\n  - stack: {parts: [{layers: 0-1}, {model: other, layers: 0-1}]}\n"
    steps += "  - concat: {axis: neurons, models: [twin]}\n"
    llama(tmp_path / "home" / "twin", seed=2)
    (tmp_path / "home" / "recipe.yaml").write_text(f"model: {model}\n{steps}")
    monkeypatch.chdir(tmp_path)
    weights, _ = build(load(tmp_path / "home" / "recipe.yaml"))
    config = config_of(weights)
    assert (config["num_hidden_layers"], config["intermediate_size"]) == (4, 20)
    assert [c.name for c in weights.checkpoints] == ["model", "other", "twin"]
    twin = read_model(tmp_path / "home" / "twin")["model.layers.0.mlp.up_proj.weight"]
    assert np.array_equal(mg.compute(weights, "model.layers.0.mlp.up_proj.weight")[10:], twin)


def test_unequal_widths_between_parents_name_both_sides(model, tmp_path):
    other = llama(tmp_path / "wide", intermediate_size=20)
    with pytest.raises(AlgebraError, match=r"neurons is 10 in model and 20 in wide"):
        made(model, {"stack": {"parts": [{"layers": "0-1"}, {"model": str(other), "layers": "0-1"}]}})


def test_narrow_keeps_the_largest_by_norm(model):
    before = read_model(model)
    weights = made(model, {"narrow": {"axis": "neurons", "size": 4}})
    assert config_of(weights)["intermediate_size"] == 4
    for k in range(4):
        gate, up, down = (before[f"model.layers.{k}.mlp.{n}_proj.weight"] for n in ("gate", "up", "down"))
        norms = (
            (gate.astype(np.float64) ** 2).sum(1)
            + (up.astype(np.float64) ** 2).sum(1)
            + (down.astype(np.float64) ** 2).sum(0)
        )
        keep = np.sort(np.argsort(-norms, kind="stable")[:4])
        assert np.array_equal(mg.compute(weights, f"model.layers.{k}.mlp.down_proj.weight"), down[:, keep])
    (note,) = weights.notes
    assert 0.4 < note["kept_share_of_squares"] < 1


def test_heads_go_with_their_group(model):
    before = read_model(model)
    weights = made(model, {"take": {"axis": "kv_heads", "keep": [1]}})
    config = config_of(weights)
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (2, 1)
    assert np.array_equal(
        mg.compute(weights, "model.layers.0.self_attn.q_proj.weight"),
        before["model.layers.0.self_attn.q_proj.weight"][12:],
    )
    assert np.array_equal(
        mg.compute(weights, "model.layers.0.self_attn.o_proj.weight"),
        before["model.layers.0.self_attn.o_proj.weight"][:, 12:],
    )


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"take": {"axis": "neuron", "keep": "0-3"}}, "did you mean 'neurons'"),
        (
            {"take": {"axis": "neurons", "keep": "0-12"}},
            r"index 10 is out of range: neurons\[0\] has 10 elements",
        ),
        ({"take": {"axis": "neurons", "keep": [1, 1]}}, "given twice"),
        ({"take": {"axis": "neurons"}}, "needs keep"),
        ({"take": {"axis": "neurons", "keep": "3-1"}}, "runs backwards"),
        ({"take": {"axis": "neurons", "keep": "a"}}, "no list of numbers"),
        ({"take": {"axis": "neurons", "kep": [1]}}, "did you mean 'keep'"),
        ({"tke": {}}, "did you mean 'take'"),
        ({"permute": {"axis": "head_dim", "order": [1, 0, 2, 3, 4, 5]}}, "rotary"),
        ({"widen": {"axis": "residual", "size": 13}}, "12 and 24"),
        ({"widen": {"axis": "neurons", "size": 5}}, "has 10 already"),
        ({"widen": {"axis": "neurons"}}, "one of size and factor"),
        ({"rotate": {"axis": "neurons"}}, "nonlinearity"),
        ({"layers": {"keep": "0-9"}}, r"index 4 is out of range"),
        ({"g_stack": 1}, "2 or more"),
        ({"narrow": {"axis": "neurons", "share": 2}}, "at most 1"),
    ],
)
def test_bad_requests_say_what_is_wrong(model, step, message):
    with pytest.raises(MerganserError, match=message) as caught:
        made(model, step)
    assert "steps[0]" in str(caught.value)


def test_sizes_that_one_config_number_cannot_say_are_refused_at_plan_time(model):
    weights = made(model, {"take": {"axis": "neurons", "keep": {0: "0-3"}}})
    with pytest.raises(
        AlgebraError, match=r"neurons\[0\] would have 4 elements and neurons\[1\] 10.*intermediate_size"
    ):
        mg.explain(weights)


def test_indices_by_layer_are_read_from_yaml_and_from_the_command_line(model, tmp_path):
    before = read_model(model)
    keep = "{0: 0-3, 1: 4-7, 2: '1, 3-5', 3: [9, 8, 7, 6]}"
    text = f"model: {model}\nsteps:\n  - take: {{axis: neurons, keep: {keep}}}\n"
    weights, _ = build(load(text))
    for layer, kept in enumerate([[0, 1, 2, 3], [4, 5, 6, 7], [1, 3, 4, 5], [9, 8, 7, 6]]):
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        assert np.array_equal(mg.compute(weights, name), before[name][kept])
    step = "take: {axis: neurons, keep: {0: 0-3, 1: 0-3, 2: 0-3, 3: 0-3}}"
    assert run(["reshape", str(model), str(tmp_path / "out"), step, *OPTIONS]) == 0


def test_a_config_that_contradicts_a_tensor_names_both(model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"intermediate_size": 11}))
    with pytest.raises(CheckpointError, match=r"gate_proj.weight.*\[10, 12\].*\[11, 12\].*neurons = 11"):
        made(model, {"g_stack": 2})
    del config["intermediate_size"]
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="no intermediate_size, which gives the size of neurons"):
        made(model, {"g_stack": 2})


def test_a_recipe_may_merge_first_and_then_take_steps(model, tmp_path):
    other = llama(tmp_path / "other", seed=1)
    recipe = {
        "method": "linear",
        "models": [{"model": str(model)}, {"model": str(other)}],
        "steps": [{"take": {"axis": "neurons", "keep": "2-5"}}, {"g_stack": {"factor": 2}}],
    }
    weights, fields = build(load(recipe))
    weights.save(tmp_path / "out", sync=False, **fields)
    found, a, b = read_model(tmp_path / "out"), read_model(model), read_model(other)
    name = "model.layers.{}.mlp.up_proj.weight"
    expected = (a[name.format(1)] + b[name.format(1)])[2:6] / 2
    assert np.allclose(found[name.format(5)], expected, atol=1e-6)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["num_hidden_layers"], config["intermediate_size"]) == (8, 4)
    manifest = json.loads((tmp_path / "out" / "merganser.json").read_text())
    assert manifest["recipe"]["steps"] == recipe["steps"]


def test_tokens_are_not_moved_under_a_tokenizer_that_does_not_follow(model):
    assert config_of(made(model, {"take": {"axis": "vocab", "keep": "0-9"}}))["vocab_size"] == 10
    (model / "tokenizer.json").write_text("{}")
    for step in ({"take": {"axis": "vocab", "keep": "0-9"}}, {"resize": {"axis": "vocab", "size": 40}}):
        with pytest.raises(
            RequestError, match=r"tokenizer beside 'model' would no longer fit.*trim_vocabulary"
        ):
            made(model, step)


def test_model_and_method_exclude_each_other(model):
    with pytest.raises(RequestError, match="either model"):
        load({"model": str(model), "method": "linear"})


def test_the_command_reshapes_verifies_and_repeats_to_the_same_bytes(model, tmp_path, capsys):
    for out in ("one", "two"):
        arguments = [
            "reshape",
            str(model),
            str(tmp_path / out),
            "widen: {axis: neurons, size: 16}",
            "g_stack",
            *OPTIONS,
        ]
        assert run(arguments) == 0
    assert (tmp_path / "one/model.safetensors").read_bytes() == (
        tmp_path / "two/model.safetensors"
    ).read_bytes()
    assert run(["verify", str(tmp_path / "one")]) == 0
    assert run(["reshape", str(model), str(tmp_path / "three"), "take: {axis: neurons, keep: 0-99}"]) == 2
    assert "out of range" in capsys.readouterr().err
    assert not (tmp_path / "three").exists()


def test_architecture_shows_the_reading_and_drafts_the_unknown(model, tmp_path, capsys):
    assert run(["architecture", str(model), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["family"] == "llama"
    sizes = {a["axis"]: a["size"] for a in found["axes"]}
    assert sizes["groups"] == 2
    assert sizes["neurons"] == 10
    assert sum(t["count"] for t in found["tensors"]) == 4 * 9 + 3
    assert run(["architecture", str(model)]) == 0
    assert "(kv_heads groups head_dim) residual" in capsys.readouterr().out
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "lama2"}))
    assert run(["architecture", str(model), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "layers.{layer}.mlp.down_proj: linear neurons -> residual" in found["draft"]
    assert "layer: num_hidden_layers" in found["draft"]
    assert any("head" in question for question in found["undecided"])
    assert run(["architecture"]) == 0
    assert "llama" in capsys.readouterr().out


def test_steps_are_listed_and_explained(capsys):
    assert run(["steps", "--json"]) == 0
    assert "widen" in {s["name"] for s in json.loads(capsys.readouterr().out)["steps"]}
    assert run(["steps", "widen"]) == 0
    assert "nearest legal" in capsys.readouterr().out
    assert run(["steps", "wide"]) == 2
    assert get_step("widen").paper


@pytest.mark.parametrize("name", ["narrow", "widen", "pad", "take"])
def test_no_step_moves_tokens_under_a_tokenizer(model: Path, name: str) -> None:
    (model / "tokenizer.json").write_text("{}")
    settings = {"narrow": {"size": 20}, "widen": {"factor": 2}, "pad": {"size": 40}, "take": {"keep": "0-3"}}[
        name
    ]
    with pytest.raises(RequestError, match="the tokenizer beside 'model' would no longer fit"):
        made(model, {name: {"axis": "vocab", **settings}})


def test_ids_in_configs_follow_rows_without_a_tokenizer(tmp_path: Path) -> None:
    model = llama(tmp_path / "model", bos_token_id=1, eos_token_id=[2, 30])
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": 30, "top_k": 5}))
    turned = made(model, {"permute": {"axis": "vocab", "order": list(range(30, -1, -1))}})
    assert (config_of(turned)["bos_token_id"], config_of(turned)["eos_token_id"]) == (29, [28, 0])
    assert json.loads(turned.files["generation_config.json"]) == {"eos_token_id": 0, "top_k": 5}
    dropped = made(model, {"drop": {"axis": "vocab", "elements": [0]}})
    assert config_of(dropped)["bos_token_id"] == 0
    doubled = made(model, {"repeat": {"axis": "vocab", "times": 2, "interleave": True}})
    assert config_of(doubled)["bos_token_id"] == 2
    with pytest.raises(CheckpointError, match="bos_token_id is 1, which would have no token"):
        made(model, {"take": {"axis": "vocab", "keep": "2-30"}})


def test_padding_is_a_step(model: Path) -> None:
    padded = made(model, {"pad": {"axis": "neurons", "size": 16}})
    assert config_of(padded)["intermediate_size"] == 16
    with pytest.raises(AlgebraError, match="it has 10 already"):
        made(model, {"pad": {"axis": "neurons", "size": 4}})


@pytest.mark.parametrize(("first", "last"), [(True, False), (False, True)])
def test_the_head_of_a_stack_is_the_last_ones_where_one_shares_its_embedding(
    tmp_path: Path, first: bool, last: bool
) -> None:
    paths = {
        tied: llama(tmp_path / str(tied), seed=int(tied), tie_word_embeddings=tied) for tied in (True, False)
    }
    from safetensors.numpy import save_file

    tensors = read_model(paths[True])
    del tensors["lm_head.weight"]
    save_file(tensors, paths[True] / "model.safetensors")
    stacked = made(paths[first], {"stack": [{"layers": "0-3"}, {"model": str(paths[last]), "layers": "0-1"}]})
    assert config_of(stacked)["tie_word_embeddings"] is False
    embedding = "model.embed_tokens.weight"
    np.testing.assert_array_equal(stacked.compute(embedding), read_model(paths[first])[embedding])
    wanted = read_model(paths[last])[embedding if last else "lm_head.weight"]
    np.testing.assert_array_equal(stacked.compute("lm_head.weight"), wanted)


def test_a_stack_of_models_that_contradict_each_other_is_refused_unless_it_is_meant(tmp_path: Path) -> None:
    a = llama(tmp_path / "a", rope_theta=1e4)
    b = llama(tmp_path / "b", seed=1, rope_theta=5e5, hidden_act="gelu", num_hidden_layers=2)
    for step in (
        {"stack": [{"layers": "0-3"}, {"model": str(b), "layers": "0-1"}]},
        {"concat": {"axis": "layer", "models": [str(b)]}},
    ):
        with pytest.raises(AlgebraError, match=r"allow: \[hidden_act, rope_theta\]"):
            made(a, step)
        recipe = {"model": str(a), "steps": [step], "allow": ["hidden_act", "rope_theta"]}
        weights, _ = build(load(recipe))
        (note,) = weights.notes
        assert note["config_kept_and_other"] == {"rope_theta": [1e4, 5e5], "hidden_act": [None, "gelu"]}
    assert made(a, {"stack": [{"layers": "0-3"}, {"model": str(a), "layers": "0-1"}]}).notes == ()


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("take: {axis: neurons, keep: 0-3, 8}", "8 is no parameter of take; a list of numbers inside braces"),
        ("g_stack: 30000", "layer would be there 120,000 times"),
        ("scale: {axis: neurons, by: [.inf, 1, 1, 1, 1, 1, 1, 1, 1, 1]}", "not a finite number"),
        ("stack: [{layers: 0-3}, {layers: 0-1, scale: .nan}]", "not a finite number"),
        ("stack: [{layers: 0-3}, {layers: 0-1, scale: true}]", "expected a number or 2 numbers"),
    ],
)
def test_what_cannot_work_is_an_error_of_the_plan(
    model: Path, tmp_path: Path, step: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["reshape", str(model), str(tmp_path / "out"), step, *OPTIONS]) == 2
    assert message in capsys.readouterr().err


def test_an_adapter_has_no_axes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.numpy import save_file

    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]})
    )
    stem = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file(
        {
            f"{stem}.lora_A.weight": np.ones((1, 12), np.float32),
            f"{stem}.lora_B.weight": np.ones((24, 1), np.float32),
        },
        adapter / "adapter_model.safetensors",
    )
    assert run(["architecture", str(adapter)]) == 2
    assert "is a LoRA adapter" in capsys.readouterr().err
    assert run(["reshape", str(adapter), str(tmp_path / "out"), "g_stack", *OPTIONS]) == 2
    assert "is a LoRA adapter" in capsys.readouterr().err


def test_layers_are_narrowed_by_the_norms_of_their_tensors(model: Path, tmp_path: Path) -> None:
    louder = made(
        model, {"stack": [{"layers": "0-1"}, {"layers": "2", "scale": 9}, {"layers": "3", "scale": 5}]}
    )
    louder.save(tmp_path / "louder", sync=False, memory=1 << 34)
    narrowed = made(tmp_path / "louder", {"narrow": {"axis": "layer", "size": 2}})
    kept = "model.layers.{}.self_attn.q_proj.weight"
    tensors = read_model(tmp_path / "louder")
    for new, old in ((0, 2), (1, 3)):
        np.testing.assert_array_equal(narrowed.compute(kept.format(new)), tensors[kept.format(old)])
    assert 0.5 < narrowed.notes[-1]["kept_share_of_squares"] < 1


def test_axes_that_run_inside_each_other_cannot_be_aligned(tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    a, b = llama(tmp_path / "a"), llama(tmp_path / "b", seed=1)
    text = (Path(mg.__file__).parent / "architectures" / "families" / "llama.yaml").read_text()
    wrong = text.replace(
        "q_proj: linear residual -> (kv_heads groups", "q_proj: linear residual -> (groups kv_heads"
    )
    assert wrong != text
    (tmp_path / "wrong.yaml").write_text(wrong)
    with pytest.raises(RequestError, match="runs inside"):
        made(b, {"align": {"to": str(a), "family": str(tmp_path / "wrong.yaml")}})
