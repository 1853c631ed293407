"""Tiny models of several families with tokenizers, texts beside them, and references by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tiny_tokenizers import word_piece

SIZES = {
    "vocab_size": 320,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
TEXTS = [
    "The quick brown fox jumps over the lazy dog",
    "Weights are data",
    "Merging two models that were trained from one base often works better than either of them.",
    "rows and columns",
    "When the tokens of a text are known, the rows of the other tokens are never read.",
    "a layer",
    "There were 1234 rows, 56 columns and 7 layers in the table.",
]
LABELS = [0, 1, 2, 0, 1, 1, 2]


def make(family: str, folder: Path, seed: int = 0, *, change: Callable[[Any], None] | None = None) -> Any:
    """Save a model that transformers opens and give it. Biases and norms are random too, so that none hides."""
    import torch
    import transformers as t

    torch.manual_seed(seed)
    picture = {"image_size": 8, "patch_size": 4, "num_labels": 3}
    sizes = {name: value for name, value in SIZES.items() if name != "vocab_size"}
    gpt2 = {"vocab_size": 320, "n_embd": 16, "n_layer": 3, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    model = {
        "bert": lambda: t.BertModel(t.BertConfig(**SIZES), add_pooling_layer=False),
        "bert_classifier": lambda: t.BertForSequenceClassification(t.BertConfig(**SIZES, num_labels=3)),
        "bert_masked": lambda: t.BertForMaskedLM(t.BertConfig(**SIZES)),
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**SIZES, num_key_value_heads=1)),
        "llama_tied": lambda: t.LlamaForCausalLM(t.LlamaConfig(**SIZES, tie_word_embeddings=True)),
        "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(**gpt2)),
        "gemma3": lambda: t.Gemma3ForCausalLM(
            t.Gemma3TextConfig(
                **SIZES,
                num_key_value_heads=1,
                head_dim=8,
                sliding_window=4,
                layer_types=["sliding_attention"] * 2 + ["full_attention"],
            )
        ),
        "mixtral": lambda: t.MixtralForCausalLM(
            t.MixtralConfig(**SIZES, num_key_value_heads=1, num_local_experts=2)
        ),
        "series": lambda: t.PatchTSTForClassification(
            t.PatchTSTConfig(
                num_input_channels=2,
                context_length=12,
                patch_length=4,
                patch_stride=4,
                d_model=16,
                num_attention_heads=2,
                num_hidden_layers=2,
                ffn_dim=24,
                num_targets=3,
                num_labels=3,
                use_cls_token=True,
            )
        ),
        "mixer": lambda: t.PatchTSMixerForTimeSeriesClassification(
            t.PatchTSMixerConfig(
                num_input_channels=2,
                context_length=12,
                patch_length=4,
                patch_stride=4,
                d_model=16,
                num_layers=2,
                num_targets=3,
                num_labels=3,
            )
        ),
        "vit": lambda: t.ViTForImageClassification(t.ViTConfig(**sizes, **picture)),
    }[family]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        if change is not None:
            change(model)
    model.eval().save_pretrained(folder)
    if family not in ("vit", "series", "mixer"):
        tokenizer(folder)
    return model


def tokenizer(folder: Path) -> None:
    """A WordPiece tokenizer beside a model."""
    from transformers import PreTrainedTokenizerFast

    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    made = PreTrainedTokenizerFast(
        tokenizer_object=word_piece(), **{f"{k}_token": v for k, v in names.items()}
    )
    made.save_pretrained(folder)


def write_texts(path: Path, texts: list[str] | None = None, labels: list[Any] | None = None) -> Path:
    """Rows with text and label."""
    texts = TEXTS if texts is None else texts
    labels = LABELS if labels is None else labels
    rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_pictures(path: Path, count: int = 5) -> Path:
    """Rows with pixels of [3, 8, 8] and a label."""
    random = np.random.default_rng(1)
    rows = [
        {"pixels": random.standard_normal((3, 8, 8)).round(3).tolist(), "label": k % 3} for k in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(family: str, folder: Path, data: Path) -> list[dict[str, Any]]:
    """What a model takes, row by row and unpadded."""
    import torch
    from transformers import AutoTokenizer

    rows = [json.loads(line) for line in data.read_text().splitlines()]
    if family == "vit":
        return [{"pixel_values": torch.tensor([row["pixels"]], dtype=torch.float32)} for row in rows]
    encoder = AutoTokenizer.from_pretrained(folder)
    return [{"input_ids": torch.tensor([encoder(row["text"])["input_ids"]])} for row in rows]


def inputs_by_hand(model: Any, rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """By the place of each linear layer, all its inputs [tokens, in] in f64, one row of data at a time."""
    import torch
    from transformers.pytorch_utils import Conv1D

    seen: dict[str, list[np.ndarray]] = {}

    def take(place: str) -> Callable[..., None]:
        def hook(module: Any, arguments: Any, output: Any) -> None:
            value = arguments[0].detach().double().numpy()
            if isinstance(module, torch.nn.Conv2d):
                (height, width), value = module.kernel_size, value[0]
                value = np.stack(
                    [
                        value[:, top : top + height, left : left + width].reshape(-1)
                        for top in range(0, value.shape[1] - height + 1, module.stride[0])
                        for left in range(0, value.shape[2] - width + 1, module.stride[1])
                    ]
                )
            seen.setdefault(place, []).append(value.reshape(-1, value.shape[-1]))

        return hook

    hooks = [
        module.register_forward_hook(take(place))
        for place, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d | Conv1D)
    ]
    with torch.no_grad():
        for row in rows:
            model(**row)
    for hook in hooks:
        hook.remove()
    return {place: np.concatenate(values) for place, values in seen.items()}


def stored_name(family: str, place: str) -> str:
    """The tensor under which the weight at a place of the module is saved."""
    if family == "vit":
        for module, stored in (
            ("vit.layers.", "vit.encoder.layer."),
            ("attention.q_proj", "attention.attention.query"),
            ("attention.k_proj", "attention.attention.key"),
            ("attention.v_proj", "attention.attention.value"),
            ("attention.o_proj", "attention.output.dense"),
            ("mlp.fc1", "intermediate.dense"),
            ("mlp.fc2", "output.dense"),
        ):
            place = place.replace(module, stored)
    return f"{place}.weight"
