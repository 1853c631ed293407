"""Routes through the layers of two models, as slices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from toy_models import written

from merganser.errors import RequestError
from merganser.recipe import build, load
from merganser.search import CallableFitness, Space
from merganser.search.route import EmptyRoute
from merganser.search.run import search_into

pytestmark = pytest.mark.models
SIZES = {
    "vocab_size": 13,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    for seed, name in enumerate(("first", "second")):
        torch.manual_seed(seed)
        LlamaForCausalLM(LlamaConfig(**SIZES, rms_norm_eps=1e-12)).save_pretrained(tmp_path / name)
    return tmp_path


def opened(place: Path, **route: object) -> Space:
    document = {"method": "passthrough", "slices": {"route": {"models": ["first", "second"], **route}}}
    return Space.open(written(place, document))


def taken(space: Space, layers: set[tuple[int, str, int]], **more: float) -> dict:
    values = {one.key: False if one.choices else 1.0 for one in space.dimensions}
    values |= {f"route.take[{repeat}][{model}][{number}]": True for repeat, model, number in layers}
    return values | more


def test_indicators_become_runs_of_layers(place: Path) -> None:
    space = opened(place, repeats=2, start="second")
    assert len(space.dimensions) == 8
    start = space.values([one.start for one in space.dimensions])
    assert space.plain(start)[0]["slices"] == [{"sources": [{"model": "second", "layer_range": [0, 2]}]}]
    route = taken(space, {(0, "first", 0), (0, "first", 1), (0, "second", 1), (1, "first", 1)})
    assert [one["sources"][0] for one in space.plain(route)[0]["slices"]] == [
        {"model": "first", "layer_range": [0, 2]},
        {"model": "second", "layer_range": [1, 2]},
        {"model": "first", "layer_range": [1, 2]},
    ]
    weights, _ = build(space.recipe(route))
    assert "model.layers.3.mlp.up_proj.weight" in weights
    assert "model.layers.4.mlp.up_proj.weight" not in weights
    with pytest.raises(EmptyRoute):
        space.plain(taken(space, set()))


def test_folded_scales_are_scaled_inputs(place: Path) -> None:
    """Against the layers run one after the other, with the stream multiplied between them."""
    import torch
    from transformers import LlamaForCausalLM

    from merganser.running import open_model

    space = opened(place, scale=[0.25, 4])
    # Slots: first 0, first 1, second 0, second 1; the route takes 0, 2, 3.
    route = taken(
        space,
        {(0, "first", 0), (0, "second", 0), (0, "second", 1)},
        **{"route.scale[0][2]": 2.5, "route.scale[2][3]": 0.4},
    )
    weights, _ = build(space.recipe(route))
    model = open_model(weights)
    parts = {name: LlamaForCausalLM.from_pretrained(place / name).eval() for name in ("first", "second")}
    ids = torch.arange(12)[None]
    with torch.no_grad():
        found = model.logits(ids, torch.ones_like(ids))
        stream = parts["first"].model.embed_tokens(ids)
        turned = parts["first"].model.rotary_emb(stream, torch.arange(12)[None])
        mask = torch.full((12, 12), float("-inf")).triu(1)[None, None]
        for name, number, by in (("first", 0, 1.0), ("second", 0, 2.5), ("second", 1, 0.4)):
            layer = parts[name].model.layers[number]
            result = layer(stream * by, attention_mask=mask, position_embeddings=turned)
            stream = result[0] if isinstance(result, tuple) else result
        wanted = parts["second"].lm_head(parts["second"].model.norm(stream))
        plain = build(space.recipe(taken(space, {(0, "first", 0), (0, "second", 0), (0, "second", 1)})))[0]
        unscaled = open_model(plain).logits(ids, torch.ones_like(ids))
    assert torch.allclose(found, wanted, atol=2e-5)
    assert not torch.allclose(unscaled, wanted, atol=1e-3)


def test_a_route_is_found_and_rebuilt(place: Path) -> None:
    """The fitness asks for the first model's layers in order: slots 0 and 1, and no other."""

    def fitness(weights) -> float:
        names = [name for name in weights if name.endswith("mlp.up_proj.weight")]
        layers = [weights.compute(name) for name in names]
        score = -float(abs(len(layers) - len(wanted)))
        for layer, one in zip(layers, wanted, strict=False):
            score += float(np.array_equal(layer, one))
        return score

    own, _ = build(load({"method": "passthrough", "models": [{"model": str(place / "first")}]}))
    wanted = [own.compute(f"model.layers.{k}.mlp.up_proj.weight") for k in range(2)]
    document = {
        "method": "passthrough",
        "slices": {"route": {"models": ["first", "second"], "start": "second"}},
    }
    out = place / "route.yaml"
    goal = CallableFitness(fitness, "first's layers")
    found = search_into(written(place, document), goal, out, by="grid", evaluations=16)
    assert found.best.score.fitness == 2.0
    assert found.failed == 1  # the route without a layer
    assert yaml.safe_load(out.read_text())["slices"] == [
        {"sources": [{"model": "first", "layer_range": [0, 2]}]}
    ]
    assert fitness(build(load(out))[0]) == 2.0


@pytest.mark.parametrize(
    ("route", "told"),
    [
        ({"models": []}, "route.models: expected a list"),
        ({"models": ["first", "first"]}, "listed twice"),
        ({"repeats": 0}, "repeats: expected a whole number"),
        ({"start": "frist"}, "none of the models; did you mean 'first'"),
        ({"scale": [2, 3]}, "0 < low < 1 < high"),
        ({"scale": [0.5, float("inf")]}, "0 < low < 1 < high"),
        ({"layers": 3}, "route.layers: unknown key"),
    ],
)
def test_wrong_routes_are_told(place: Path, route: dict, told: str) -> None:
    with pytest.raises(RequestError, match=told):
        opened(place, **route)


def test_scales_need_a_family_that_they_fold_into(place: Path) -> None:
    from transformers import BertConfig, BertModel

    sizes = {
        key: SIZES[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    }
    BertModel(BertConfig(**sizes, num_attention_heads=2)).save_pretrained(place / "first")
    with pytest.raises(RequestError, match="known of llama, mistral, qwen2, qwen3, not of bert"):
        opened(place, models=["first"], scale=[0.5, 2])
    assert len(opened(place, models=["first"]).dimensions) == 2
