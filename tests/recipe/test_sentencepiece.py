"""Models with a SentencePiece file and no tokenizer.json: transformers reads it, and recipes work as with one."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from makers import read_model
from tiny_llamas import llama

from merganser.cli import run

pytestmark = pytest.mark.models
spm = pytest.importorskip("sentencepiece")
pytest.importorskip("google.protobuf")
transformers = pytest.importorskip("transformers")

TEXTS = {
    "a": ["the quick brown fox jumps over the lazy dog", "a fox and a dog and a hen", "over the hills"] * 20,
    "b": ["models of the hills are quick", "the brown hen jumps", "dogs are lazy models"] * 20,
}


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, int]]:
    """Llamas with the tokenizer.model of their own texts; the ids that transformers gives their tokens."""
    monkeypatch.chdir(tmp_path)
    found = {}
    for seed, (name, texts) in enumerate(TEXTS.items()):
        made = io.BytesIO()
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=made, vocab_size=48, model_type="bpe",
            hard_vocab_limit=False, minloglevel=2,
        )  # fmt: skip
        size = spm.SentencePieceProcessor(model_proto=made.getvalue()).vocab_size()
        llama(Path(name), seed, vocab_size=size, hidden_size=6)
        (Path(name) / "tokenizer.model").write_bytes(made.getvalue())
        settings = {
            "tokenizer_class": "LlamaTokenizer",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
        }
        (Path(name) / "tokenizer_config.json").write_text(json.dumps(settings))
        found[name] = transformers.AutoTokenizer.from_pretrained(name).get_vocab()
    return found


def test_a_union_averages_the_rows_of_shared_tokens(words) -> None:
    Path("r.yaml").write_text(
        "merge_method: linear\nmodels: [{model: a, parameters: {weight: 0.5}}, {model: b, parameters: {weight: 0.5}}]\n"
        "tokenizer_source: union\n"
    )
    assert run(["merge", "r.yaml", "out", "--quiet", "--no-sync"]) == 0
    out, a, b = (read_model(Path(name))["model.embed_tokens.weight"] for name in ("out", "a", "b"))
    ids = transformers.AutoTokenizer.from_pretrained("out").get_vocab()
    assert set(ids) == {*words["a"], *words["b"]}
    shared = set(words["a"]) & set(words["b"])
    assert 5 < len(shared) < len(ids)
    for token, row in ids.items():
        rows = [model[words[name][token]] for name, model in (("a", a), ("b", b)) if token in words[name]]
        np.testing.assert_allclose(out[row], np.mean(rows, axis=0), rtol=1e-6, err_msg=token)


def test_prompts_of_a_mixture_are_written_with_it(words) -> None:
    llama(Path("c"), 7, vocab_size=len(words["a"]))
    Path("moe.yaml").write_text(
        "base_model: a\ngate_mode: cheap_embed\nexperts_per_token: 1\nexperts:\n"
        "- {source_model: a, positive_prompts: [the fox]}\n- {source_model: c, positive_prompts: [over the hills]}\n"
    )
    assert run(["merge", "moe.yaml", "out", "--quiet", "--no-sync"]) == 0
    gate = read_model(Path("out"))["model.layers.0.block_sparse_moe.gate.weight"]
    embedding = read_model(Path("a"))["model.embed_tokens.weight"]
    ids = transformers.AutoTokenizer.from_pretrained("a")("<s>the fox", add_special_tokens=False).input_ids
    total = embedding[ids].sum(axis=0)
    np.testing.assert_allclose(gate[0], total / np.linalg.norm(total), rtol=1e-5, atol=1e-6)


def test_without_transformers_the_way_out_is_said(words, monkeypatch, capsys) -> None:
    Path("r.yaml").write_text(
        "merge_method: slerp\nbase_model: a\nmodels: [{model: b}]\nparameters: {t: 0.5}\ntokenizer_source: base\n"
    )
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "transformers", None)
        assert run(["merge", "r.yaml", "out"]) == 2
    assert "transformers, which reads it, is not installed" in capsys.readouterr().err
    for name in "ab":  # as the message says
        transformers.AutoTokenizer.from_pretrained(name).save_pretrained(name)
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "transformers", None)
        assert run(["merge", "r.yaml", "out", "--quiet", "--no-sync"]) == 0
