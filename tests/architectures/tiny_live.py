"""Tiny models whose files call tensors otherwise than the live model does, and how their files were published."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

VOCAB = 40
TEXT = {
    "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8,
}  # fmt: skip
VISION = {
    "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
BERT = {
    "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip
BART = {
    "vocab_size": VOCAB, "d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 20, "decoder_ffn_dim": 20, "max_position_embeddings": 24,
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
QWEN_VISION = {
    "depth": 1,
    "embed_dim": 16,
    "hidden_size": 16,
    "num_heads": 2,
    "mlp_ratio": 2,
    "patch_size": 8,
}


@dataclass(frozen=True)
class Case:
    """A model class, its config, and what turns the names that transformers saves into those of the files."""

    kind: str
    config: Callable[[Any], Any]
    published: Callable[[str], str] = str
    live: str | None = None
    """The class that the adapter is trained on, where it is another than the files'."""

    def build(self) -> Any:
        """The model, the same weights every time."""
        torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
        torch.manual_seed(0)
        return getattr(transformers, self.kind)(self.config(transformers)).eval()

    def write(self, directory: Path, model: Any) -> Path:
        """The model's files as they were published."""
        from safetensors.torch import load_file, save_file

        model.save_pretrained(directory)
        file = directory / "model.safetensors"
        save_file({self.published(n): t for n, t in load_file(file).items()}, file, {"format": "pt"})
        return directory

    def load(self, directory: Path) -> Any:
        """The live model of a directory, every tensor of which it must have found."""
        import transformers

        model, told = getattr(transformers, self.live or self.kind).from_pretrained(
            directory, output_loading_info=True
        )
        lost = [name for name in told["missing_keys"] if not name.startswith(("classifier", "score"))]
        assert not lost, lost
        return model.eval()


def without(prefix: str) -> Callable[[str], str]:
    """Names without a prefix."""
    return lambda name: name.removeprefix(prefix)


def swapped(*pairs: tuple[str, str]) -> Callable[[str], str]:
    """Names with the first pattern that matches replaced."""

    def renamed(name: str) -> str:
        for pattern, new in pairs:
            if re.match(pattern, name):
                return re.sub(pattern, new, name, count=1)
        return name

    return renamed


def qwen2_vl(t: Any) -> Any:
    return t.Qwen2VLConfig(text_config=TEXT | {"rope_parameters": ROPE}, vision_config=QWEN_VISION)


def gemma3(t: Any) -> Any:
    return t.Gemma3Config(
        text_config=TEXT | {"query_pre_attn_scalar": 8}, vision_config=VISION, mm_tokens_per_image=4
    )


def llava(t: Any) -> Any:
    return t.LlavaConfig(
        text_config=t.LlamaConfig(**TEXT), vision_config=t.CLIPVisionConfig(**VISION), image_token_index=3
    )


LIVE_MULTIMODAL = swapped(
    (r"language_model\.model\.", "model.language_model."), (r"language_model\.lm_head", "lm_head"),
    (r"(vision_tower|multi_modal_projector)\.", r"model.\1."),
)  # fmt: skip
CASES = {
    "GPT-2 of the hub": Case(
        "GPT2LMHeadModel",
        lambda t: t.GPT2Config(vocab_size=VOCAB, n_positions=16, n_embd=16, n_layer=2, n_head=2),
        without("transformer."),
    ),
    "BLOOM of the hub": Case(
        "BloomForCausalLM",
        lambda t: t.BloomConfig(vocab_size=VOCAB, hidden_size=16, n_layer=2, n_head=2),
        without("transformer."),
    ),
    "Falcon": Case(
        "FalconForCausalLM",
        lambda t: t.FalconConfig(
            vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, num_attention_heads=2
        ),
    ),
    "Mamba": Case(
        "MambaForCausalLM",
        lambda t: t.MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, state_size=4),
    ),
    "BART": Case("BartForConditionalGeneration", lambda t: t.BartConfig(**BART)),
    "BART of the hub": Case(
        "BartForConditionalGeneration", lambda t: t.BartConfig(**BART), without("model.")
    ),
    "ViT": Case("ViTForImageClassification", lambda t: t.ViTConfig(**VISION)),
    "ViT's body under a classifier": Case(
        "ViTModel", lambda t: t.ViTConfig(**VISION), live="ViTForImageClassification"
    ),
    "DINOv2": Case("Dinov2Model", lambda t: t.Dinov2Config(**VISION)),
    "BERT's body": Case("BertModel", lambda t: t.BertConfig(**BERT)),
    "BERT's body under a classifier": Case(
        "BertModel", lambda t: t.BertConfig(**BERT), live="BertForSequenceClassification"
    ),
    "Qwen2-VL": Case("Qwen2VLForConditionalGeneration", qwen2_vl),
    "Qwen2-VL under live names": Case(
        "Qwen2VLForConditionalGeneration",
        qwen2_vl,
        swapped(
            (r"visual\.", "model.visual."), (r"model\.(?!language_model|visual)", "model.language_model.")
        ),
    ),
    "Gemma 3": Case("Gemma3ForConditionalGeneration", gemma3),
    "Gemma 3 under live names": Case("Gemma3ForConditionalGeneration", gemma3, LIVE_MULTIMODAL),
    "LLaVA": Case("LlavaForConditionalGeneration", llava),
    "CLIP": Case(
        "CLIPModel", lambda t: t.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=8)
    ),
}
