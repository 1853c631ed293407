"""Adapters name modules of the live model, checkpoints what their files hold: PEFT decides that both mean the same."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers import normal, read_model, write_adapter, write_model

sys.path.append(str(Path(__file__).parents[1] / "architectures"))
from tiny_live import CASES, Case

import merganser as mg
from merganser import cli
from merganser.errors import AlgebraError
from merganser.methods import adapters as ad

pytestmark = pytest.mark.models


def linear(model: Any, every: int = 1) -> list[str]:
    """The linear layers of a live model that PEFT changes, heads apart."""
    import torch
    from transformers.pytorch_utils import Conv1D

    heads = ("lm_head", "classifier")
    fit = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and not name.startswith(heads) and "mixer" not in name
    ]
    if not fit:  # Mamba, of whose layers PEFT takes these two
        fit = [name for name, _ in model.named_modules() if name.endswith(("in_proj", "x_proj"))]
    return fit[::every]


def state(model: Any) -> dict[str, np.ndarray]:
    return {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}


def same(
    left: dict[str, np.ndarray], right: dict[str, np.ndarray], heads: tuple[str, ...] = ("classifier",)
) -> None:
    assert left.keys() == right.keys()
    for name in left:
        if not name.startswith(heads):
            np.testing.assert_allclose(left[name], right[name], rtol=1e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("name", CASES)
def test_an_adapter_that_peft_saved_on_the_live_model(tmp_path, name):
    case = CASES[name]
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    base = case.write(tmp_path / "base", case.build())
    live = case.load(base)
    targets = linear(live)
    tuned = peft.get_peft_model(live, peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        wanted = state(tuned.merge_and_unload())
    (mg.open(base) + mg.open(tmp_path / "adapter")).save(tmp_path / "out")
    before, after = state(case.load(base)), state(case.load(tmp_path / "out"))
    same(after, wanted)
    changed = {name for name in after if not np.array_equal(before[name], after[name])}
    assert changed - {"classifier.weight", "classifier.bias"} >= {f"{module}.weight" for module in targets}


def fine_tune(case: Case, base: Path, out: Path) -> Any:
    """A live model with a change of rank 2 in every linear layer, and its files."""
    import torch

    torch.manual_seed(7)
    model = case.load(base)
    with torch.no_grad():
        for name in linear(model):
            weight = model.get_submodule(name).weight
            weight += 0.1 * torch.randn(weight.shape[0], 2) @ torch.randn(2, weight.shape[1])
    return model


@pytest.mark.parametrize("name", CASES)
def test_an_extracted_adapter_makes_the_fine_tune_in_peft(tmp_path, name):
    case = CASES[name]
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    base = case.write(tmp_path / "base", case.build())
    tuned = fine_tune(case, base, tmp_path / "tuned")
    case.write(tmp_path / "tuned", tuned)
    with torch.no_grad():
        change, unlike = ad.difference(mg.open(tmp_path / "tuned"), mg.open(base))
        assert all(
            one.startswith(("classifier", "pooler")) for one in unlike
        )  # what one of the classes lacks
        made = ad.extract(change, rank=2, architecture=case.live)
        made.save(tmp_path / "lora", degree=0)
        loaded = peft.PeftModel.from_pretrained(case.load(base), tmp_path / "lora").merge_and_unload()
        same(state(loaded), state(tuned))
    (mg.open(base) + mg.open(tmp_path / "lora")).save(tmp_path / "out")
    same(state(case.load(tmp_path / "out")), state(tuned))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model."])
def test_a_fine_tune_whose_names_have_a_prefix_more(tmp_path, prefix):
    base = write_model(
        tmp_path / "base", {"layers.0.fc.weight": normal(6, 5), "layers.1.fc.weight": normal(6, 5, seed=1)}
    )
    wrapped = {
        prefix + name: array + np.outer(normal(6, seed=8), normal(5, seed=9))
        for name, array in read_model(base).items()
    }
    tuned = write_model(tmp_path / "tuned", wrapped)
    assert (
        cli.run(["extract-lora", str(base), str(tuned), str(tmp_path / "lora"), "--rank", "1", "--quiet"])
        == 0
    )
    (mg.open(base) + mg.open(tmp_path / "lora")).save(tmp_path / "out")
    for name, array in read_model(tmp_path / "out").items():
        np.testing.assert_allclose(array, wrapped[prefix + name], atol=1e-5)
    (mg.open(tuned) + mg.open(tmp_path / "lora")).save(tmp_path / "twice")
    assert read_model(tmp_path / "twice").keys() == wrapped.keys()


def test_layers_that_the_live_model_stacks_are_refused_until_they_are_left_out(tmp_path, capsys):
    """Experts lie one by one in the files, and in one parameter in the live model, where no module is theirs."""
    pytest.importorskip("peft"), pytest.importorskip("torch")
    import torch
    import transformers
    from peft import PeftModel

    torch.manual_seed(0)
    config = transformers.Qwen2MoeConfig(
        vocab_size=40, hidden_size=16, intermediate_size=20, moe_intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, num_experts=3, num_experts_per_tok=2,
        shared_expert_intermediate_size=12,
    )  # fmt: skip
    model = transformers.Qwen2MoeForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        model.model.layers[0].mlp.experts.down_proj += 0.1
        model.model.layers[0].self_attn.q_proj.weight += 0.1
    model.save_pretrained(tmp_path / "tuned")
    words = ["extract-lora", *(str(tmp_path / name) for name in ("base", "tuned", "lora")), "--rank", "1"]
    assert cli.run(words) > 0
    said = " ".join(capsys.readouterr().err.split())
    assert "experts.0.down_proj.weight" in said and "is no module of its own in Qwen2MoeForCausalLM" in said
    assert cli.run([*words, "--allow-loss"]) == 0
    live = transformers.Qwen2MoeForCausalLM.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        loaded = PeftModel.from_pretrained(live, tmp_path / "lora").merge_and_unload()
    after, wanted = state(loaded), state(model)
    attention = "model.layers.0.self_attn.q_proj.weight"
    np.testing.assert_allclose(after[attention], wanted[attention], atol=1e-5)


def test_an_adapter_of_another_model_is_refused_with_a_way_out(tmp_path):
    base = write_model(tmp_path / "base", {"text.fc.weight": normal(6, 5), "vision.fc.weight": normal(6, 5)})
    adapter = write_adapter(tmp_path / "adapter", {"fc": (normal(6, 2), normal(2, 5))})
    with pytest.raises(AlgebraError, match=r"changes 1 tensors.*merge it there in PEFT \(merge_and_unload\)"):
        mg.open(base) + mg.open(adapter)


def test_a_recipe_takes_the_live_names(tmp_path):
    """Filters and methods see the base's names, whatever the adapter calls them."""
    case = CASES["GPT-2 of the hub"]
    base = case.write(tmp_path / "base", case.build())
    module = "transformer.h.1.attn.c_attn"
    adapter = write_adapter(tmp_path / "adapter", {module: (normal(48, 2), normal(2, 16))})
    told = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(told | {"fan_in_fan_out": True}))
    recipe = {
        "merge_method": "task_arithmetic", "base_model": str(base),
        "models": [
            {"model": str(adapter), "parameters": {"weight": [{"filter": "h.1.", "value": 0.5}, {"value": 0.0}]}}
        ],
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    assert cli.run(["merge", str(tmp_path / "recipe.yaml"), str(tmp_path / "out"), "--quiet"]) == 0
    before, after = read_model(base), read_model(tmp_path / "out")
    changed = [name for name in before if not np.array_equal(before[name], after[name])]
    assert changed == ["h.1.attn.c_attn.weight"]
    delta = mg.compute(mg.open(adapter), f"{module}.weight")
    np.testing.assert_allclose(after[changed[0]], before[changed[0]] + 0.5 * delta, atol=1e-5)
