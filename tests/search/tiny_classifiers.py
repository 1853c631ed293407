"""A tiny encoder, fine-tuned on two tasks about words in a text, with heads, data and suites, in about two seconds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from merganser.running import Head

WORDS = [f"w{k}" for k in range(24)]
TASKS = ("sign", "place")
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
}


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: k for k, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def samples(task: str, count: int, seed: int) -> list[tuple[str, int]]:
    """`sign`: whether words of the first half outnumber the others; `place`: the same of even and odd numbers."""
    draws = np.random.default_rng([seed, TASKS.index(task)])
    found = []
    for _ in range(count):
        words = draws.integers(0, len(WORDS), 7)
        inside = words < len(WORDS) // 2 if task == "sign" else words % 2 == 0
        found.append((" ".join(WORDS[k] for k in words), int(inside.sum() > 3)))
    return found


def write_rows(path: Path, rows: list[tuple[str, int]], labelled: bool = True) -> None:
    lines = [{"text": text, **({"label": ["no", "yes"][label]} if labelled else {})} for text, label in rows]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def build(folder: Path) -> Path:
    """base, sign, place (model directories), heads, *.{val,test,bare}.jsonl, val.yaml, test.yaml, bare.yaml."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    made = tokenizer()
    base = BertModel(BertConfig(vocab_size=len(made), **SIZES), add_pooling_layer=False)
    base.save_pretrained(folder / "base")
    made.save_pretrained(folder / "base")
    for task in TASKS:
        draws = np.random.default_rng(7 + TASKS.index(task))
        head = Head(
            (0.2 * draws.standard_normal((2, 16))).astype(np.float32),
            np.zeros(2, np.float32),
            ("no", "yes"),
            "mean",
            False,
        )
        head.save(folder / f"{task}.head.safetensors")
        model = BertModel.from_pretrained(folder / "base", add_pooling_layer=False)
        train(model, head, samples(task, 512, 1), made)
        model.save_pretrained(folder / task)
        made.save_pretrained(folder / task)
        write_rows(folder / f"{task}.val.jsonl", samples(task, 64, 2))
        write_rows(folder / f"{task}.test.jsonl", samples(task, 64, 3))
        write_rows(folder / f"{task}.bare.jsonl", samples(task, 64, 2), labelled=False)
    for split in ("val", "test", "bare"):
        tasks = [
            {
                "name": task,
                "kind": "classification",
                "data": f"{task}.{split}.jsonl",
                "head": f"{task}.head.safetensors",
            }
            for task in TASKS
        ]
        (folder / f"{split}.yaml").write_text(yaml.safe_dump({"name": split, "tasks": tasks}))
    return folder


def train(model: BertModel, head: Head, rows: list[tuple[str, int]], made: PreTrainedTokenizerFast) -> None:
    step = torch.optim.AdamW(model.parameters(), lr=3e-3)
    texts = made([text for text, _ in rows], return_tensors="pt", padding=True)
    labels = torch.tensor([label for _, label in rows])
    model.train()
    for number in range(60):
        chosen = slice(64 * number % 512, 64 * number % 512 + 64)
        mask = texts["attention_mask"][chosen]
        states = model(input_ids=texts["input_ids"][chosen], attention_mask=mask).last_hidden_state
        features = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        loss = torch.nn.functional.cross_entropy(head(features), labels[chosen])
        step.zero_grad()
        loss.backward()
        step.step()
    model.eval()


RECIPE = {
    "method": "task_arithmetic",
    "base_model": "base",
    "models": [{"model": task} for task in TASKS],
}


def recipe(folder: Path, name: str, document: dict) -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path
