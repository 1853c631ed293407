"""Parents that contradict each other, and what one has and another lacks: refused, or named."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from makers import BF16, read_model, write_model
from tiny_llamas import config, llama_arrays

import merganser as mg
from merganser import recipe
from merganser.algebra import axes
from merganser.errors import AlgebraError, RequestError
from merganser.methods import get


def built(text, **options):
    weights, _ = recipe.build(recipe.load(text), **options)
    return weights


# Configs that contradict each other -----------------------------------------------------------------------------------


def two(home, change, **sizes):
    """Two models whose configs differ by `change`; their tensors."""
    found = {}
    for seed, (name, more) in enumerate({"a": {}, "b": change}.items()):
        found[name] = llama_arrays(seed, **sizes)
        write_model(home / name, found[name], config(**sizes) | more)
    return found


LINEAR = "models: [{model: a, parameters: {weight: 0.5}}, {model: b, parameters: {weight: 0.5}}]\n"
SLICES = """slices:
- sources: [{model: a, layer_range: [0, 2]}]
- sources: [{model: b, layer_range: [2, 4]}]
"""
WAYS = {
    "linear": f"method: linear\n{LINEAR}",
    "slerp": "method: slerp\nbase_model: a\nmodels: [{model: b}]\nparameters: {t: 0.5}\n",
    "ties": f"method: ties\nbase_model: a\n{LINEAR.replace('{model: a, parameters: {weight: 0.5}}, ', '')}",
    "slices": f"method: passthrough\n{SLICES}",
    "a lent config": "method: linear\nbase_model: b\nmodels: [{model: a}]\n",
}
MERGEKIT = {
    "linear": f"merge_method: linear\n{LINEAR}",
    "slerp": "merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}]\nparameters: {t: 0.5}\n",
    "slices": f"merge_method: passthrough\n{SLICES}",
}
MEANT = [
    {"rope_theta": 5e5},
    {"rms_norm_eps": 1e-3},
    {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
]
BROKEN = [{"model_type": "mistral"}, {"hidden_act": "relu"}, {"partial_rotary_factor": 0.5}]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("change", MEANT + BROKEN, ids=lambda change: next(iter(change)))
def test_contradicting_parents_are_refused_and_the_way_out_works(tmp_path, monkeypatch, way, change):
    monkeypatch.chdir(tmp_path)
    two(tmp_path, change)
    (key,) = change
    with pytest.raises(
        RequestError, match=rf"{key} is .* in '[ab]' and .* in '[ab]'.* write allow: \[(.*)\]"
    ) as told:
        built(WAYS[way])
    wanted = re.search(r"allow: \[.*\]", str(told.value))[0]
    weights = built(f"{WAYS[way]}{wanted}\n")
    note = next(note for note in weights.notes if note["step"] == "parents differ")
    assert note["in config.json"][0].startswith(f"{key} is ")
    weights.save(tmp_path / "out", sync=False)
    said = json.loads((tmp_path / "out" / "merganser.json").read_text())
    assert note in said["notes"]


@pytest.mark.parametrize("way", MERGEKIT)
def test_in_mergekits_form_what_may_be_meant_runs_and_is_named(tmp_path, monkeypatch, way):
    monkeypatch.chdir(tmp_path)
    for change in MEANT:
        two(tmp_path, change)
        (note,) = built(MERGEKIT[way]).notes
        assert note["step"] == "parents differ"
        assert next(iter(change)) in note["in config.json"][0]
        assert note["the result has that of"] == "a"
    for change in BROKEN:
        two(tmp_path, change)
        with pytest.raises(RequestError, match="Tensors of such models do not mean the same"):
            built(MERGEKIT[way])
        built(f"{MERGEKIT[way]}allow: {next(iter(change))}\n")


def test_the_same_matrices_cut_into_other_heads_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    two(tmp_path, {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 2})
    for way in (*WAYS.values(), *MERGEKIT.values()):
        with pytest.raises(RequestError, match=r"head_dim is .*num_attention_heads is "):
            built(way)


def test_the_order_of_models_and_older_spellings_change_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    new = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "dtype": "float32"}
    two(tmp_path, new | {"max_position_embeddings": 9, "transformers_version": "5.0", "use_cache": False})
    for way in (*WAYS.values(), *MERGEKIT.values()):
        assert not built(way).notes


def test_contradicting_parents_in_python(tmp_path):
    arrays = two(tmp_path, {"rope_theta": 77.0})
    a, b = mg.open(tmp_path / "a"), mg.open(tmp_path / "b")
    joined = {
        "sum": lambda b: 0.5 * a + 0.5 * b,
        "difference": lambda b: b - a,
        "mean": lambda b: mg.mean(a, b),
        "slerp": lambda b: mg.slerp(a, b, 0.5),
        "a method": lambda b: get("linear")(None, [a, b]),
        "a lent config": lambda b: get("linear")(b, [a, a.relabel("c")]),
        "override": lambda b: a.override(b.select("*norm*")),
        "stack": lambda b: axes.stack([(a, [0]), (b, [1])]),
        "another base": lambda b: b + (a - mg.open(tmp_path / "a")),
    }
    for way, make in joined.items():
        with pytest.raises(AlgebraError, match=r"rope_theta is 77.0 in 'b'|rope_theta is 10000.0 in 'a'"):
            make(b)
        assert make(b.allow("rope_theta")), way
    found = mg.compute(joined["sum"](b.allow("rope_theta")), "model.norm.weight")
    np.testing.assert_allclose(
        found, (arrays["a"]["model.norm.weight"] + arrays["b"]["model.norm.weight"]) / 2
    )
    with pytest.raises(RequestError, match="did you mean 'rope_theta'"):
        a.allow("rope_teta")


@pytest.mark.parametrize(
    ("allow", "message"),
    [
        ("[rope_thetta]", "did you mean 'rope_theta'"),
        ("{a: 1}", "expected a list of keys"),
        ("[3]", "expected a list"),
    ],
)
def test_an_allowance_that_says_nothing(tmp_path, monkeypatch, allow, message):
    monkeypatch.chdir(tmp_path)
    two(tmp_path, {})
    with pytest.raises(RequestError, match=f"allow: .*{message}"):
        built(f"{WAYS['linear']}allow: {allow}\n")


# Precisions -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "dtype"), [(BF16, BF16), (np.float16, np.dtype(np.float16))])
def test_parents_of_two_precisions_give_one_and_the_report_says_which(tmp_path, first, dtype):
    second = np.float16 if first is BF16 else BF16
    arrays = llama_arrays(1, num_hidden_layers=2)
    norms = {name: array.astype(np.float32) for name, array in arrays.items() if "norm" in name}
    for name, kind in (("a", first), ("b", second)):
        kept = {n: norms.get(n, array.astype(kind)) for n, array in arrays.items()}
        write_model(tmp_path / name, kept, config(num_hidden_layers=2))
    a, b = mg.open(tmp_path / "a"), mg.open(tmp_path / "b")
    made = axes.stack([(a, [0, 1]), (b, [1])])
    report = made.save(tmp_path / "out", sync=False)
    found = read_model(tmp_path / "out")
    assert len(found) == len(arrays) + 9
    assert {array.dtype for name, array in found.items() if "norm" not in name} == {dtype}
    assert {array.dtype for name, array in found.items() if "norm" in name} == {np.dtype(np.float32)}
    (note,) = [note for note in report.notes if note["step"] == "dtype"]
    names = {BF16: "bfloat16", np.dtype(np.float16): "float16"}
    assert note["written in"] == f"{names[dtype]}, as a is stored"
    assert note["stored otherwise"] == {"b": names[np.dtype(second)]}
    report = made.save(tmp_path / "out", sync=False, overwrite=True, dtype="float32")
    assert {array.dtype for array in read_model(tmp_path / "out").values()} == {np.dtype(np.float32)}
    assert not report.notes
