"""Learned coefficients: gradients against differences, and what learning does to scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from merganser.errors import NonFiniteError, RequestError
from merganser.recipe import build, load
from merganser.search import SuiteFitness, learn
from merganser.search.learning import learn_into
from merganser.search.vector_recipe import VectorRecipe

pytestmark = pytest.mark.models
PLUS = {"method": "ties", "parameters": {"election": "unweighted", "normalize": False, "density": 0.5}}


def document(folder: Path, **changes: object) -> Path:
    from tiny_classifiers import RECIPE, recipe

    return recipe(folder, "merge.yaml", {**RECIPE, **changes})


def score(folder: Path, made: object, suite: str = "val") -> float:
    weights, _ = build(load(made))
    fitness = SuiteFitness(folder / f"{suite}.yaml")
    return fitness.score(fitness.measure(weights))


def at(folder: Path, weight: float, **changes: object) -> Path:
    """The recipe with one weight for all models."""
    return document(folder, parameters={**changes.pop("parameters", {}), "weight": weight}, **changes)  # type: ignore[dict-item]


@pytest.mark.parametrize(("changes", "rate"), [({}, 0.01), (PLUS, 0.05)], ids=["adamerging", "adamerging++"])
def test_adamerging_raises_the_mean_score_without_reading_labels(
    tiny: Path, changes: dict, rate: float
) -> None:
    out = tiny / "learned.yaml"
    before = score(tiny, at(tiny, 0.1, **changes))
    settings = {"coefficients": "task", "start": 0.1, "rate": rate, "steps": 20, "batch": 64}
    found = learn_into(document(tiny, **changes), tiny / "bare.yaml", out, **settings)
    assert found.losses[-1] < found.losses[0] - 0.05
    assert score(tiny, out) > before + 0.05
    values = [model[None] for model in found.coefficients.values()]
    assert min(values) >= 0.0
    assert 0.1 < max(values) <= 1.0
    assert found.difference < 1e-5


def test_adamerging_by_tensor_keeps_coefficients_in_bounds(tiny: Path) -> None:
    found = learn(document(tiny), tiny / "bare.yaml", steps=4, rate=0.5)
    values = [list(model.values()) for model in found.coefficients.values()]
    assert [len(one) for one in values] == [37, 37]
    assert min(map(min, values)) == 0.0
    assert max(map(max, values)) == 1.0
    assert found.losses[-1] < found.losses[0]


def test_what_was_learned_is_what_the_recipe_rebuilds(tiny: Path) -> None:
    from merganser.running import live_tensors
    from merganser.search.coefficients import Vectors
    from merganser.search.groups import float_names, groups

    out = tiny / "learned.yaml"
    found = learn_into(document(tiny), tiny / "val.yaml", out, by="atlas", coefficients="layer", steps=5)
    source = VectorRecipe.open(document(tiny))
    base, taus, zero = source.vectors()
    grouped = groups(float_names(zero), "layer")
    vectors = Vectors(base, taus, grouped)
    import torch

    raw = torch.tensor(
        [[values[group] for group in vectors.groups] for values in found.coefficients.values()]
    )
    merged = vectors.merged(raw)
    rebuilt = live_tensors(build(load(out))[0])
    assert set(rebuilt) == set(base)
    for name, tensor in merged.items():
        assert np.allclose(tensor.numpy(), rebuilt[name], rtol=0, atol=1e-6), name
    weight = yaml.safe_load(out.read_text())["models"][0]["parameters"]["weight"]
    assert set(weight) == {group.pattern for group in vectors.groups}


@pytest.mark.parametrize("entropy", [True, False])
def test_gradients_are_those_of_differences(tiny: Path, entropy: bool) -> None:
    import torch

    from merganser.evaluate import Suite
    from merganser.recipe import as_saved
    from merganser.running import open_model
    from merganser.search.coefficients import Running, Vectors
    from merganser.search.groups import float_names, groups
    from merganser.search.objectives import Objective

    base, taus, zero = VectorRecipe.open(document(tiny)).vectors()
    vectors = Vectors(base, taus, groups(float_names(zero), "layer"))
    model = open_model(as_saved(zero, "float32"))
    model.module.double()
    vectors.base = {name: one.double() for name, one in vectors.base.items()}
    vectors.vectors = [{name: one.double() for name, one in vector.items()} for vector in vectors.vectors]
    running = Running(model)
    task = Suite.open(tiny / "val.yaml").tasks[0]
    task.linear.__dict__["weight"] = task.linear.weight.astype(np.float64)
    task.linear.__dict__["bias"] = task.linear.bias.astype(np.float64)
    objective = Objective(task, model, entropy)

    def loss(coefficients: torch.Tensor) -> torch.Tensor:
        return running(vectors.merged(coefficients), lambda: objective(range(16)))

    generator = torch.Generator().manual_seed(0)
    shape = (2, len(vectors.groups))
    start = torch.rand(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    loss(start).backward()
    for place in ((0, 0), (0, 5), (1, 3), (1, 4)):
        step = torch.zeros(shape, dtype=torch.float64)
        step[place] = 1e-5
        with torch.no_grad():
            difference = float(loss(start + step) - loss(start - step)) / 2e-5
        assert float(start.grad[place]) == pytest.approx(difference, rel=1e-4, abs=1e-8)


def test_atlas_with_labels_beats_one_coefficient(tiny: Path) -> None:
    out = tiny / "learned.yaml"
    found = learn_into(document(tiny), tiny / "val.yaml", out, by="atlas", steps=20, batch=64)
    assert found.losses[-1] < found.losses[0] / 2
    assert score(tiny, out, "test") > score(tiny, at(tiny, 0.3), "test") - 0.02
    bare = learn(document(tiny), tiny / "bare.yaml", by="atlas", objective="entropy", steps=5)
    assert bare.losses[-1] < bare.losses[0]


def test_self_positioning_moves_on_the_probe_set(tiny: Path) -> None:
    found = learn(document(tiny), tiny / "val.yaml", by="self_positioning", steps=15, batch=64)
    assert np.mean(found.losses[-5:]) < np.mean(found.losses[:5])
    values = [model[None] for model in found.coefficients.values()]
    assert all(value > 0 for value in values)
    assert sum(values) != pytest.approx(1.0, abs=1e-3)  # the scale is free


def test_pairs_and_language_models_have_losses(tiny: Path) -> None:
    """InfoNCE and CoSENT against their sums by hand, and a language model's against transformers'."""
    import torch

    from merganser.search.objectives import contrastive, ordered

    draws = np.random.default_rng(0)
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in draws.standard_normal((2, 4, 6)))
    by_hand = 0.0
    for x, y in ((a, b), (b, a)):
        cosines = x @ y.T / 0.05
        by_hand += np.mean([np.log(np.exp(row - row[k]).sum()) for k, row in enumerate(cosines)]) / 2
    assert float(contrastive(torch.tensor(a), torch.tensor(b))) == pytest.approx(by_hand)
    cosines, scores = draws.standard_normal(5), np.array([1.0, 2.0, 2.0, 0.0, 3.0])
    total = 1 + sum(
        np.exp((cosines[j] - cosines[i]) / 0.05) for i in range(5) for j in range(5) if scores[i] > scores[j]
    )
    assert float(ordered(torch.tensor(cosines), torch.tensor(scores))) == pytest.approx(np.log(total))
    rows = [{"text_a": "w1 w2 w3", "text_b": "w1 w2 w4"}, {"text_a": "w9", "text_b": "w9 w8"}] * 4
    (tiny / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    suite = {
        "name": "probe",
        "tasks": [{"name": "p", "kind": "similarity", "data": "pairs.jsonl", "score": None}],
    }
    (tiny / "pairs.yaml").write_text(yaml.safe_dump(suite))
    found = learn(document(tiny), tiny / "pairs.yaml", by="self_positioning", steps=3, batch=4)
    assert len(found.losses) == 3
    with pytest.raises(RequestError, match="entropy is of classes"):
        learn(document(tiny), tiny / "pairs.yaml", steps=1)


def test_a_language_models_loss_is_transformers(tmp_path: Path) -> None:
    import torch
    from tiny_classifiers import tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    from merganser.evaluate import Suite
    from merganser.running import open_model
    from merganser.search.objectives import Objective

    made = tokenizer()
    made.bos_token = "[CLS]"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(made), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "m")
    made.save_pretrained(tmp_path / "m")
    texts = ["w1 w2 w3", "w4 w5"]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    task = {"name": "lm", "kind": "perplexity", "data": "t.jsonl"}
    suite = Suite.open({"name": "s", "tasks": [task]}, folder=tmp_path)
    found = Objective(suite.tasks[0], open_model(tmp_path / "m"), False)([0, 1])
    total, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([[2, *made(text, add_special_tokens=False)["input_ids"]]])
        total += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    assert float(found) == pytest.approx(total / count, rel=1e-5)


def test_same_seed_same_bytes(tiny: Path) -> None:
    texts = []
    for name in ("one", "two"):
        out = tiny / "new" / f"{name}.yaml"
        learn_into(document(tiny), tiny / "bare.yaml", out, steps=3, seed=5)
        texts.append(out.read_bytes())
    assert texts[0] == texts[1]
    other = learn(document(tiny), tiny / "bare.yaml", steps=3, seed=6)
    assert other.losses != learn(document(tiny), tiny / "bare.yaml", steps=3, seed=5).losses


@pytest.mark.parametrize(
    ("changes", "settings", "told"),
    [
        ({"method": "linear"}, {}, "coefficients are learned of task vectors"),
        ({"method": "ties"}, {}, "not linear in its weights"),
        ({"parameters": {"normalize": True}}, {}, "not linear in its weights"),
        ({}, {"by": "adamergin"}, "did you mean 'adamerging'"),
        ({}, {"steps": 0}, "steps: expected a whole number from 1"),
        ({}, {"rate": 0.0}, "rate: expected a number above 0"),
        ({}, {"objective": "labels"}, "adamerging learns from entropy"),
        ({}, {"by": "self_positioning", "coefficients": "layer"}, "coefficients is task"),
        ({}, {"coefficients": "row"}, "coefficients: 'row' is unknown"),
        ({}, {"by": "atlas", "steps": 1}, "no column 'label'"),
        ({"steps": ["fold_norms"]}, {}, "without steps"),
    ],
)
def test_wrong_requests_are_told(tiny: Path, changes: dict, settings: dict, told: str) -> None:
    with pytest.raises(RequestError, match=told):
        learn_into(document(tiny, **changes), tiny / "bare.yaml", tiny / "out.yaml", **settings)
    assert not (tiny / "out.yaml").exists()


def test_what_cannot_fit_is_refused_before_anything_is_computed(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from merganser.cli import run
    from merganser.search import vector_recipe

    base, taus, _ = VectorRecipe.open(document(tiny)).vectors()
    model = 4 * sum(array.size for array in base.values())
    monkeypatch.setattr(vector_recipe, "resident_bytes", lambda: 1000)
    source = VectorRecipe.open(document(tiny))
    source.check_memory(1000 + (4 + len(taus)) * model)
    source.check_memory(None)

    def never(self: object, document: object) -> None:
        raise AssertionError("computed")

    monkeypatch.setattr(VectorRecipe, "computed", never)
    with pytest.raises(RequestError, match=r"is too little to learn.*6 times the model in f32"):
        learn(document(tiny), tiny / "bare.yaml", memory=1000 + (4 + len(taus)) * model - 1)
    words = ["learn", str(document(tiny)), str(tiny / "bare.yaml"), str(tiny / "out.yaml"), "--memory", "1kB"]
    assert run(words) == 2
    assert "--memory 0 MiB is too little" in capsys.readouterr().err and not (tiny / "out.yaml").exists()


def test_merged_tensors_and_gradients_are_those_of_plain_operations() -> None:
    """Bit for bit; a vector has the tensors that it changes, and no others."""
    import torch

    from merganser.search.coefficients import Vectors
    from merganser.search.vector_recipe import _less

    draw = np.random.default_rng(0)
    base = {name: draw.standard_normal((5, 7)).astype(np.float32) for name in "abc"}
    models = [
        {n: base[n] + (n in changed) * np.float32(0.3) * base["c"] for n in base} for changed in ("ab", "b")
    ]
    wanted = [
        [model[n] - base[n] for n in changed] for model, changed in zip(models, ("ab", "b"), strict=True)
    ]
    taus = [_less(model, base, base) for model in models]
    assert [list(tau) for tau in taus] == [["a", "b"], ["b"]]
    assert all(
        np.array_equal(x, y)
        for tau, one in zip(taus, wanted, strict=True)
        for x, y in zip(tau.values(), one, strict=True)
    )
    made = Vectors(base, taus, dict.fromkeys(base))
    theta = {name: torch.from_numpy(array) for name, array in base.items()}
    one, two = ({name: torch.from_numpy(array) for name, array in tau.items()} for tau in taus)

    def plain(c: torch.Tensor) -> dict[str, torch.Tensor]:
        b = c[0, 0] * one["b"] + c[1, 0] * two["b"]
        return {"a": theta["a"] + c[0, 0] * one["a"], "b": theta["b"] + b, "c": theta["c"]}

    found = []
    for function in (plain, made.merged):
        column = torch.tensor([[0.3], [-1.7]], requires_grad=True)
        tensors = function(column)
        sum(tensor.sin().sum() for tensor in tensors.values()).backward()
        found.append((tensors, column.grad))
    assert all(torch.equal(found[0][0][name], found[1][0][name]) for name in base)
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("", "has no rows"),
        ('{"tekst": "a"}', "no column 'text'; did you mean 'tekst'"),
        (None, "there is no"),
    ],
    ids=["empty", "column", "missing"],
)
def test_data_are_checked_before_models_are_opened(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, data: str | None, told: str
) -> None:
    def never(self: object) -> None:
        raise AssertionError("models were opened")

    suite = yaml.safe_load((tiny / "bare.yaml").read_text())
    suite["tasks"][-1]["data"] = "changed.jsonl"
    (tiny / "changed.yaml").write_text(yaml.safe_dump(suite))
    if data is not None:
        (tiny / "changed.jsonl").write_text(data)
    monkeypatch.setattr(VectorRecipe, "vectors", never)
    with pytest.raises(RequestError, match=told):
        learn(document(tiny), tiny / "changed.yaml", by="adamerging")


def test_a_model_that_gives_nan_is_told(tiny: Path) -> None:
    from makers import read_file, write_file

    tensors = {name: array.copy() for name, array in read_file(tiny / "sign" / "model.safetensors").items()}
    next(iter(tensors.values())).reshape(-1)[0] = np.nan
    write_file(tiny / "sign" / "model.safetensors", tensors)
    with pytest.raises(NonFiniteError):
        learn(document(tiny), tiny / "bare.yaml", steps=1)


def test_batches_pass_through_all_rows() -> None:
    from merganser.search.objectives import Batches

    data = Batches(10, 4, (0, 0))
    batches = [data.next() for _ in range(40)]
    for first, second in zip(batches[::2], batches[1::2], strict=True):
        assert len(set(first + second)) == 8  # a pass, without the two rows that are left over
    assert {row for batch in batches for row in batch} == set(range(10))
    assert Batches(3, 4, (0, 0)).next() != []
