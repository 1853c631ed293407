"""Tiny Llamas trained on the source text of Python's standard library, byte by byte."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

import merganser as mg
from alignment.line import Score, State

LENGTH, BATCH, STEPS, RATE, TEST = 128, 16, 800, 3e-3, 64


@cache
def data() -> tuple[torch.Tensor, torch.Tensor]:
    """ASCII bytes for training, and rows of LENGTH for testing out of every tenth file."""
    folder = Path(sysconfig.get_path("stdlib"))
    files = [path.read_bytes() for path in sorted(folder.glob("*.py"))]
    texts = [bytes(b for b in raw if b < 128) for raw in files]
    train = b"".join(text for k, text in enumerate(texts) if k % 10)
    test = b"".join(text for k, text in enumerate(texts) if k % 10 == 0)
    rows = torch.frombuffer(bytearray(test), dtype=torch.uint8).long()
    places = torch.linspace(0, len(rows) - LENGTH - 1, TEST).long()
    return torch.frombuffer(bytearray(train), dtype=torch.uint8).long(), torch.stack(
        [rows[at : at + LENGTH] for at in places.tolist()]
    )


def make() -> Any:
    """2 layers, 64 wide, 4 heads in 2 groups, 192 neurons."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=128,
            hidden_size=64,
            intermediate_size=192,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=LENGTH,
            tie_word_embeddings=True,
        )
    )


def train(seed: int, path: Path) -> mg.Weights:
    """A trained model; the seed decides its start and the text it sees."""
    torch.manual_seed(seed)
    model = make()
    text, _ = data()
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, STEPS)
    for _ in range(STEPS):
        places = torch.randint(len(text) - LENGTH, (BATCH,))
        rows = torch.stack([text[at : at + LENGTH] for at in places.tolist()])
        optimizer.zero_grad()
        model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
        schedule.step()
    model.save_pretrained(path)
    return mg.open(path)


def scorer() -> Callable[[State], Score]:
    """Loss in nats a byte and share of bytes guessed, on the test rows."""
    model = make().eval()
    _, rows = data()

    @torch.no_grad()
    def score(state: State) -> Score:
        missing, unexpected = model.load_state_dict(dict(state), strict=False)
        assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
        outputs = model(input_ids=rows).logits[:, :-1]
        loss = nn.functional.cross_entropy(outputs.reshape(-1, 128), rows[:, 1:].reshape(-1)).item()
        return Score(loss, (outputs.argmax(-1) == rows[:, 1:]).float().mean().item(), outputs[:4])

    return score
