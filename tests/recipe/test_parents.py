"""Parents that contradict each other, and what one has and another lacks: refused, or named."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from makers import BF16, normal, read_model, write_model
from tiny_llamas import config, llama_arrays

import merganser as mg
from merganser import recipe
from merganser.algebra import axes
from merganser.algebra.prefixes import prefix_between, trainer_prefixes, without_trainers
from merganser.compare import diagnose
from merganser.errors import AlgebraError, RequestError
from merganser.methods import get
from merganser.recipe.build import open_models


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
        assert len(make(b.allow("rope_theta"))), way
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


def test_diagnose_and_the_parents_of_a_search_know_of_contradictions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    two(tmp_path, {"rope_theta": 5.0, "hidden_act": "relu"})
    found = diagnose([mg.open("a"), mg.open("b")])
    assert [(row["key"], row["a"], row["b"], row["broken"]) for row in found["contradictions"]] == [
        ("hidden_act", "a", "b", True),
        ("rope_theta", "a", "b", False),
    ]
    assert found["advice"][0]["about"] == "contradicting configs"
    assert "rope_theta is 10000.0 in a and 5.0 in b" in found["advice"][0]["because"]
    assert diagnose([mg.open("a"), mg.open("a").relabel("c")])["contradictions"] == []
    text = f"{WAYS['linear']}allow: [rope_theta, hidden_act]\n"
    mg.mean(*open_models(recipe.load(text)))
    with pytest.raises(RequestError, match="write allow"):
        open_models(recipe.load(WAYS["linear"]))


# What only one of them has --------------------------------------------------------------------------------------------


BIASES = ("q_proj.bias", "k_proj.bias", "v_proj.bias")


@pytest.fixture
def lacking(tmp_path, monkeypatch):
    """`plain`, and fine-tunes of it with biases, with a value head, and as a classifier; their tensors."""
    monkeypatch.chdir(tmp_path)
    found = {name: llama_arrays(seed) for seed, name in enumerate(("plain", "biased", "valued", "labelled"))}
    sizes = dict(zip(BIASES, (8, 4, 4), strict=True))
    for k in range(4):
        for seed, (bias, size) in enumerate(sizes.items()):
            found["biased"][f"model.layers.{k}.self_attn.{bias}"] = normal(size, seed=10 * k + seed)
    found["valued"]["v_head.summary.weight"] = normal(1, 6)
    del found["labelled"]["lm_head.weight"]
    found["labelled"]["score.weight"] = normal(3, 6)
    for name, arrays in found.items():
        write_model(tmp_path / name, arrays, config() | {"attention_bias": name == "biased"})
    return found


def ways(first, second):
    """Merges of two models, in our form: names come from the first."""
    return {
        "linear": f"method: linear\nmodels: [{{model: {first}}}, {{model: {second}}}]\n",
        "task arithmetic": f"method: task_arithmetic\nbase_model: {first}\nmodels: [{{model: {second}}}]\n",
        "slerp": f"method: slerp\nbase_model: {first}\nmodels: [{{model: {second}}}]\nparameters: {{t: 0.5}}\n",
        "multislerp": f"method: multislerp\nmodels: [{{model: {first}}}, {{model: {second}}}]\n",
    }


@pytest.mark.parametrize("way", ["linear", "task arithmetic", "slerp", "multislerp"])
@pytest.mark.parametrize("other", ["biased", "valued"])
def test_what_the_first_lacks_is_an_error_and_the_ways_out_work(lacking, way, other):
    text = ways("plain", other)[way]
    extra = [name for name in lacking[other] if name not in lacking["plain"]]
    with pytest.raises(
        RequestError, match=rf"'{other}' has {len(extra)} tensors? that 'plain' lacks .*{extra[0]}"
    ) as told:
        built(text)
    (skipping,) = re.findall(r"mismatch: \{[^}]*\}", str(told.value))
    weights = built(f"{text}{skipping}\n")
    assert set(weights) == set(lacking["plain"])
    assert weights.notes[-1]["only in a model, left out"] == sorted(f"{name} of {other}" for name in extra)
    assert ("list" in str(told.value)) == (way == "linear")
    with pytest.raises(RequestError, match="the result would be without"):
        built(f"{text}mismatch: error\n")


def test_zeros_may_stand_for_biases_that_a_model_lacks(lacking):
    text = ways("biased", "plain")["linear"]
    with pytest.raises(RequestError, match=r"'plain' lacks 12 of the .*skip, base, crop, pad or zero"):
        built(text)
    plain, biased = lacking["plain"], lacking["biased"]
    for word, share in (("zero", 0.5), ("base", 1.0), ("skip", 1.0)):
        weights = built(f"{text}mismatch: {{'*bias': {word}}}\n")
        assert set(weights) == set(biased)
        for name, array in biased.items():
            due = (array + plain[name]) / 2 if name in plain else share * array
            np.testing.assert_allclose(mg.compute(weights, name), due, rtol=1e-5, atol=1e-6, err_msg=name)
    weights = built(
        "method: task_arithmetic\nbase_model: biased\nmodels: [{model: plain}]\nmismatch: {'*bias': zero}\n"
    )
    assert not mg.compute(weights, "model.layers.2.self_attn.q_proj.bias").any()
    with pytest.raises(RequestError, match="zero stands for a tensor that is missing"):
        write_model(Path("wide"), llama_arrays(7, vocab_size=15), config(vocab_size=15))
        built(f"{ways('plain', 'wide')['linear']}mismatch: zero\n")


def test_layers_with_and_without_biases_are_stacked_once_all_have_them(lacking):
    slices = SLICES.replace("model: a", "model: FIRST").replace("model: b", "model: SECOND")
    for first, second in (("plain", "biased"), ("biased", "plain")):
        text = slices.replace("FIRST", first).replace("SECOND", second)
        with pytest.raises(
            RequestError, match=r"'biased.*' has biases in .*q_proj.* and 'plain.*' has none there"
        ):
            built(f"method: passthrough\n{text}")
        filled = (
            "name: filled\nmethod: linear\nmodels: [{model: biased, parameters: {weight: 0}}, {model: plain}]\n"
            f"mismatch: {{'*.bias': zero}}\n---\nmethod: passthrough\n{text.replace('plain', 'filled')}"
        )
        weights = built(filled)
        assert set(weights) == set(lacking["biased"])
        k, other = (0, 2) if first == "plain" else (2, 0)
        assert not mg.compute(weights, f"model.layers.{k}.self_attn.v_proj.bias").any()
        for name in (
            f"model.layers.{k}.self_attn.v_proj.weight",
            f"model.layers.{other}.self_attn.v_proj.bias",
        ):
            home = "plain" if str(k) in name else "biased"
            np.testing.assert_array_equal(mg.compute(weights, name), lacking[home][name])


def test_a_classifier_among_language_models(lacking):
    for first, second in (("plain", "labelled"), ("labelled", "plain")):
        text = ways(first, second)["linear"]
        with pytest.raises(RequestError, match=r"lm_head\.weight|score\.weight"):
            built(text)
        weights = built(f"{text}mismatch: {{lm_head*: skip, score*: skip}}\n")
        assert set(weights) == set(lacking[first])
        name = "score.weight" if first == "labelled" else "lm_head.weight"
        np.testing.assert_array_equal(mg.compute(weights, name), lacking[first][name])


@pytest.mark.parametrize("other", ["biased", "valued"])
def test_in_mergekits_form_names_come_from_the_first_and_the_report_says_what_is_left_out(
    lacking, other, tmp_path
):
    extra = [name for name in lacking[other] if name not in lacking["plain"]]
    listed = f"{{model: {other}, parameters: {{weight: 1}}}}]\n"
    for text in (
        f"merge_method: linear\nmodels: [{{model: plain, parameters: {{weight: 1}}}}, {listed}",
        f"merge_method: task_arithmetic\nbase_model: plain\nmodels: [{listed}",
    ):
        weights = built(text)
        assert set(weights) == set(lacking["plain"])
        (note,) = weights.notes
        assert note == {"step": "left out", "only some models have": [f"{name} of {other}" for name in extra]}
    weights.save(tmp_path / "out", sync=False)
    assert note in json.loads((tmp_path / "out" / "merganser.json").read_text())["notes"]


def test_constants_that_only_one_has_are_nobodys_business(lacking):
    speeds = np.array([1.0, 0.5], np.float32)
    old = {f"model.layers.{k}.self_attn.rotary_emb.inv_freq": speeds for k in range(4)}
    write_model(Path("old"), lacking["biased"] | old, config() | {"attention_bias": True})
    for first, second in (("biased", "old"), ("old", "biased")):
        for text in ways(first, second).values():
            weights = built(text)
            assert (next(iter(old)) in weights) == (first == "old")
            assert not weights.notes


def test_a_policy_for_everything_does_not_make_a_half_merged_model(lacking, tmp_path):
    swapped = {name.replace("self_attn", "attention"): array for name, array in lacking["plain"].items()}
    write_model(tmp_path / "swapped", swapped, config())
    text = ways("plain", "swapped")["linear"]
    for word in ("skip", "base"):
        with pytest.raises(
            RequestError, match=r"would leave 'swapped' out of 16 of the 39 .*its names differ"
        ) as told:
            built(f"{text}mismatch: {word}\n")
        (meant,) = re.findall(r"mismatch: \{[^}]*\}", str(told.value))
        weights = built(f"{text}{meant[:-1]}, '*attention*': skip}}\n")
        np.testing.assert_array_equal(
            mg.compute(weights, "model.layers.1.self_attn.q_proj.weight"),
            lacking["plain"]["model.layers.1.self_attn.q_proj.weight"],
        )


# Prefixes -------------------------------------------------------------------------------------------------------------


TRAINERS = {
    "compiled": lambda name: f"_orig_mod.{name}",
    "compiled inside": lambda name: name.replace("layers.1.", "layers.1._orig_mod."),
    "data parallel": lambda name: f"module.{name}",
    "peft": lambda name: f"base_model.model.{name}",
    "fsdp": lambda name: name.replace("model.layers.", "_fsdp_wrapped_module.model.layers."),
}
BODY = {
    "bare": lambda name: name.removeprefix("model."),
    "wrapped": lambda name: name.replace("model.", "transformer.", 1),  # as LlamaForQuestionAnswering has it
    "other": lambda name: name.replace("model.", "trunk.", 1),
}


def named(home, changed):
    """`a`, and `b` under changed names; the tensors of both under the library's."""
    found = {name: llama_arrays(seed) for seed, name in enumerate("ab")}
    write_model(home / "a", found["a"], config())
    write_model(home / "b", {changed(name): array for name, array in found["b"].items()}, config())
    return found


@pytest.mark.parametrize("first", ["a", "b"])
@pytest.mark.parametrize("trainer", TRAINERS)
def test_what_trainers_put_into_names_goes_whichever_model_comes_first(tmp_path, monkeypatch, trainer, first):
    monkeypatch.chdir(tmp_path)
    found = named(tmp_path, TRAINERS[trainer])
    second = "b" if first == "a" else "a"
    weight = "parameters: {weight: 0.5}"
    theirs = f"merge_method: linear\nmodels: [{{model: {first}, {weight}}}, {{model: {second}, {weight}}}]\n"
    for text in (ways(first, second)["linear"], theirs):
        weights = built(text)
        assert set(weights) == set(found["a"])
        weights.save(tmp_path / "out", sync=False, overwrite=True)
        made = read_model(tmp_path / "out")
        for name in found["a"]:
            np.testing.assert_allclose(
                made[name], (found["a"][name] + found["b"][name]) / 2, rtol=1e-5, atol=1e-6
            )
        (note,) = [note for note in weights.notes if note["step"] == "names"]
        assert note["b"] == "without what a trainer put before or into them"
    layered = built(f"method: passthrough\n{SLICES}")
    assert set(layered) == set(found["a"])
    np.testing.assert_array_equal(
        mg.compute(layered, "model.layers.3.mlp.up_proj.weight"),
        found["b"]["model.layers.3.mlp.up_proj.weight"],
    )


@pytest.mark.parametrize("body", BODY)
def test_a_body_saved_under_another_prefix_is_lined_up(tmp_path, monkeypatch, body):
    monkeypatch.chdir(tmp_path)
    found = named(tmp_path, BODY[body])
    if body == "other":  # nothing says that one prefix is another
        with pytest.raises(RequestError, match=r"lacks 38 of the 39 tensors.*models of another kind"):
            built(ways("a", "b")["linear"])
        return
    word = "with the prefix 'model.'" + (" for 'transformer.'" if body == "wrapped" else "")
    for text in ways("a", "b").values():
        weights = built(text)
        assert set(weights) == set(found["a"])
        assert {"step": "names", "b": word} in weights.notes
    weights = built(ways("b", "a")["linear"])  # the names of the first
    assert set(weights) == {BODY[body](name) for name in found["a"]}
    for name in found["a"]:
        due = (found["a"][name] + found["b"][name]) / 2
        np.testing.assert_allclose(mg.compute(weights, BODY[body](name)), due, rtol=1e-5, atol=1e-6)


def test_prefixes_in_python_are_an_error_whose_remedy_works(tmp_path):
    found = named(tmp_path, BODY["bare"])
    del found["b"]["lm_head.weight"]
    write_model(
        tmp_path / "b", {name.removeprefix("model."): array for name, array in found["b"].items()}, config()
    )
    body = mg.open(tmp_path / "a").drop("lm_head.weight")
    bare = mg.open(tmp_path / "b")
    for first, second in ((body, bare), (bare, body)):
        with pytest.raises(AlgebraError, match=r"differ by a prefix: join \.rename\(.*\) of '[ab]'") as told:
            second - first
        remedy = re.search(r"\.rename\((.*)\) of", str(told.value))[1]
        assert set(second.rename(eval(remedy)) - first) == set(first)
    write_model(tmp_path / "c", {f"module.{name}": array for name, array in found["a"].items()}, config())
    with pytest.raises(AlgebraError, match=r"join merganser\.algebra\.prefixes\.without_trainers"):
        mg.open(tmp_path / "c") - mg.open(tmp_path / "a")
    assert set(without_trainers(mg.open(tmp_path / "c")) - mg.open(tmp_path / "a")) == set(found["a"])


def test_prefixes_that_are_certain():
    assert trainer_prefixes(["module.a", "b"]) == {}
    assert trainer_prefixes(["module.a", "module.b"]) == {"module.a": "a", "module.b": "b"}
    assert (
        prefix_between(["encoder.x.w", "decoder.x.w", "encoder.y.w", "decoder.y.w"], ["x.w", "y.w"]) is None
    )
    assert prefix_between(["m.x.w", "m.y.w", "head"], ["x.w", "y.w", "head"]) == ("add", "m.")
    assert prefix_between(["x.w", "y.w"], ["m.x.w", "m.y.w", "head"]) == ("remove", "m.")


# Live -----------------------------------------------------------------------------------------------------------------


@pytest.mark.models
def test_bodies_and_biases_give_what_the_models_in_transformers_give(tmp_path, monkeypatch):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    sizes = {"vocab_size": 19, "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True}

    def made(bias):
        torch.manual_seed(int(bias))
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, attention_bias=bias)).eval()
        with torch.no_grad():
            for tensor in model.parameters():
                tensor.normal_()
        return model

    biased, plain = made(True), made(False)
    biased.save_pretrained("biased")
    plain.save_pretrained("plain")
    plain.model.save_pretrained("body")
    state = plain.state_dict()
    due = made(True)
    due.load_state_dict(
        {
            name: (one + state.get(name, torch.zeros_like(one))) / 2
            for name, one in biased.state_dict().items()
        }
    )
    x = torch.arange(7)[None]
    for k, other in enumerate(("plain", "body")):
        text = f"{ways('biased', other)['linear']}mismatch: {{'*bias': zero}}\n"
        built(text).save(tmp_path / f"out{k}", sync=False)
        found = transformers.LlamaForCausalLM.from_pretrained(f"out{k}").eval()
        with torch.no_grad():
            torch.testing.assert_close(found(x).logits, due(x).logits, rtol=1e-4, atol=1e-4)


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


# Side by side ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"hidden_act": "relu"}, {"rope_theta": 9e5}])
def test_models_that_are_joined_along_an_axis_agree(tmp_path, change):
    two(tmp_path, change, intermediate_size=7)
    a, b = mg.open(tmp_path / "a"), mg.open(tmp_path / "b")
    (key,) = change
    for axis in ("neurons", "kv_heads", "layer"):
        with pytest.raises(AlgebraError, match=rf"{key} is .*\.allow\('{key}'\) on 'b'"):
            axes.concat([a, b], axis)
        assert len(axes.concat([a, b.allow(key)], axis))


def test_joined_models_may_differ_in_the_size_of_the_axis(tmp_path):
    for name, sizes in {"a": {}, "b": {"intermediate_size": 9}}.items():
        write_model(tmp_path / name, llama_arrays(1, **sizes), config(**sizes))
    more = axes.concat([mg.open(tmp_path / "a"), mg.open(tmp_path / "b")], "neurons")
    assert more["model.layers.0.mlp.up_proj.weight"].shape == (14, 6)
