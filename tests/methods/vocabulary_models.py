"""Tiny models with tokenizers, made by transformers and saved in its layout."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tiny_tokenizers
import torch
import transformers
from makers import read_model
from transformers import PreTrainedTokenizerFast

import merganser as mg
from merganser.methods.steps import get_step

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] + '\n' + m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NAMES = {
    "byte_level": {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "chat_template": TEMPLATE},
    "byte_fallback": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "unigram": {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
    "word_piece": {
        "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]",
    },
}  # fmt: skip


@functools.cache
def home() -> Path:
    return Path(tempfile.mkdtemp(prefix="merganser-vocabulary-"))


def clean() -> None:
    shutil.rmtree(home(), ignore_errors=True)
    home.cache_clear()
    make.cache_clear()


@functools.cache
def make(
    kind: str, *, tied: bool = False, spare: int = 0, hidden: int = 16, seed: int = 0, texts: str = ""
) -> Path:
    """A model of the family that such a tokenizer goes with; `spare` rows have no token."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    old = tiny_tokenizers.TEXTS
    try:
        tiny_tokenizers.TEXTS = {
            "": old,
            "en": tiny_tokenizers.ENGLISH * 4,
            "ru": tiny_tokenizers.RUSSIAN * 4,
        }[texts]
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizers.KINDS[kind](), **NAMES[kind])
    finally:
        tiny_tokenizers.TEXTS = old
    rows = len(tokenizer) + spare
    if kind == "unigram":
        config = transformers.T5Config(
            vocab_size=rows, d_model=hidden, d_kv=8, d_ff=24, num_layers=2, num_heads=2, tie_word_embeddings=tied,
            decoder_start_token_id=0, pad_token_id=0, eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        model = transformers.T5ForConditionalGeneration(config)
    elif kind == "word_piece":
        config = transformers.BertConfig(
            vocab_size=rows, hidden_size=hidden, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=128, pad_token_id=0,
        )  # fmt: skip
        model = transformers.BertForMaskedLM(config)
    else:
        config = transformers.LlamaConfig(
            vocab_size=rows, hidden_size=hidden, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            tie_word_embeddings=tied, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    place = home() / f"{kind}-{tied}-{spare}-{hidden}-{seed}-{texts}"
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


class Model:
    """A saved model, opened by transformers."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(place)
        config = transformers.AutoConfig.from_pretrained(place)
        opened, found = getattr(transformers, config.architectures[0]).from_pretrained(
            place, output_loading_info=True
        )
        assert not found["missing_keys"] and not found["unexpected_keys"] and not found["mismatched_keys"]
        self.model = opened.eval()
        self.config = json.loads((place / "config.json").read_text())

    @functools.cached_property
    def tensors(self) -> dict[str, np.ndarray]:
        return read_model(self.place)

    @property
    def embedding(self) -> np.ndarray:
        return self.model.get_input_embeddings().weight.detach().numpy()

    @property
    def head(self) -> np.ndarray:
        return self.model.get_output_embeddings().weight.detach().numpy()

    def ids(self, text: str) -> list[int]:
        """With the special tokens that the model reads."""
        return self.tokenizer(text, padding=False, truncation=False).input_ids

    def logits(self, ids: list[int]) -> np.ndarray:
        inputs: dict[str, Any] = {"input_ids": torch.tensor([ids])}
        if self.model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = torch.tensor([[0, *ids[:4]]])
        with torch.no_grad():
            return self.model(**inputs).logits[0].numpy()


def run(step: str, place: Path | mg.Weights, out: Path, /, **parameters: Any) -> tuple[Model, dict[str, Any]]:
    """A step on a saved model, saved again and opened; and its report."""
    weights = mg.open(place) if isinstance(place, Path) else place
    made = get_step(step).function(weights, **parameters)
    report = made.save(out, threads=1)
    mg.verify(out)
    return Model(out), dict(report.notes[-1])
