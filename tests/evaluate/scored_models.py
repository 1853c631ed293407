"""Tiny models with tokenizers, data files and suites for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tiny_tokenizers import ENGLISH, byte_fallback, byte_level, word_piece

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "initializer_range": 0.4,
}
WORDS = sorted({word.strip(".,;") for line in ENGLISH for word in line.split()})


def make(kind: str, folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A model directory: encoder, classifier, causal, causal_bos, masked, image or series."""
    import torch
    import transformers as t

    torch.manual_seed(seed)
    settings = {**SIZES, **changes}
    if kind in ("encoder", "classifier", "masked"):
        config = t.BertConfig(**{"vocab_size": 320, "max_position_embeddings": 40, **settings})
        kinds = {
            "encoder": t.BertModel,
            "classifier": t.BertForSequenceClassification,
            "masked": t.BertForMaskedLM,
        }
        model = kinds[kind](config)
        special = {
            "pad_token": "[PAD]",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "unk_token": "[UNK]",
            "mask_token": "[MASK]",
        }
        tokenizer = t.PreTrainedTokenizerFast(tokenizer_object=word_piece(), **special)
    elif kind in ("causal", "causal_bos"):
        made = byte_level() if kind == "causal" else byte_fallback()
        special = (
            {"eos_token": "<|endoftext|>"}
            if kind == "causal"
            else {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        )
        tokenizer = t.PreTrainedTokenizerFast(tokenizer_object=made, **special)
        config = t.LlamaConfig(
            **{
                "vocab_size": 512,
                "num_key_value_heads": 1,
                "max_position_embeddings": 64,
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": None,
                **settings,
            }
        )
        model = t.LlamaForCausalLM(config)
    elif kind == "image":
        model = t.ViTForImageClassification(
            t.ViTConfig(**{"image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": 3, **settings})
        )
        tokenizer = None
    else:
        config = t.PatchTSTConfig(
            num_input_channels=2,
            context_length=12,
            patch_length=4,
            patch_stride=4,
            d_model=16,
            num_attention_heads=2,
            num_hidden_layers=1,
            ffn_dim=32,
            num_targets=3,
            num_labels=3,
            use_cls_token=True,
        )
        model = t.PatchTSTForClassification(config)
        tokenizer = None
    model.eval().save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def sentences(count: int, seed: int = 0, longest: int = 12) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(2, longest))) for _ in range(count)]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_suite(path: Path, *tasks: dict[str, Any], name: str = "tiny") -> Path:
    path.write_text(yaml.safe_dump({"name": name, "tasks": list(tasks)}))
    return path
