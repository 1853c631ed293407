"""Files of adapters' factors are told from models by their names, however they are opened."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from makers import normal, write_adapter, write_file, write_model

import merganser as mg
from merganser import cli
from merganser.checkpoint import open_checkpoint
from merganser.checkpoint.factors import find_factors
from merganser.cli.info import describe
from merganser.errors import CheckpointError

T5 = "lora_te3_encoder_block_0_layer_0_SelfAttention_q"
WRITTEN = {
    "kohya": (f"{T5}.lora_down.weight", f"{T5}.lora_up.weight", f"{T5}.alpha"),
    "kohya for SDXL": ("lora_te2_text_projection.alpha", "lora_te2_text_projection.lora_up.weight"),
    "diffusers, now": ("unet.mid_block.attentions.0.proj_in.lora_A.weight",),
    "diffusers, before PEFT": ("text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer.up.weight",),
    "diffusers, first": ("mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_k_lora.down.weight",),
    "diffusers, in between": ("unet.up_blocks.1.attentions.0.proj_out.lora.up.weight",),
    "XLabs": ("double_blocks.3.processor.proj_lora2.up.weight",),
    "ai-toolkit": ("transformer.single_transformer_blocks.0.attn.to_q.lora_B.weight",),
    "MLX": ("model.layers.7.self_attn.v_proj.lora_b",),
    "torchtune": ("layers.1.attn.output_proj.lora_a.weight",),
    "LoHa": ("lora_unet_mid_block_resnets_0_conv1.hada_w2_b", "lora_unet_mid_block_resnets_0_conv1.alpha"),
    "LoKr, bare": ("diffusion_model.blocks.0.cross_attn.k.lokr_w1", "diffusion_model.blocks.0.cross_attn.k.lokr_w2_a"),
    "full difference": ("lora_unet_out_0.diff", "lora_unet_out_0.diff_b"),
    "LyCORIS norm": ("lycoris_layers_0_input_layernorm.w_norm",),
    "LyCORIS IA3": ("lycoris_layers_0_mlp_fc2.weight", "lycoris_layers_0_mlp_fc2.on_input"),
    "LyCORIS OFT": ("oft_unet_down_blocks_1_attentions_0_proj_in.oft_blocks",),
    "PEFT": ("base_model.model.encoder.layer.3.attention.self.key.lora_B.weight",),
    "PEFT, training state": ("base_model.model.lm_head.lora_A.default.weight",),
    "PEFT LoHa": ("base_model.model.model.layers.0.mlp.up_proj.hada_w1_a",),
    "PEFT IA3": ("base_model.model.transformer.h.0.mlp.c_proj.ia3_l",),
    "PEFT norms": ("base_model.model.model.norm.weight",),
    "PEFT prompt tuning": ("prompt_embeddings",),
}  # fmt: skip
MODELS = (
    "model.layers.0.self_attn.q_a_proj.weight", "blocks.0.att.w_lora.lora.0.weight", "model.time_diff.weight",
    "loraine.weight", "lora_embed", "model.base_model.weight", "base_model.encoder.layers.0.fc1.weight",
    "decoder.block.0.alpha", "x.w_norm.weight", "stage.diffusion.weight", "model.layers.0.mlp.lora_gate.proj.weight",
)  # fmt: skip


@pytest.mark.parametrize("kind", WRITTEN)
def test_names_of_factors(kind):
    for name in WRITTEN[kind]:
        assert find_factors([*MODELS, name]) is not None, name


def test_names_of_models():
    for name in MODELS:
        assert find_factors([name]) is None, name


def factors(kind: str) -> dict[str, np.ndarray]:
    return {name: normal(2, 3, seed=k) for k, name in enumerate(WRITTEN[kind])}


def in_a_file(at: Path, tensors: dict[str, np.ndarray]) -> Path:
    return write_file(at / "renamed.safetensors", tensors)


def in_a_directory(at: Path, tensors: dict[str, np.ndarray]) -> Path:
    write_file(at / "pytorch_lora_weights.safetensors", tensors)
    return at


def as_a_model(at: Path, tensors: dict[str, np.ndarray]) -> Path:
    return write_model(at / "model", tensors)


def behind_an_index(at: Path, tensors: dict[str, np.ndarray]) -> Path:
    write_file(at / "model-00001-of-00001.safetensors", tensors)
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}
    (at / "model.safetensors.index.json").write_text(json.dumps(index))
    return at


@pytest.mark.parametrize("kind", ["kohya", "diffusers, first", "LoKr, bare", "LyCORIS IA3", "PEFT"])
@pytest.mark.parametrize("layout", [in_a_file, in_a_directory, as_a_model, behind_an_index])
def test_no_way_of_opening_takes_factors_for_a_model(tmp_path, layout, kind):
    path = layout(tmp_path, factors(kind))
    for degree in (None, 0.0, 1.0):
        with pytest.raises(CheckpointError, match=r"factors, named as .* and no model"):
            mg.open(path, degree=degree)
    found = describe(open_checkpoint(path))
    assert "factors" in found["factors"] and found["tensors"] == len(WRITTEN[kind])


@pytest.mark.models
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_pickle_of_factors(tmp_path, wrapped):
    torch = pytest.importorskip("torch")
    state = {name: torch.from_numpy(array) for name, array in factors("diffusers, in between").items()}
    torch.save({"state_dict": state} if wrapped else state, tmp_path / "pytorch_lora_weights.bin")
    with pytest.raises(CheckpointError, match="LoRA factors, named as diffusers"):
        mg.open(tmp_path / "pytorch_lora_weights.bin", allow_pickle=True)


def test_every_command_says_what_the_file_is(tmp_path, capsys):
    file = str(in_a_file(tmp_path, factors("LoHa")))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        json.dumps({"merge_method": "linear", "models": [{"model": file}], "parameters": {"weight": 1}})
    )
    out = str(tmp_path / "out")
    for words in (
        ["merge", str(recipe), out],
        ["explain", str(recipe)],
        ["diff", file, file],
        ["diagnose", file, file, out],
        ["architecture", file],
        ["extract-lora", file, file, out],
        ["combine-lora", out, file],
        ["compress-patch", file, out],
        ["port", file, file, file],
    ):
        assert cli.run(words) == 1, words
        assert "LoHa factors" in " ".join(capsys.readouterr().err.split()), words
    assert cli.run(["info", file]) == 0
    assert "no model: holds LoHa factors, named as LyCORIS names them" in capsys.readouterr().out


# PEFT's file with and without the config that says its scale


def test_a_bare_file_of_an_adapter_opens_as_the_adapter(tmp_path):
    directory = write_adapter(tmp_path / "tune", {"layers.0.q": (normal(6, 2), normal(2, 5, seed=1))})
    whole = mg.open(directory)
    bare = mg.open(directory / "adapter_model.safetensors")
    assert bare.degree == 0.0 and list(bare) == list(whole) == ["layers.0.q.weight"]
    np.testing.assert_array_equal(
        mg.compute(bare, "layers.0.q.weight"), mg.compute(whole, "layers.0.q.weight")
    )
    (directory / "adapter_model.safetensors").rename(directory / "step-900.safetensors")
    late = mg.open(directory / "step-900.safetensors")
    np.testing.assert_array_equal(
        mg.compute(late, "layers.0.q.weight"), mg.compute(whole, "layers.0.q.weight")
    )


def test_without_its_config_the_remedy_is_to_put_the_two_together(tmp_path):
    directory = write_adapter(tmp_path / "tune", {"layers.0.q": (normal(6, 2), normal(2, 5, seed=1))})
    config = (directory / "adapter_config.json").rename(tmp_path / "adapter_config.json")
    for path in (directory, directory / "adapter_model.safetensors"):
        with pytest.raises(
            CheckpointError, match=r"put it and the factors, as adapter_model\.safetensors, into"
        ):
            mg.open(path)
    config.rename(directory / "adapter_config.json")
    assert mg.open(directory).degree == 0.0


def test_another_model_s_file_beside_an_adapter_stays_a_model(tmp_path):
    directory = write_adapter(tmp_path, {"layers.0.q": (normal(6, 2), normal(2, 5, seed=1))})
    merged = write_file(directory / "merged.safetensors", {"layers.0.q.weight": normal(6, 5)})
    assert mg.open(merged).degree == 1.0
