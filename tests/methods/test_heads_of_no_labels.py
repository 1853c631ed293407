"""Heads of two rows that judge the order of two texts: `id2label` does not name these rows, whatever it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import merganser as mg
from merganser.cli import run

pytestmark = pytest.mark.models
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 31, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2,
    "max_position_embeddings": 16,
}  # fmt: skip
HEADS = {
    "albert": ("sop_classifier.classifier.weight", {"embedding_size": 8}),
    "bert": ("cls.seq_relationship.weight", {}),
    "megatron-bert": ("cls.seq_relationship.weight", {}),
    "mobilebert": (
        "cls.seq_relationship.weight",
        {"embedding_size": 8, "true_hidden_size": 12, "intra_bottleneck_size": 12},
    ),
}


def pretrained(place: Path, kind: str, labels: tuple[str, str], seed: int) -> np.ndarray:
    torch.manual_seed(seed)
    names = {"id2label": dict(enumerate(labels)), "label2id": {n: k for k, n in enumerate(labels)}}
    config = transformers.AutoConfig.for_model(kind, **SIZES, **HEADS[kind][1], **names)
    model = transformers.AutoModelForPreTraining.from_config(config)
    model.save_pretrained(place)
    return model.state_dict()[HEADS[kind][0]].numpy()


@pytest.mark.parametrize("kind", HEADS)
def test_the_rows_are_averaged_by_place(kind: str, tmp_path: Path) -> None:
    first = pretrained(tmp_path / "a", kind, ("neg", "pos"), 0)
    second = pretrained(tmp_path / "b", kind, ("pos", "neg"), 1)
    merged = (0.5 * mg.open(tmp_path / "a") + 0.5 * mg.open(tmp_path / "b")).compute(HEADS[kind][0])
    assert np.allclose(merged, (first + second) / 2, atol=1e-6)


def test_albert_keeps_them_when_labels_would_move(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretrained(tmp_path / "a", "albert", ("neg", "pos"), 0)
    step = "permute: {axis: labels, order: [1, 0]}"
    assert run(["reshape", str(tmp_path / "a"), str(tmp_path / "out"), step]) == 2
    assert "labels" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
