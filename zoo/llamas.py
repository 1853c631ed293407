"""Small Llamas: a base on all domains, then continuations of it on one domain each, or on all."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from demo import train
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from zoo.encoders import Tick
from zoo.jobs import STRIDE, WINDOW, Job

START, END, PAD = "<s>", "</s>", "<pad>"


def make_tokenizer(texts: Sequence[str], size: int) -> Any:
    """A byte-level BPE tokenizer that puts <s> before every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[START, END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )


def blocks(tokenizer: Any, passages: Sequence[str], length: int) -> Tensor:
    """All passages behind each other, each with <s> before and </s> after it, in rows of `length` tokens."""
    ids: list[int] = []
    for one in tokenizer(list(passages))["input_ids"]:
        ids += [*one, tokenizer.eos_token_id]
    whole = len(ids) // length * length
    return torch.tensor(ids[:whole]).view(-1, length)


def shuffled(parts: Sequence[Tensor], rows: int, seed: int) -> Tensor:
    """`rows` blocks, equally many of each part, drawn without return until a part is used up, in a drawn order."""
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for number, part in enumerate(parts):
        wanted = rows // len(parts) + (number < rows % len(parts))
        order: list[Tensor] = []
        while sum(map(len, order)) < wanted:
            order.append(torch.randperm(len(part), generator=generator))
        chosen.append(part[torch.cat(order)[:wanted]])
    every = torch.cat(chosen)
    return every[torch.randperm(len(every), generator=generator)]


@torch.inference_mode()
def bits_per_byte(model: Any, tokenizer: Any, passages: Sequence[str]) -> float:
    """Bits the model needs for the passages' bytes, each passage read in windows of WINDOW tokens.

    The first window predicts WINDOW tokens, each other STRIDE more; <s> is given, </s> is not asked for.
    """
    nats = 0.0
    for ids in tokenizer(list(passages))["input_ids"]:
        known = 1
        while known < len(ids):
            begin = max(0, known - 1 - (WINDOW - STRIDE))
            end = min(len(ids), known + STRIDE if known > 1 else WINDOW + 1)
            row = torch.tensor([ids[begin:end]])
            logits = model(input_ids=row[:, :-1]).logits[0, known - 1 - begin :]
            nats += float(torch.nn.functional.cross_entropy(logits, row[0, known - begin :], reduction="sum"))
            known = end
    return nats / math.log(2) / sum(len(p.encode()) for p in passages)


def make_llama(job: Job, here: Path, tick: Tick) -> dict[str, Any]:
    """Train the base (seed 0) or continue it, and write the model."""
    settings = job.made_from["settings"]
    data = {n: json.loads(Path(p).read_text(encoding="utf-8")) for n, p in job.paths["rows"].items()}
    torch.manual_seed(job.seed)
    if job.seed == 0:
        share = [p for d in data.values() for p in d["train"][:1000]]
        tokenizer = make_tokenizer(share, settings["vocab_size"])
        names = (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
        )
        model = LlamaForCausalLM(
            LlamaConfig(
                **{n: settings[n] for n in names},
                vocab_size=len(tokenizer),
                max_position_embeddings=2 * settings["block"],
                tie_word_embeddings=True,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    else:
        tokenizer = AutoTokenizer.from_pretrained(job.paths["base"])
        model = AutoModelForCausalLM.from_pretrained(job.paths["base"], dtype=torch.float32)
    parts = [blocks(tokenizer, data[n]["train"], settings["block"]) for n in job.over]
    steps, batch = settings["steps"], settings["batch"]
    batches = list(shuffled(parts, steps * batch, job.seed).split(batch))
    done = 0

    def more(_: Tensor) -> None:
        nonlocal done
        done += 1
        tick(0.9 * done / steps)

    model.train()
    train.descend(model, batches, lambda rows: model(input_ids=rows, labels=rows).loss, settings, more)
    model.eval()
    model.save_pretrained(here)
    tokenizer.save_pretrained(here)
    held = {n: bits_per_byte(model, tokenizer, d["validation"]) for n, d in data.items()}
    return {"tokens": steps * batch * settings["block"], "validation": held}
