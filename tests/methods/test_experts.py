"""Mixtures of experts made from dense models and back, opened and run by transformers."""

from __future__ import annotations

import numpy as np
import pytest

import merganser as mg
from merganser.algebra import axes
from merganser.errors import MerganserError
from merganser.methods import get_step

pytestmark = pytest.mark.models
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 4,
}
DENSE = {
    "mixtral": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**SIZES)),
    "qwen3_moe": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SIZES)),
    "flex_olmo": lambda: transformers.Olmo2ForCausalLM(
        transformers.Olmo2Config(**SIZES, pad_token_id=1, eos_token_id=2)
    ),
}


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.arange(3, 14)[None]).logits.double().numpy()


def reopened(weights, path):
    weights.save(path, sync=False)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model


@pytest.fixture(params=DENSE)
def dense(request, tmp_path):
    torch.manual_seed(0)
    model = DENSE[request.param]()
    model.save_pretrained(tmp_path / "dense")
    return request.param, mg.open(tmp_path / "dense"), logits(model)


@pytest.mark.parametrize("router", ["random", "zeros"])
def test_upcycled_models_start_as_the_same_function_and_average_back(dense, tmp_path, router):
    family, weights, expected = dense
    moe = get_step("upcycle").function(weights, experts=5, per_token=3, family=family, router=router)
    model = reopened(moe, tmp_path / "moe")
    assert type(model).__name__.lower().startswith(family.replace("_", ""))
    assert np.allclose(logits(model), expected, atol=1e-5)
    back = get_step("average_experts").function(mg.open(tmp_path / "moe"))
    again = reopened(back, tmp_path / "back")
    assert type(again).__name__ == type(DENSE[family]()).__name__
    assert np.allclose(logits(again), expected, atol=1e-5)


def test_experts_are_split_without_a_change_and_dropped_with_their_router_rows(dense, tmp_path):
    family, weights, _ = dense
    moe = get_step("upcycle").function(weights, experts=4, per_token=2, family=family, seed=3)
    rng = np.random.default_rng(0)
    moe = moe.map(lambda name, e: e * float(rng.uniform(0.8, 1.2)) if "experts" in name else e)
    moe = moe.map(lambda _, e: e, degree=1.0)
    original = reopened(moe, tmp_path / "moe")
    opened = mg.open(tmp_path / "moe")
    split = reopened(get_step("split_experts").function(opened, parts=3), tmp_path / "split")
    assert np.allclose(logits(split), logits(original), atol=1e-5)
    fewer = reopened(axes.take(opened, "expert", [3, 1]), tmp_path / "fewer")
    reordered = reopened(axes.permute(opened, "expert", [2, 0, 3, 1]), tmp_path / "reordered")
    assert np.allclose(logits(reordered), logits(original), atol=1e-5)
    assert np.isfinite(logits(fewer)).all()
    routers = [name for name in opened if name.endswith(("moe.gate.weight", "mlp.gate.weight"))]
    again = mg.open(tmp_path / "fewer")
    for name in routers:
        assert np.array_equal(mg.compute(again, name), mg.compute(opened, name)[[3, 1]])


def test_what_cannot_be_done_says_why(dense, tmp_path):
    family, weights, _ = dense
    upcycle = get_step("upcycle").function
    with pytest.raises(MerganserError, match="did you mean 'mixtral'"):
        upcycle(weights, family="mixtrl")
    with pytest.raises(MerganserError, match="1 to all of them"):
        upcycle(weights, experts=4, per_token=5)
    with pytest.raises(MerganserError, match="dense sibling"):
        get_step("average_experts").function(weights)
    moe = upcycle(weights, experts=2, per_token=1, family=family)
    with pytest.raises(MerganserError, match="two routers"):
        axes.concat([moe, moe], "expert")
    with pytest.raises(MerganserError, match="36 elements, which 5 parts"):
        get_step("split_experts").function(moe, parts=5)


def test_no_fewer_experts_than_a_token_chooses(dense):
    family, weights, _ = dense
    moe = get_step("upcycle").function(weights, experts=4, per_token=2, family=family)
    with pytest.raises(
        MerganserError, match=r"num_experts_per_tok <= expert.*nearest legal sizes: expert = 2"
    ):
        axes.reading_of(axes.take(moe, "expert", [0])).followed()
