"""Alignment of tiny models of known families: found again after a random permutation, and the same function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import merganser as mg
from merganser.algebra.axes import permute, reading_of
from merganser.methods.align.weight_matching import align

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.models


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=61,
            hidden_size=24,
            intermediate_size=37,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=4,
            tie_word_embeddings=False,
        )
    )


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=61, n_positions=29, n_embd=24, n_layer=2, n_head=3))


def bert() -> Any:
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(
        BertConfig(
            vocab_size=61,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=37,
            max_position_embeddings=29,
        )
    )


def mixtral() -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=61,
            hidden_size=24,
            intermediate_size=20,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=4,
            num_local_experts=5,
            num_experts_per_tok=2,
        )
    )


AXES = {
    "llama": {"residual", "kv_heads", "groups", "value_dim", "neurons"},
    "gpt2": {"residual", "heads", "head_dim", "value_dim", "neurons"},
    "bert": {"residual", "heads", "head_dim", "value_dim", "neurons"},
    "mixtral": {"residual", "kv_heads", "groups", "value_dim", "expert", "expert_neurons"},
}
MODELS: dict[str, Callable[[], Any]] = {"llama": llama, "gpt2": gpt2, "bert": bert, "mixtral": mixtral}


def written(kind: str, seed: int, path: Path) -> tuple[Any, mg.Weights]:
    """A model with no norm all ones and no bias all zeros."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    model = MODELS[kind]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(path)
    return model, mg.open(path)


def reopened(kind: str, path: Path) -> Any:
    import transformers

    found, info = getattr(transformers, type(MODELS[kind]()).__name__).from_pretrained(
        path, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return found.eval()


def outputs(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model(input_ids=torch.arange(2, 34).reshape(2, 16)).logits.numpy()


def shuffled(weights: mg.Weights, kind: str, seed: int) -> mg.Weights:
    """A random permutation of every instance of every axis that may move."""
    random = np.random.default_rng(seed)
    sizes = reading_of(weights).sizes
    for name in sorted(AXES[kind], key=lambda name: name != "expert"):
        orders = {axis.at: random.permutation(size) for axis, size in sizes.items() if axis.name == name}
        weights = permute(weights, name, orders)
    return weights


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", MODELS)
def test_a_shuffled_model_is_matched_back_exactly(tmp_path: Path, kind: str, seed: int) -> None:
    _, a = written(kind, seed, tmp_path / "a")
    b = shuffled(a, kind, seed)
    found = align(b, to=a, seed=seed)
    note = found.notes[-1]
    assert note["l2_before"] > 5 and note["l2_after"] == 0
    assert set(note["axes"]) == AXES[kind] and note["unmatched"] == []
    for name in a:
        assert np.array_equal(found.compute(name), a.compute(name)), name


@pytest.mark.parametrize("kind", MODELS)
def test_an_independent_model_keeps_its_function(tmp_path: Path, kind: str) -> None:
    _, a = written(kind, 0, tmp_path / "a")
    model, b = written(kind, 1, tmp_path / "b")
    found = align(b, to=a, seed=4)
    note = found.notes[-1]
    assert note["l2_after"] < note["l2_before"]
    long = {name: one["share_moved"] for name, one in note["axes"].items() if one["elements"] > 20}
    assert {"residual"} < long.keys() and min(long.values()) > 0.5, long
    found.save(tmp_path / "out")
    # routers choose experts: equal up to rounding only where no choice is near a tie, which these seeds are not
    assert np.allclose(outputs(reopened(kind, tmp_path / "out")), outputs(model), atol=2e-5)
    squares = sum(np.sum((a.compute(n).astype(float) - found.compute(n)) ** 2) for n in a)
    assert note["l2_after"] == pytest.approx(squares**0.5, rel=1e-9)


def test_the_bare_body_is_matched_to_a_model_with_a_head(tmp_path: Path) -> None:
    """Names differ by a prefix, and the head has no counterpart."""
    model, a = written("llama", 0, tmp_path / "a")
    shuffled(a, "llama", 1).save(tmp_path / "b")
    reopened("llama", tmp_path / "b").model.save_pretrained(tmp_path / "body")
    body = mg.open(tmp_path / "body")
    found = align(body, to=a)
    assert found.notes[-1]["l2_after"] == 0
    assert found.notes[-1]["unmatched"] == ["lm_head.weight"]
    assert np.array_equal(found.compute("norm.weight"), model.model.norm.weight.detach().numpy())
