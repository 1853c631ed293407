"""A base encoder of two tiny layers, and tasks and domains of made-up sentences."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

from zoo import build  # noqa: E402
from zoo.cuts import SMALL  # noqa: E402
from zoo.domains import Domain  # noqa: E402
from zoo.domains import split as split_domain  # noqa: E402
from zoo.splits import Source, Task, split  # noqa: E402

CUT = replace(
    SMALL,
    name="tiny",
    tasks=("colours", "animals"),
    domains=("prose", "lists"),
    pool=60,
    drawn=32,
    validation=12,
    test=20,
    passages_train=12,
    passages_validation=2,
    passages_test=3,
    vocabulary=300,
    steps_base=6,
    steps=3,
)
GOOD = ["the", "dog", "found", "a", "green", "field", "and", "the", "horse", "drank", "clear", "water"]
BAD = ["a", "grey", "wall", "fell", "over", "the", "rusty", "car", "near", "an", "empty", "house"]


def sentences(words: list[str], count: int, seed: int) -> list[str]:
    """Distinct sentences of these words."""
    draw = np.random.default_rng(seed)
    return [f"{' '.join(draw.choice(words, 4 + n % 7))} {n}" for n in range(count)]


def base(folder: Path) -> Path:
    """A BERT of two layers with a tokenizer that knows the words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocabulary = {
        token: n for n, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted({*GOOD, *BAD})])
    }
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    marks = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=marks)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tasks() -> list[Task]:
    """Two tasks that can be learned: which of two lists of words a sentence is made of."""
    found = []
    for seed, (name, classes) in enumerate(
        {"colours": ("green", "grey"), "animals": ("dog", "none")}.items()
    ):
        good, bad = sentences(GOOD, 60, seed), sentences(BAD, 60, seed + 10)
        pairs = [(t, classes[0]) for t in good] + [(t, classes[1]) for t in bad]
        found.append(Source(name, f"{name}?", classes, pairs))
    return split(found, CUT)


def domains() -> list[Domain]:
    """Two domains of longer texts."""
    prose = [". ".join(sentences(GOOD, 60, n)) for n in range(14)]
    lists = ["\n".join(sentences(BAD, 60, n)) for n in range(14)]
    return [split_domain("prose", prose, CUT), split_domain("lists", lists, CUT)]


def train(root: Path, base: Path, processes: int) -> None:
    """The whole zoo of these."""
    root.mkdir(exist_ok=True)
    build.train(root, base, tasks(), domains(), CUT, Console(file=io.StringIO()), processes)
