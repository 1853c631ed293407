"""What merganser writes is an ordinary model directory: transformers opens it unchanged, from one file or shards."""

from __future__ import annotations

from pathlib import Path

import pytest

import merganser as mg

pytestmark = pytest.mark.models
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def save_model(path: Path, seed: int, **changes: object) -> Path:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        **changes,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard_size", [5 * 10**9, 20_000])
def test_result_opens_without_missing_or_unexpected_tensors(
    tmp_path: Path, shard_size: int, tied: bool
) -> None:
    parents = [
        mg.open(save_model(tmp_path / name, seed, tie_word_embeddings=tied))
        for seed, name in enumerate("abc")
    ]
    base, one, two = parents
    (base + 0.5 * mg.trim(one - base, 0.3) + 0.5 * (two - base)).save(
        tmp_path / "out", shard_size=shard_size, dtype="bfloat16", sync=False
    )
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, dtype="auto"
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.dtype == torch.bfloat16
    a, b, c = (
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / n).model.norm.weight.double()
        for n in "abc"
    )
    assert torch.equal(
        model.model.norm.weight.double(), (a + 0.5 * (c - a) + 0.5 * (b - a)).bfloat16().double()
    )
    assert model(torch.arange(6)[None]).logits.isfinite().all()


def test_a_tied_head_answers_for_a_parent_that_stores_none(tmp_path: Path) -> None:
    """One parent holds embedding and head, the other only the embedding that both are."""
    base = mg.open(save_model(tmp_path / "untied", 0))
    tied = mg.open(save_model(tmp_path / "tied", 1, tie_word_embeddings=True))
    assert "lm_head.weight" not in tied
    vector = tied - base
    expected = tied.compute("model.embed_tokens.weight") - base.compute("lm_head.weight")
    assert (vector.compute("lm_head.weight") == expected).all()


def test_tokenizer_and_generation_config_travel(tmp_path: Path) -> None:
    path = save_model(tmp_path / "base", 0)
    (path / "tokenizer.json").write_text("{}")
    (path / "chat_template.jinja").write_text("{{ messages }}")
    mg.open(path).save(tmp_path / "out", sync=False)
    for name in ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (path / name).read_bytes()
