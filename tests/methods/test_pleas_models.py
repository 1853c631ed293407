"""Activation matching and PLeaS of tiny transformers, on moments observed by running both: copies, widths, refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import merganser as mg
from merganser.algebra.axes import permute, reading_of
from merganser.errors import AlgebraError, RequestError
from merganser.methods.align.activation_matching import align_activations
from merganser.methods.align.pleas import pleas

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.models

IDS = torch.arange(2, 58).reshape(4, 14)


def llama(neurons: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=61,
            hidden_size=24,
            intermediate_size=neurons,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=4,
            tie_word_embeddings=False,
        )
    )


def gpt2(neurons: int) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(vocab_size=61, n_positions=29, n_embd=24, n_layer=2, n_head=3, n_inner=neurons)
    )


def bert(neurons: int) -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(
        BertConfig(
            vocab_size=61,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=neurons,
            max_position_embeddings=29,
            num_labels=3,
        )
    )


def vit(neurons: int) -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=neurons,
            image_size=12,
            patch_size=4,
            num_labels=3,
        )
    )


MODELS: dict[str, Callable[[int], Any]] = {"llama": llama, "gpt2": gpt2, "bert": bert, "vit": vit}
AXES = {
    "llama": ("residual", "kv_heads", "groups", "value_dim", "neurons"),
    "gpt2": ("residual", "heads", "head_dim", "value_dim", "neurons"),
    "bert": ("residual", "heads", "head_dim", "value_dim", "neurons"),
    "vit": ("residual", "heads", "head_dim", "value_dim", "neurons"),
}


def batch(kind: str) -> dict[str, Any]:
    if kind == "vit":
        return {"pixel_values": torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(5))}
    return {"input_ids": IDS}


def written(kind: str, seed: int, path: Path, neurons: int = 36) -> mg.Weights:
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    model = MODELS[kind](neurons).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(path)
    return mg.open(path)


def shuffled(weights: mg.Weights, kind: str, path: Path) -> mg.Weights:
    """A random permutation of every instance of every axis that may move, saved."""
    random = np.random.default_rng(1)
    sizes = reading_of(weights).sizes
    for name in AXES[kind]:
        orders = {axis.at: random.permutation(size) for axis, size in sizes.items() if axis.name == name}
        weights = permute(weights, name, orders)
    weights.save(path)
    return mg.open(path)


def observed(a: Path, b: Path, kind: str) -> mg.Weights:
    from merganser.observe.paired import pair
    from merganser.running import open_model

    one, two = open_model(a), open_model(b)
    note = {"models": [{"label": m.label, "identity": m.identity} for m in (one, two)]}
    return pair(one, two, [batch(kind)], note=note).weights()


def outputs(source: Path | mg.Weights, kind: str) -> np.ndarray:
    from merganser.running import open_model

    with torch.no_grad():
        return open_model(source).module(**batch(kind)).logits.numpy()


@pytest.mark.parametrize("kind", MODELS)
def test_a_permuted_copy_is_found_again_and_merges_back(tmp_path: Path, kind: str) -> None:
    a = written(kind, 0, tmp_path / "a")
    b = shuffled(a, kind, tmp_path / "b")
    stats = observed(tmp_path / "a", tmp_path / "b", kind)
    found = align_activations(b, to=a, statistics=stats)
    assert found.notes[-1]["without_statistics"] == []
    wrong = [n for n in a if not np.array_equal(found.compute(n), a.compute(n))]
    assert wrong == []
    back = pleas(a, other=b, statistics=stats)
    for name in a:
        assert np.allclose(back.compute(name), a.compute(name), rtol=1e-5, atol=1e-6), name
    wide = pleas(a, other=b, statistics=stats, size=1.5)
    wide.save(tmp_path / "wide")
    assert {s for n, s in mg.axes.sizes(mg.open(tmp_path / "wide")).items() if n.startswith("neurons")} == {
        54
    }
    assert np.allclose(outputs(tmp_path / "wide", kind), outputs(tmp_path / "a", kind), atol=2e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_independent_models_of_two_widths(tmp_path: Path, kind: str) -> None:
    """The result has the wider one's neurons at least, opens in transformers, and the fit brings layers nearer."""
    a = written(kind, 0, tmp_path / "a", neurons=36)
    b = written(kind, 9, tmp_path / "b", neurons=24)
    stats = observed(tmp_path / "a", tmp_path / "b", kind)
    for size, neurons in ((1.0, 36), (1.25, 45)):
        merged = pleas(a, other=b, statistics=stats, size=size)
        note = merged.notes[-1]
        one = note["neurons"]["neurons[0]"]
        assert (one["first"], one["second"], one["result"]) == (36, 24, neurons)
        assert one["merged"] == 60 - neurons
        assert note["fitted"] and all(
            x["after"] <= x["before"] * (1 + 1e-6) + 1e-9 for x in note["fitted"].values()
        )
        assert np.isfinite(outputs(merged, kind)).all()
    most = pleas(a, other=b, statistics=stats, size=2.0, fit=False)
    assert most.notes[-1]["neurons"]["neurons[0]"]["result"] == 60
    with pytest.raises(AlgebraError, match="only models"):
        align_activations(b, to=a, statistics=stats)


def test_with_nothing_merged_one_layer_computes_the_mean_of_both(tmp_path: Path) -> None:
    """The neurons of both side by side, halved where they are read: the mean of two MLPs on the same stream."""
    a, b = written("bert", 0, tmp_path / "a"), written("bert", 9, tmp_path / "b")
    stats = observed(tmp_path / "a", tmp_path / "b", "bert")
    merged = pleas(a, other=b, statistics=stats, size=2, fit=False)
    from merganser.methods.align.activation_matching import align_activations as align

    aligned = align(b, to=a, statistics=stats, axes=["residual", "heads", "head_dim", "value_dim"])
    x = torch.randn(7, 24)

    def mlp(weights: mg.Weights) -> Any:
        at = "bert.encoder.layer.1"
        up, one, down, two = (
            torch.from_numpy(weights.compute(f"{at}.{name}").copy())
            for name in (
                "intermediate.dense.weight",
                "intermediate.dense.bias",
                "output.dense.weight",
                "output.dense.bias",
            )
        )
        return torch.nn.functional.gelu(x @ up.T + one) @ down.T + two

    assert torch.allclose(mlp(merged), (mlp(a) + mlp(aligned)) / 2, atol=1e-5)


def test_statistics_of_other_models_are_refused(tmp_path: Path) -> None:
    a, b = written("bert", 0, tmp_path / "a"), written("bert", 9, tmp_path / "b")
    stats = observed(tmp_path / "a", tmp_path / "b", "bert")
    with pytest.raises(RequestError, match="are of other models: the first one was"):
        align_activations(a, to=b, statistics=stats)
    with pytest.raises(RequestError, match="no other step may come before"):
        align_activations(permute(b, "neurons", list(range(35, -1, -1))), to=a, statistics=stats)
    with pytest.raises(RequestError, match=r"no axis 'neuron'; did you mean 'neurons'"):
        align_activations(b, to=a, statistics=stats, axes=["neuron"])
    with pytest.raises(RequestError, match="heads is no axis of neurons"):
        pleas(a, other=b, statistics=stats, size={"heads": 1.5})


def test_moments_are_those_of_independent_hooks(tmp_path: Path) -> None:
    """Padding left out, layers that share an input stored once, f32 on disk as in memory."""
    from merganser.observe.paired import pair
    from merganser.running import open_model

    written("bert", 0, tmp_path / "a"), written("bert", 9, tmp_path / "b")
    one, two = open_model(tmp_path / "a"), open_model(tmp_path / "b")
    mask = torch.ones(4, 14, dtype=torch.long)
    mask[1, 9:] = 0
    mask[3, 4:] = 0
    kept: list[Any] = []
    for model in (one, two):
        module = model.module.bert.encoder.layer[1].output.dense
        hook = module.register_forward_hook(lambda m, i, o: kept.append(i[0]))
        with torch.no_grad():
            model.module(input_ids=IDS, attention_mask=mask)
        hook.remove()
    x, y = (k[mask.bool()].double() for k in kept)
    v = torch.cat([x, y, torch.ones(len(x), 1)], 1)
    wanted = (v.T @ v / len(v)).numpy()
    halves = [{"input_ids": IDS[i], "attention_mask": mask[i]} for i in ([0, 1], [2, 3])]
    found = pair(one, two, halves)
    assert np.allclose(found.joint["bert.encoder.layer.1.output.dense.weight"], wanted, rtol=1e-5, atol=1e-6)
    at = "bert.encoder.layer.0.attention.self"
    assert found.shared[f"{at}.key.weight"] == f"{at}.query.weight" == found.shared[f"{at}.value.weight"]
    assert found.joint[f"{at}.key.weight"] is found.joint[f"{at}.query.weight"]
    found.save(tmp_path / "stats")
    again = mg.open(tmp_path / "stats")
    assert f"{at}.key.weight" not in again
    aligned = align_activations(mg.open(tmp_path / "b"), to=mg.open(tmp_path / "a"), statistics=again)
    assert aligned.notes[-1]["axes"]["residual"]["moved"] > 0
    with pytest.raises(RequestError, match="joint moments take"):
        pair(one, two, halves, memory=1000)
