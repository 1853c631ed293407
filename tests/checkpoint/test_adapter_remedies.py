"""The ways out that refusals of adapters name, followed: each ends in a model that does what the adapter does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers import read_model

import merganser as mg
from merganser import cli
from merganser.errors import CheckpointError

pytestmark = pytest.mark.models

MERGE = r"Merge it in PEFT first \(merge_and_unload\) and open the merged model"
BESIDE = "Merge the models alone, and load this adapter onto the result in PEFT"
LORA = {
    "DoRA": {"use_dora": True},
    "biases": {"bias": "lora_only"},
    "a module": {"modules_to_save": ["score"]},
    "rows": {"trainable_token_indices": [3, 7]},
    "a parameter": {"target_parameters": ["mlp.up_proj.weight"]},
    "biases of factors": {"lora_bias": True},
}
OTHERS = {
    "LoHa": ("LoHaConfig", {"r": 2}),
    "LoKr": ("LoKrConfig", {"r": 2}),
    "IA3": ("IA3Config", {"feedforward_modules": []}),
    "OFT": ("OFTConfig", {"oft_block_size": 4, "r": 0}),
    "VeRA": ("VeraConfig", {"r": 2}),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=30, hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, attention_bias=True, num_labels=3, pad_token_id=0,
    )  # fmt: skip
    directory = tmp_path_factory.mktemp("remedies") / "base"
    transformers.LlamaForSequenceClassification(config).save_pretrained(directory)
    return directory


def load(directory: Path) -> Any:
    import transformers

    return transformers.LlamaForSequenceClassification.from_pretrained(directory).eval()


def logits(model: Any) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.tensor([[1, 3, 7, 9, 20, 3]])).logits.numpy()


def trained(base: Path, config: Any, out: Path) -> Any:
    """An adapter with random values, saved by PEFT."""
    import torch
    from peft import get_peft_model

    torch.manual_seed(1)
    model = get_peft_model(load(base), config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(out)
    return model


@pytest.mark.parametrize("name", [*LORA, *OTHERS])
def test_merging_in_peft(tmp_path, base, name):
    import peft

    kind, settings = OTHERS[name] if name in OTHERS else ("LoraConfig", {"r": 2, **LORA[name]})
    model = trained(
        base, getattr(peft, kind)(target_modules=["q_proj", "v_proj"], **settings), tmp_path / "a"
    )
    with pytest.raises(
        CheckpointError, match="merge it in PEFT first" if name == "biases of factors" else MERGE
    ):
        mg.open(tmp_path / "a")
    wanted = logits(model)
    assert np.abs(wanted - logits(load(base))).max() > 1e-3
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    mg.open(tmp_path / "merged").save(tmp_path / "out")
    np.testing.assert_allclose(logits(load(tmp_path / "out")), wanted, atol=1e-5)


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PromptEncoderConfig", "LoraConfig"])
def test_what_no_weights_can_say_is_loaded_beside_the_result(tmp_path, base, kind):
    import peft

    lora = {"target_modules": ["q_proj"], "alora_invocation_tokens": [3, 7]}
    settings = lora if kind == "LoraConfig" else {"num_virtual_tokens": 3, "task_type": "SEQ_CLS"}
    trained(base, getattr(peft, kind)(**settings), tmp_path / "a")
    with pytest.raises(CheckpointError, match=BESIDE):
        mg.open(tmp_path / "a")
    mg.open(base).save(tmp_path / "out")
    assert np.isfinite(logits(peft.PeftModel.from_pretrained(load(tmp_path / "out"), tmp_path / "a"))).all()


def test_repeated_layers_are_made_first(tmp_path, base):
    import peft

    ranges = [[0, 2], [0, 1], [1, 2]]
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], layer_replication=ranges)
    model = trained(base, config, tmp_path / "a")
    with pytest.raises(CheckpointError, match="Make that base"):
        mg.open(tmp_path / "a")
    slices = [{"sources": [{"model": str(base), "layer_range": one}]} for one in ranges]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"merge_method": "passthrough", "slices": slices}))
    assert cli.run(["merge", str(recipe), str(tmp_path / "deep"), "--quiet"]) == 0
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    told = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    (tmp_path / "b" / "adapter_config.json").write_text(json.dumps(told | {"layer_replication": None}))
    (mg.open(tmp_path / "deep") + mg.open(tmp_path / "b")).save(tmp_path / "out")
    np.testing.assert_allclose(logits(load(tmp_path / "out")), logits(model), atol=1e-5)


def test_factors_of_diffusion_models_are_put_onto_them_in_diffusers(tmp_path):
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    from safetensors.torch import save_file

    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 8), layers_per_block=1, cross_attention_dim=8, norm_num_groups=4,
        attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    pipe = diffusers.StableDiffusionPipeline(
        vae=None, text_encoder=None, tokenizer=None, unet=unet, scheduler=None, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    module = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    flat = "lora_unet_" + module.replace(".", "_")
    wanted = unet.get_submodule(module).weight.detach().clone()
    for name, weight, alpha in (("one", 0.6, 2.0), ("two", 0.4, 4.0)):
        down, up = torch.randn(4, 8), torch.randn(8, 4)
        state = {
            f"{flat}.lora_down.weight": down,
            f"{flat}.lora_up.weight": up,
            f"{flat}.alpha": torch.tensor(alpha),
        }
        save_file(state, tmp_path / f"{name}.safetensors")
        with pytest.raises(
            CheckpointError, match=r"load_lora_weights, with set_adapters .*, fuse_lora, unload_lora"
        ):
            mg.open(tmp_path / f"{name}.safetensors")
        pipe.load_lora_weights(tmp_path / f"{name}.safetensors", adapter_name=name)
        wanted += weight * alpha / 4 * up @ down
    pipe.set_adapters(["one", "two"], [0.6, 0.4])
    pipe.fuse_lora(adapter_names=["one", "two"])
    pipe.unload_lora_weights()
    pipe.unet.save_pretrained(tmp_path / "unet")
    opened = mg.open(tmp_path / "unet")
    assert opened.degree == 1.0
    np.testing.assert_allclose(mg.compute(opened, f"{module}.weight"), wanted.numpy(), atol=1e-5)


def test_a_training_state_of_peft_is_merged_there(tmp_path, base):
    import peft
    from safetensors.torch import save_file

    model = trained(base, peft.LoraConfig(r=2, target_modules=["q_proj"]), tmp_path / "a")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"a model under PEFT that was not merged.*merge_and_unload\(\)"
    ):
        mg.open(tmp_path / "model.safetensors")
    model.load_state_dict(state)
    wanted = logits(model)
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    assert mg.open(tmp_path / "merged").degree == 1.0
    np.testing.assert_allclose(logits(load(tmp_path / "merged")), wanted, atol=1e-5)


def test_added_tokens_are_given_to_the_base_first(tmp_path, base, capsys):
    import torch

    tuned = load(base)
    tuned.resize_token_embeddings(33, mean_resizing=False)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if name.endswith("proj.weight"):
                parameter += 0.1 * torch.randn(parameter.shape[0], 1) @ torch.randn(1, parameter.shape[1])
    tuned.save_pretrained(tmp_path / "tuned")
    words = ["extract-lora", str(base), str(tmp_path / "tuned"), str(tmp_path / "lora"), "--rank", "1"]
    assert cli.run(words) > 0
    said = " ".join(capsys.readouterr().err.split())
    assert "has shape [33, 16] in the fine-tune and [30, 16] in the base, as after tokens were added" in said
    assert "resize_token_embeddings, save_pretrained, and extract against that" in said
    # without the tokens
    assert cli.run([*words, "--allow-loss"]) == 0
    assert "without the 1 tensors that are lost" in capsys.readouterr().out
    assert cli.run([*words[:3], str(tmp_path / "without"), "--rank", "1", "--exclude", "*embed_tokens*"]) == 0
    factors = {"lora": read_model(tmp_path / "lora"), "without": read_model(tmp_path / "without")}
    for name, array in factors["lora"].items():
        np.testing.assert_array_equal(factors["without"][name], array)
    # with them
    resized = load(base)
    resized.resize_token_embeddings(33, mean_resizing=False)
    resized.save_pretrained(tmp_path / "resized")
    words[1], words[3] = str(tmp_path / "resized"), str(tmp_path / "with")
    assert cli.run([*words[:-1], "4", "--embeddings", "--allow-loss"]) == 0
    (mg.open(tmp_path / "resized") + mg.open(tmp_path / "with")).save(tmp_path / "out")
    after, wanted = load(tmp_path / "out").state_dict(), tuned.state_dict()
    for name, tensor in wanted.items():
        if name.endswith("proj.weight"):
            np.testing.assert_allclose(after[name].numpy(), tensor.numpy(), atol=1e-5, err_msg=name)
