"""What refusals of recipes tell the user to write, written: the recipe is then taken, or goes on to the merge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers import normal, write_adapter, write_model
from tiny_llamas import llama, llama_arrays

import merganser as mg
from merganser.errors import MerganserError
from merganser.recipe import build, load

Recipe = dict[str, Any]
TWO = [{"model": "a"}, {"model": "b"}]
WEIGHTED = [{"model": "a", "parameters": {"weight": 0.5}}, {"model": "b", "parameters": {"weight": 0.5}}]
OWN = {"method": "linear", "models": WEIGHTED}


def changed(recipe: Recipe, **more: Any) -> Recipe:
    """The recipe with other values; None takes a key out."""
    return {key: value for key, value in (recipe | more).items() if value is not None}


CASES: dict[str, tuple[Recipe, str, Recipe]] = {
    "a key of the own form": (
        {"merge_method": "linear", "models": WEIGHTED, "steps": [{"drop_layers": "1"}]},
        "write method: instead of merge_method:",
        changed(OWN, steps=[{"drop_layers": "1"}]),
    ),
    "no method": ({"models": WEIGHTED}, "write method:", OWN),
    "no method, one model": (
        {"steps": [{"drop_layers": "1"}]},
        "or model:",
        {"model": "a", "steps": [{"drop_layers": "1"}]},
    ),
    "a method that mergekit lacks": (
        {"merge_method": "consensus", "base_model": "base", "models": TWO},
        "write method:",
        {"method": "consensus", "base_model": "base", "models": TWO},
    ),
    "one parameter twice": (
        {"method": "ties", "base_model": "base", "models": TWO, "parameters": {"lambda": 0.5, "scale": 0.5}},
        "give one",
        {"method": "ties", "base_model": "base", "models": TWO, "parameters": {"scale": 0.5}},
    ),
    "statistics that are not taken": (
        {"method": "linear", "models": [WEIGHTED[0] | {"statistics": "s"}, WEIGHTED[1]]},
        "remove the key",
        OWN,
    ),
    "the seed among parameters": (
        {"method": "dare_linear", "base_model": "base", "models": WEIGHTED, "parameters": {"density": 0.5, "seed": 3}},
        "stands at the top of a recipe",
        {"method": "dare_linear", "base_model": "base", "models": WEIGHTED, "parameters": {"density": 0.5}, "seed": 3},
    ),
    "a step that is none": (
        {"model": "a", "steps": [["take", "neurons"]]},
        "expected one step, as in",
        {"model": "a", "steps": [{"take": {"axis": "neurons", "keep": "0-3"}}]},
    ),
    "zeros for another shape": (
        {"method": "linear", "models": [WEIGHTED[0], {"model": "wider"}], "mismatch": {"*": "zero"},
         "parameters": {"weight": 0.5}},
        "use crop, pad, base or skip",
        {"method": "linear", "models": [WEIGHTED[0], {"model": "wider"}], "mismatch": {"*": "crop"},
         "parameters": {"weight": 0.5}},
    ),
    "cropped to a larger shape": (
        {"method": "linear", "models": [{"model": "wider"}, WEIGHTED[0]], "mismatch": {"*": "crop"},
         "parameters": {"weight": 0.5}},
        "use pad, base or skip",
        {"method": "linear", "models": [{"model": "wider"}, WEIGHTED[0]], "mismatch": {"*": "pad"},
         "parameters": {"weight": 0.5}},
    ),
    "filled up to a smaller shape": (
        {"method": "linear", "models": [WEIGHTED[0], {"model": "wider"}], "mismatch": {"*": "pad"},
         "parameters": {"weight": 0.5}},
        "use crop, base or skip",
        {"method": "linear", "models": [WEIGHTED[0], {"model": "wider"}],
         "mismatch": {"*embed_tokens*": "base", "lm_head*": "skip"}, "parameters": {"weight": 0.5}},
    ),
    "an adapter among models": (
        {"method": "linear", "models": [WEIGHTED[0], {"model": "lora"}], "parameters": {"weight": 0.5}},
        "path: base, lora: adapter",
        {"method": "linear", "models": [WEIGHTED[0], {"model": {"path": "b", "lora": "lora"}}],
         "parameters": {"weight": 0.5}},
    ),
    "an adapter among models, as mergekit writes it": (
        {"method": "linear", "models": [WEIGHTED[0], {"model": "lora"}], "parameters": {"weight": 0.5}},
        r"base\+adapter",
        {"merge_method": "linear", "models": [WEIGHTED[0], {"model": "b+lora"}], "parameters": {"weight": 0.5}},
    ),
    "an adapter in a method of changes": (
        {"method": "linear", "models": [WEIGHTED[0], {"model": "lora"}], "parameters": {"weight": 0.5}},
        "such as task_arithmetic",
        {"method": "task_arithmetic", "base_model": "a", "models": [{"model": "lora"}], "parameters": {"weight": 0.5}},
    ),
    "two +": (
        {"merge_method": "linear", "models": [WEIGHTED[0], {"model": "b+lora+x"}], "parameters": {"weight": 0.5}},
        r"write a mapping \{model: ..., lora: ...\}",
        {"method": "linear", "models": [WEIGHTED[0], {"model": {"model": "b", "lora": "lora"}}],
         "parameters": {"weight": 0.5}},
    ),
    "weights that go by the tensor in a median of the whole": (
        {"method": "geometric_median", "parameters": {"scope": "model"}, "models": [
            {"model": "a", "parameters": {"weight": [0.0, 1.0]}}, {"model": "b", "parameters": {"weight": 1}},
        ]},
        'scope "tensor"',
        {"method": "geometric_median", "parameters": {"scope": "tensor"}, "models": [
            {"model": "a", "parameters": {"weight": [0.0, 1.0]}}, {"model": "b", "parameters": {"weight": 1}},
        ]},
    ),
    "models with more layers": (
        {"method": "linear", "models": [WEIGHTED[0], {"model": "deeper"}], "parameters": {"weight": 0.5}},
        "Write slices: with layer ranges of one length",
        {"method": "linear", "parameters": {"weight": 0.5}, "slices": [
            {"sources": [{"model": "a", "layer_range": [0, 4]}, {"model": "deeper", "layer_range": [0, 4]}]}
        ]},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("a", "b", "base")):
        llama(place / name, seed)
    llama(place / "wider", 5, vocab_size=40)
    llama(place / "deeper", 6, num_hidden_layers=5)
    rows, columns = llama_arrays(0)["model.layers.0.mlp.up_proj.weight"].shape
    factors = {"model.layers.0.mlp.up_proj": (normal(rows, 2, seed=1), normal(2, columns, seed=2))}
    write_adapter(place / "lora", factors)
    return place


def planned(recipe: Recipe) -> mg.Weights:
    from merganser.engine.plan import plan_weights

    weights, _ = build(load(recipe))
    plan_weights(weights)
    return weights


@pytest.mark.parametrize("case", CASES)
def test_what_the_message_says_is_taken(case: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    wrong, remedy, right = CASES[case]
    with pytest.raises(MerganserError, match=remedy):
        planned(wrong)
    planned(right)


@pytest.mark.parametrize("fix", [lambda w: w.relabel("other"), None])
def test_two_models_of_one_name_get_names_of_their_own(
    fix: Callable[[mg.Weights], mg.Weights] | None, tmp_path: Path
) -> None:
    from merganser.methods import get

    for place in ("x", "y", "base"):
        write_model(tmp_path / place / "m", {"w": normal(8, 8, seed=len(place))})
    base, one, two = (mg.open(tmp_path / place / "m") for place in ("base", "x", "y"))
    dare = get("dare_linear")
    with pytest.raises(MerganserError, match="names of their own"):
        dare(base, [one, two], weight=1.0, density=0.5)
    if fix is not None:
        dare(base, [one, fix(two)], weight=1.0, density=0.5).compute("w")
        return
    models = [{"model": str(tmp_path / place / "m"), "name": place} for place in ("x", "y")]
    parameters = {"weight": 1.0, "density": 0.5}
    recipe = {"method": "dare_linear", "base_model": str(tmp_path / "base" / "m"), "models": models}
    assert np.isfinite(planned(recipe | {"parameters": parameters}).compute("w")).all()
