"""Two fine-tunes of one tiny BERT classifier on two synthetic tasks, made on the spot; and their data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = [f"w{k}" for k in range(40)]
SIZES = {
    "vocab_size": 48,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "num_labels": 2,
}
TASKS = ("red", "blue")


def rows(task: str, count: int, seed: int) -> list[dict[str, object]]:
    """Twelve words a row; the label is whether more of the task's first five words are there than of its last five."""
    rng = np.random.default_rng([seed, TASKS.index(task)])
    start = 10 * TASKS.index(task)
    found = []
    for _ in range(count):
        words = rng.integers(0, len(WORDS), 12)
        more = int(((words >= start) & (words < start + 5)).sum())
        fewer = int(((words >= start + 5) & (words < start + 10)).sum())
        if more != fewer:
            found.append({"text": " ".join(WORDS[k] for k in words), "label": int(more > fewer)})
    return found


def write_rows(path: Path, task: str, count: int, seed: int) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(task, count, seed)))
    return path


def tokenizer() -> Tokenizer:
    vocabulary = {word: k for k, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return made


def write_siblings(folder: Path, *, steps: int = 60) -> Path:
    """folder/base, folder/red, folder/blue: model directories with a tokenizer; red.jsonl, blue.jsonl beside them."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer(), pad_token="[PAD]", unk_token="[UNK]")
    torch.manual_seed(0)
    base = BertForSequenceClassification(BertConfig(**SIZES))
    start = {name: value.clone() for name, value in base.state_dict().items()}
    for task in ("base", *TASKS):
        base.load_state_dict(start)
        if task != "base":
            write_rows(folder / f"{task}.jsonl", task, 300, seed=1)
            write_rows(folder / f"{task}.test.jsonl", task, 200, seed=2)
            _train(base, wrapped, rows(task, 300, seed=1), steps)
        base.eval().save_pretrained(folder / task)
        wrapped.save_pretrained(folder / task)
    return folder


def _train(model, wrapped, data, steps) -> None:
    import torch

    ids = torch.tensor([wrapped(row["text"])["input_ids"] for row in data])
    labels = torch.tensor([row["label"] for row in data])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    model.train()
    for step in range(steps):
        part = torch.arange(step * 32, step * 32 + 32) % len(ids)
        loss = model(input_ids=ids[part], labels=labels[part]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
