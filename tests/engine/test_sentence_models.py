"""Models of sentence-transformers with modules below the body: the library opens the result, with the same vectors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import merganser as mg
from merganser.cli import run
from merganser.errors import AlgebraError

pytestmark = pytest.mark.models
TEXTS = ["sea water", "a b c d"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "sea", "water", "a", "b", "c", "d"]


@pytest.fixture(scope="module")
def library() -> Any:
    return pytest.importorskip("sentence_transformers")


@pytest.fixture(scope="module")
def model(library: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BERT, mean pooling, two Dense layers, of which the second is stored as it was years ago: as a pickle."""
    import torch
    from sentence_transformers import models as parts
    from transformers import BertConfig, BertModel, BertTokenizerFast

    home = tmp_path_factory.mktemp("sentences")
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=7,
        max_position_embeddings=16,
    )  # fmt: skip
    BertModel(config).save_pretrained(home / "body")
    (home / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(str(home / "vocab.txt")).save_pretrained(home / "body")
    modules = [
        parts.Transformer(str(home / "body")),
        parts.Pooling(12),
        parts.Dense(12, 6),
        parts.Dense(6, 5),
    ]
    library.SentenceTransformer(modules=modules, device="cpu").save(str(home / "model"))
    (old,) = (home / "model").glob("3_Dense/model.safetensors")
    torch.save(modules[3].state_dict(), old.with_name("pytorch_model.bin"))
    old.unlink()
    return home / "model"


def vectors(library: Any, folder: Path) -> np.ndarray:
    found: np.ndarray = library.SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    return found


def test_the_library_opens_what_was_merged_and_reshaped(library: Any, model: Path, tmp_path: Path) -> None:
    expected = vectors(library, model)
    assert expected.shape == (2, 5)
    report = mg.mean(mg.open(model), mg.open(model)).save(tmp_path / "mean")
    (note,) = [note for note in report.notes if note["step"] == "files"]
    assert note["taken_over_whole"] == ["2_Dense/model.safetensors", "3_Dense/pytorch_model.bin"]
    assert (
        run(["reshape", str(model), str(tmp_path / "wide"), "widen: {axis: neurons, size: 14}", "--quiet"])
        == 0
    )
    for made in ("mean", "wide"):
        np.testing.assert_allclose(vectors(library, tmp_path / made), expected, atol=1e-5)


def test_a_narrower_stream_is_refused_and_goes_without_the_layers(
    library: Any, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(AlgebraError, match="holds weights of 12 along the residual axis"):
        mg.axes.permute(mg.open(model), "residual", list(range(12))[::-1]).save(tmp_path / "out")
    copy = tmp_path / "copy"
    shutil.copytree(model, copy, ignore=shutil.ignore_patterns("2_Dense", "3_Dense"))
    listed = json.loads((copy / "modules.json").read_text())
    (copy / "modules.json").write_text(json.dumps(listed[:2]))  # as the message says
    mg.axes.permute(mg.open(copy), "residual", list(range(12))[::-1]).save(tmp_path / "turned")
    np.testing.assert_allclose(
        vectors(library, tmp_path / "turned"), vectors(library, copy)[:, ::-1], atol=1e-5
    )
