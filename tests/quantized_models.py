"""Quantized checkpoints as other programs write them or read them: tiny, and each in its own layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

SMALL = {
    "vocab_size": 64,
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SMALL)).bfloat16()


def store(place: Path, tensors: Mapping[str, Any], config: Mapping[str, Any], **more: Any) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    kept = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(kept, place / "model.safetensors", {"format": "pt"})
    (place / "config.json").write_text(json.dumps({**config, **more}))
    return place


def fp8(place: Path) -> Path:
    """As DeepSeek-V3 and Qwen3 are published: float8 codes and a scale for each block of 128 x 128."""
    model, tensors = llama(), {}
    for name, value in model.state_dict().items():
        tensors[name] = value
        if name.endswith("proj.weight"):
            scale = value.float().abs().max() / 448
            tensors[name] = (value.float() / scale).to(torch.float8_e4m3fn)
            tensors[name + "_scale_inv"] = scale.reshape(1, 1)
    told = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    config = model.config.to_dict() | {"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}
    return store(place, tensors, config, quantization_config=told)


def mxfp4(place: Path) -> Path:
    """As gpt-oss is published: nibbles and the exponents of blocks of 32."""
    from transformers import GptOssConfig, GptOssForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 32, "layer_types": ["full_attention"]}
    model = GptOssForCausalLM(
        GptOssConfig(**SMALL | sizes, num_local_experts=2, num_experts_per_tok=1)
    ).bfloat16()
    tensors = dict(model.state_dict())
    for name, rows in (("gate_up_proj", 128), ("down_proj", 64)):
        at = f"model.layers.0.mlp.experts.{name}"
        del tensors[at]
        tensors[f"{at}_blocks"] = torch.randint(0, 255, (2, rows, 2, 16), dtype=torch.uint8)
        tensors[f"{at}_scales"] = torch.randint(120, 125, (2, rows, 2), dtype=torch.uint8)
    left = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    config = model.config.to_dict() | {"architectures": ["GptOssForCausalLM"], "dtype": "bfloat16"}
    return store(
        place, tensors, config, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": left}
    )


def compressed_tensors(place: Path) -> Path:
    """Eight-bit integers with a scale for each row (W8A8)."""
    model, tensors = llama(), {}
    for name, value in model.state_dict().items():
        tensors[name] = value
        if name.endswith("proj.weight"):
            scale = value.float().abs().amax(1, keepdim=True) / 127
            tensors[name] = (value.float() / scale).round().to(torch.int8)
            tensors[name + "_scale"] = scale.bfloat16()
    eight = {"num_bits": 8, "type": "int", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**eight, "strategy": "channel"},
        "input_activations": {**eight, "strategy": "token", "dynamic": True},
    }
    told = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "quantization_status": "compressed",
    }
    config = model.config.to_dict() | {"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}
    return store(place, tensors, config, quantization_config=told)


def bitsandbytes(place: Path) -> Path:
    """Written by bitsandbytes itself, through transformers."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    llama().save_pretrained(place.with_name("before"))
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(
        place.with_name("before"), quantization_config=settings, device_map="cpu"
    )
    model.save_pretrained(place)
    return place


WRITERS = {
    "fp8": fp8,
    "mxfp4": mxfp4,
    "compressed_tensors": compressed_tensors,
    "bitsandbytes": bitsandbytes,
}
