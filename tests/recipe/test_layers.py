"""Slices, gradients and modules: every tensor against NumPy, with the values worked out by hand."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from makers import read_model, write_adapter
from tiny_llamas import layer, llama

import merganser
from merganser import recipe
from merganser.errors import MerganserError, RequestError


@pytest.fixture
def models(tmp_path, monkeypatch):
    """Three models of four layers in the working directory."""
    monkeypatch.chdir(tmp_path)
    return {name: llama(tmp_path / name, seed) for seed, name in enumerate(("a", "b", "c"))}


def built(text, **options):
    weights, _ = recipe.build(recipe.load(text), **options)
    return weights


def equal(weights, expected):
    assert set(weights) == set(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(
            merganser.compute(weights, name), array, rtol=3e-6, atol=1e-6, err_msg=name
        )


def renumbered(arrays, first, end, at):
    """Layers `first` to `end` of a model, numbered from `at`."""
    found = {}
    for name, array in arrays.items():
        k = layer(name)
        if k is not None and first <= k < end:
            found[name.replace(f"layers.{k}.", f"layers.{at + k - first}.")] = array
    return found


STACK = """
{form}: passthrough
slices:
  - sources: [{{model: a, layer_range: [0, 3]}}]
  - sources: [{{model: b, layer_range: [1, 4]}}]
"""


@pytest.mark.parametrize("form", ["method", "merge_method"])
def test_layers_of_two_models_are_stacked(models, form, tmp_path):
    weights = built(STACK.format(form=form))
    a, b = models["a"], models["b"]
    outer = {"model.embed_tokens.weight": a, "model.norm.weight": b, "lm_head.weight": b}
    expected = {name: home[name] for name, home in outer.items()}
    expected |= renumbered(a, 0, 3, 0) | renumbered(b, 1, 4, 3)
    equal(weights, expected)
    merganser.save(weights, tmp_path / "out", memory=2**34)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 6
    assert set(read_model(tmp_path / "out")) == set(expected)


GRADED = """
merge_method: linear
slices:
  - sources:
      - {model: a, layer_range: [0, 2], parameters: {weight: 1}}
      - {model: b, layer_range: [1, 3], parameters: {weight: [0.5, 0.1]}}
  - sources:
      - {model: b, layer_range: [0, 2]}
      - {model: c, layer_range: [2, 4], parameters: {weight: 3}}
    parameters: {weight: 2}
parameters: {normalize: true}
dtype: float32
"""


def test_slices_have_models_parameters_and_gradients_of_their_own(models):
    weights = built(GRADED)
    a, b, c = models["a"], models["b"], models["c"]
    expected = {
        "model.embed_tokens.weight": (a["model.embed_tokens.weight"] + 0.5 * b["model.embed_tokens.weight"])
        / 1.5,
    }
    for name in ("model.norm.weight", "lm_head.weight"):
        expected[name] = (2 * b[name] + 3 * c[name]) / 5
    for k, second in enumerate((0.5, 0.1)):
        mine, theirs = renumbered(a, k, k + 1, k), renumbered(b, k + 1, k + 2, k)
        expected |= {n: (mine[n] + second * theirs[n]) / (1 + second) for n in mine}
    for k in range(2):
        mine, theirs = renumbered(b, k, k + 1, k + 2), renumbered(c, k + 2, k + 3, k + 2)
        expected |= {n: (2 * mine[n] + 3 * theirs[n]) / 5 for n in mine}
    equal(weights, expected)


@pytest.mark.parametrize("form", ["method", "merge_method"])
def test_a_gradient_runs_from_the_first_layer_to_the_last(models, form):
    weights = built(
        f"{form}: slerp\nbase_model: a\nmodels: [{{model: a}}, {{model: b}}]\nparameters: {{t: [0, 0.5, 1]}}\n"
    )
    ends = {None: None, 0: "a", 3: "b"}
    for name in weights:
        k = layer(name)
        if k in (0, 3):
            np.testing.assert_allclose(merganser.compute(weights, name), models[ends[k]][name], rtol=1e-6)
    # Before the layers the first point counts, after them the last; in mergekit's form the first.
    np.testing.assert_allclose(
        merganser.compute(weights, "model.embed_tokens.weight"), models["a"]["model.embed_tokens.weight"]
    )
    after = models["b" if form == "method" else "a"]
    for name in ("lm_head.weight", "model.norm.weight"):
        np.testing.assert_allclose(merganser.compute(weights, name), after[name])
    name = "model.layers.1.mlp.up_proj.weight"
    x, y = (models[m][name].astype(np.float64).ravel() for m in "ab")
    theta = np.arccos(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
    t = 1 / 3  # layer 1 of 4, between the points 0 and 0.5 two thirds of the way
    expected = (np.sin((1 - t) * theta) * x + np.sin(t * theta) * y) / np.sin(theta)
    np.testing.assert_allclose(merganser.compute(weights, name).ravel(), expected, rtol=1e-5, atol=1e-6)


def test_filters_with_gradients_read_the_parents_names_for_a_models_own_values(models):
    text = """
merge_method: linear
slices:
  - sources:
      - model: a
        layer_range: [0, 2]
        parameters: {weight: 1}
      - model: b
        layer_range: [2, 4]
        parameters:
          weight:
            - {filter: layers.3.mlp, value: 3}
            - {filter: layers.1.self_attn, value: 100}
            - {value: [0, 1]}
"""
    weights = built(text)
    a, b = models["a"], models["b"]
    here, there = "model.layers.1.mlp.up_proj.weight", "model.layers.3.mlp.up_proj.weight"
    np.testing.assert_allclose(merganser.compute(weights, here), (a[here] + 3 * b[there]) / 4, rtol=1e-5)
    here, there = "model.layers.1.self_attn.q_proj.weight", "model.layers.3.self_attn.q_proj.weight"
    np.testing.assert_allclose(
        merganser.compute(weights, here), (a[here] + b[there]) / 2, rtol=1e-5, atol=1e-7
    )
    here = "model.layers.0.self_attn.q_proj.weight"
    np.testing.assert_allclose(merganser.compute(weights, here), a[here], rtol=1e-6)


def test_task_vectors_of_slices(models):
    text = """
method: task_arithmetic
base_model: a
slices:
  - sources:
      - {model: a, layer_range: [1, 3]}
      - {model: b, layer_range: [2, 4], parameters: {weight: 0.5}}
"""
    weights = built(text)
    for name in weights:
        k = layer(name)
        mine = name if k is None else name.replace(f"layers.{k}.", f"layers.{k + 1}.")
        theirs = name if k is None else name.replace(f"layers.{k}.", f"layers.{k + 2}.")
        expected = models["a"][mine] + 0.5 * (models["b"][theirs] - models["a"][mine])
        np.testing.assert_allclose(merganser.compute(weights, name), expected, rtol=1e-5, atol=1e-6)


def test_slices_of_one_model_draw_at_random_for_themselves(models):
    text = """
method: dare_linear
base_model: a
slices:
  - sources: [{model: a, layer_range: [0, 1]}, {model: b, layer_range: [0, 1]}]
  - sources: [{model: a, layer_range: [0, 1]}, {model: b, layer_range: [0, 1]}]
parameters: {density: 0.5, weight: 1}
"""
    weights = built(text)
    first, second = (merganser.compute(weights, f"model.layers.{k}.mlp.up_proj.weight") for k in range(2))
    assert not np.array_equal(first, second)


BAD = {
    "layers that are not there": (
        STACK.format(form="method").replace("[1, 4]", "[1, 9]"),
        r"slices\[1\].sources\[0\].layer_range: 'b' has 4 layers, so there is no layer 8",
    ),
    "runs backwards": (STACK.format(form="method").replace("[1, 4]", "[4, 1]"), r"expected \[first, end\]"),
    "no range": (
        STACK.format(form="method").replace("[1, 4]", "all"),
        r"layer_range: expected \[first, end\]",
    ),
    "different lengths": (
        GRADED.replace("[1, 3]", "[1, 4]"),
        r"slices\[0\].sources: the sources of a slice need as many layers each; these have \[2, 3\]",
    ),
    "unknown key of a slice": (
        GRADED.replace("sources:", "source:", 1),
        r"slices\[0\].source: unknown key; did you mean 'sources'",
    ),
    "slices and models": (GRADED + "models: [{model: a}]\n", "a recipe has one of models, slices, modules"),
    "no base among the sources": (
        "method: ties\nbase_model: c\nslices:\n- sources: [{model: a, layer_range: [0, 1]}]\n",
        "needs the base among the sources",
    ),
    "slices that are no list": ("method: linear\nslices: {}\n", "slices: expected a list of slices"),
    "no sources": ("method: linear\nslices: [{sources: []}]\n", "sources: expected a list"),
    "modules of a model without": (
        "method: linear\nmodules: {decoder: {models: [{model: a}, {model: b}]}}\n",
        "llama has no modules; write slices: or models: without them",
    ),
    "a source twice": (
        "method: linear\nslices: [{sources: [{model: a, layer_range: [0, 1]}, {model: a, layer_range: [0, 1]}]}]\n",
        "is listed twice with the same layers",
    ),
    "a gradient of whole numbers": (
        "method: karcher\nmodels: [{model: a}, {model: b}]\nparameters: {max_iter: [1, 5]}\n",
        "max_iter is a whole number, which has no gradient",
    ),
}
BAD["residual weight"] = (
    STACK.format(form="method").replace(
        "- sources: [{model: b", "- residual_weight: 0.5\n    sources: [{model: b"
    ),
    "mergekit declares this key and never uses it",
)


@pytest.mark.parametrize("name", list(BAD))
def test_refused(models, name):
    text, message = BAD[name]
    with pytest.raises(MerganserError, match=message):
        built(text)


def test_a_gradient_needs_to_know_the_layers(tmp_path, monkeypatch):
    from makers import normal, write_model

    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        write_model(tmp_path / name, {"blocks.0.w": normal(2, 2, seed=seed)})
    with pytest.raises(
        RequestError, match="a gradient runs along the layers, and the layers of 'a' are not known"
    ):
        built("method: linear\nmodels: [{model: a, parameters: {weight: [0, 1]}}, {model: b}]\n")


# References -----------------------------------------------------------------------------------------------------------


def adapter(tmp_path, name="lora"):
    rng = np.random.default_rng(7)
    factors = (rng.standard_normal((5, 2)).astype(np.float32), rng.standard_normal((2, 6)).astype(np.float32))
    write_adapter(tmp_path / name, {"model.layers.1.mlp.up_proj": factors}, alpha=4.0)
    return 2.0 * factors[0] @ factors[1]


@pytest.mark.parametrize(
    "reference", ["a+lora", "{model: a, lora: lora}", "{model: {path: a}, lora: {path: lora}}"]
)
def test_a_model_with_a_lora(models, tmp_path, reference):
    delta = adapter(tmp_path)
    weights = built(
        f"merge_method: linear\nmodels:\n- {{model: {reference}, parameters: {{weight: 1}}}}\n"
        "- {model: b, parameters: {weight: 1}}\n"
    )
    name = "model.layers.1.mlp.up_proj.weight"
    expected = (models["a"][name] + delta + models["b"][name]) / 2
    np.testing.assert_allclose(merganser.compute(weights, name), expected, rtol=1e-5, atol=1e-6)
    name = "model.layers.2.mlp.up_proj.weight"
    np.testing.assert_allclose(
        merganser.compute(weights, name), (models["a"][name] + models["b"][name]) / 2, rtol=1e-6
    )


def test_a_directory_whose_name_has_a_plus_is_taken_as_it_is(models, tmp_path):
    (tmp_path / "a").rename(tmp_path / "a+lora")
    weights = built("merge_method: passthrough\nmodels: [{model: a+lora}]\n")
    equal(weights, models["a"])


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("a+b+c", "has more than one '\\+'"),
        ("a@b@c", re.escape("is not path[@revision][+lora[@revision]]")),
        ("{path: a, revison: b}", "revison: unknown key; did you mean .revision."),
        ("{lora: b}", "has either path or model"),
        ("{model: a, override_architecture: X}", "by the model's own family file"),
        ("a+b", "is a model, not a LoRA adapter that can be added to"),
    ],
)
def test_references_that_say_nothing(models, reference, message):
    with pytest.raises(RequestError, match=message):
        built(f"merge_method: passthrough\nmodels:\n- model: {reference}\n")


# Documents ------------------------------------------------------------------------------------------------------------

TWO = """
name: first
merge_method: linear
models:
  - {model: a, parameters: {weight: 1}}
  - {model: b, parameters: {weight: 1}}
dtype: bfloat16
---
merge_method: task_arithmetic
base_model: first
models:
  - {model: c, parameters: {weight: 0.5}}
dtype: float32
"""


def saved(text, out):
    weights, fields = recipe.build(recipe.load(text))
    merganser.save(weights, out, memory=2**34, **fields)
    return read_model(out)


def test_documents_are_one_graph_and_give_what_two_runs_give(models, tmp_path):
    first, second = TWO.split("---")
    saved(first.replace("name: first", ""), tmp_path / "first")
    apart = saved(second, tmp_path / "apart")
    (tmp_path / "first").rename(tmp_path / "elsewhere")
    together = saved(TWO, tmp_path / "together")
    assert set(apart) == set(together)
    for name in apart:
        assert np.array_equal(apart[name], together[name]), name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            TWO.replace("base_model: first", "base_model: a").replace("merge_method", "method"),
            "nothing uses the document first",
        ),
        (TWO.replace("name: first\n", ""), "has no name, and neither has another"),
        (TWO.replace("---\n", "---\nname: first\n"), "two documents are called 'first'"),
        (TWO.replace("{model: b,", "{model: first,"), "in a circle: first -> first"),
        (
            TWO.replace("{model: b,", "{model: last,").replace("---", "---\nname: last"),
            "circle: last -> first -> last",
        ),
        (
            TWO.replace("name: first", "name: frist").replace("merge_method", "method"),
            "document 1: nothing uses the document frist",
        ),
    ],
)
def test_documents_that_do_not_fit_together(models, text, message):
    with pytest.raises(RequestError, match=message):
        built(text)


# Mismatch -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def odd(tmp_path, monkeypatch):
    """A base, a model that fits, one with more tokens, one with fewer and a tensor missing."""
    from makers import write_model
    from tiny_llamas import config, llama_arrays

    monkeypatch.chdir(tmp_path)
    found = {}
    for seed, (name, vocab) in enumerate({"base": 13, "fits": 13, "more": 15, "fewer": 11}.items()):
        found[name] = llama_arrays(seed, vocab_size=vocab)
    del found["fewer"]["model.layers.0.mlp.up_proj.weight"]
    for name, arrays in found.items():
        write_model(tmp_path / name, arrays, config(vocab_size=len(arrays["lm_head.weight"])))
    return found


def mixed(policy, *names, method="task_arithmetic"):
    listed = "\n".join(f"- {{model: {name}, parameters: {{weight: 0.5}}}}" for name in names)
    return f"method: {method}\nbase_model: base\nmodels:\n{listed}\nmismatch: {policy}\n"


def test_what_does_not_fit_is_an_error_by_default(odd):
    with pytest.raises(MerganserError, match=r"lm_head\.weight|embed_tokens"):
        built(mixed("error", "fits", "more"))


def test_crop_and_pad(odd):
    base, fits, more, fewer = (odd[name] for name in ("base", "fits", "more", "fewer"))
    weights = built(mixed("crop", "fits", "more"))
    for name in base:
        cut = more[name][:13] if "head" in name or "embed" in name else more[name]
        expected = base[name] + 0.5 * (fits[name] - base[name]) + 0.5 * (cut - base[name])
        np.testing.assert_allclose(merganser.compute(weights, name), expected, rtol=1e-5, atol=1e-6)
    weights = built(mixed("{'*up_proj*': skip, '*': pad}", "fits", "fewer"))
    for name in base:
        other = fewer.get(name, base[name])
        full = np.concatenate([other, base[name][len(other) :]]) if len(other) < len(base[name]) else other
        expected = base[name] + 0.5 * (fits[name] - base[name]) + 0.5 * (full - base[name])
        np.testing.assert_allclose(merganser.compute(weights, name), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(MerganserError, match=r"crop cannot cut tensor .* use pad, base or skip"):
        built(mixed("crop", "fewer"))


def test_skip_leaves_a_model_out_where_it_does_not_fit(odd):
    base, fits, more = (odd[name] for name in ("base", "fits", "more"))
    text = "method: linear\nmodels: [{model: base}, {model: fits}, {model: more}]\nmismatch: skip\n"
    weights = built(text)
    for name in base:
        parts = [base[name], fits[name], more[name]]
        parts = [part for part in parts if part.shape == base[name].shape]
        np.testing.assert_allclose(
            merganser.compute(weights, name), np.mean(parts, axis=0), rtol=1e-5, atol=1e-6
        )
    (note,) = weights.notes
    assert note["skip"] == ["lm_head.weight of more", "model.embed_tokens.weight of more"]


def test_base_keeps_the_references_tensor(odd):
    weights = built(mixed("base", "fits", "fewer"))
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.up_proj.weight"):
        np.testing.assert_array_equal(merganser.compute(weights, name), odd["base"][name])
    name = "model.norm.weight"
    expected = odd["base"][name] + 0.5 * sum(odd[m][name] - odd["base"][name] for m in ("fits", "fewer"))
    np.testing.assert_allclose(merganser.compute(weights, name), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("skipp", "expected one of error, skip, base, crop, pad, zero, not 'skipp'; did you mean 'skip'"),
        ("{'*': 3}", "expected one of"),
        ("{'re:(': skip}", "not a regular expression"),
    ],
)
def test_policies_that_say_nothing(odd, policy, message):
    with pytest.raises(RequestError, match=message):
        built(mixed(policy, "fits"))


def test_a_base_that_lends_its_files_says_the_sizes_of_the_result(odd, tmp_path):
    from merganser.algebra import axes
    from merganser.methods import get

    base = axes.pad(merganser.open("base"), "vocab", 15)
    get("linear")(base, [merganser.open("more"), merganser.open("more").relabel("again")]).save(
        tmp_path / "out", memory=2**34
    )
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 15
    assert read_model(tmp_path / "out")["lm_head.weight"].shape == (15, 6)


def test_an_error_about_what_does_not_fit_names_the_policies_and_how_much_there_is(odd):
    text = mixed("error", "fits", "fewer")
    for policy in (text, text.replace("mismatch: error\n", "")):
        with pytest.raises(
            MerganserError, match=r"tensors 3 do not fit 'base' .*`mismatch`.* skip, base, crop, pad or zero"
        ):
            built(policy)


def test_models_of_another_kind_are_called_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    llama(tmp_path / "a", 0)
    llama(tmp_path / "wide", 1, hidden_size=8)
    with pytest.raises(MerganserError, match="models of another kind or size than 'a'"):
        built("method: linear\nmodels: [{model: a}, {model: wide}]\n")


def test_a_deeper_model_does_not_lose_its_last_layers_unseen(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = llama(tmp_path / "short", 0, num_hidden_layers=3)
    deep = llama(tmp_path / "deep", 1)
    text = "method: linear\nmodels: [{model: short}, {model: deep}]\n"
    with pytest.raises(RequestError, match="'deep' has 4 layers and 'short' 3: the others would be lost"):
        built(text)
    weights = built(text + "mismatch: skip\n")
    equal(weights, {name: (short[name] + deep[name]) / 2 for name in short})


# Names of the result --------------------------------------------------------------------------------------------------


def test_a_pattern_may_name_a_layer_that_only_the_result_has(models):
    text = (
        "method: slerp\nbase_model: a\nslices:\n"
        "- sources: [{model: a, layer_range: [0, 4]}, {model: b, layer_range: [0, 4]}]\n"
        "- sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2]}]\n"
        "parameters: {t: {'model.layers.LAST.*': 0.0, '*': 1.0}}\n"
    )
    weights = built(text.replace("LAST", "5"))
    for place, model, layer_ in ((5, "a", 1), (4, "b", 0)):
        np.testing.assert_allclose(
            merganser.compute(weights, f"model.layers.{place}.mlp.up_proj.weight"),
            models[model][f"model.layers.{layer_}.mlp.up_proj.weight"],
            rtol=1e-5,
            atol=1e-6,
        )
    with pytest.raises(RequestError, match=r"no tensor matches the pattern 'model\.layers\.6\.\*'"):
        built(text.replace("LAST", "6"))


def test_filters_that_no_tensor_has_are_reported(models):
    weights = built(
        "merge_method: linear\nmodels:\n"
        "- {model: a, parameters: {weight: [{filter: mpl, value: 1}, {filter: mlp, value: 2}, {value: 1}]}}\n"
        "- {model: b, parameters: {weight: 1}}\nmismatch: {'*embd*': crop}\n"
    )
    (note,) = weights.notes
    assert note["found in no tensor"] == ["'mpl' (models[0].parameters.weight)", "'*embd*' (mismatch)"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: [{model: aa}, {model: b}]", r"models\[0\]: there is no checkpoint at 'aa'"),
        ("models: []", "not an empty list"),
        (
            "models: [{model: a}, {model: b}]\ntokenizer_source: unoin",
            "tokenizer_source: .*did you mean 'union'",
        ),
    ],
)
def test_errors_name_the_place_of_a_model(models, text, message):
    with pytest.raises(RequestError, match=message):
        built(f"method: linear\n{text}\n")


def test_parents_of_one_name_have_digests_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, place in enumerate(("x", "y", "z")):
        llama(tmp_path / place / "run", seed)
    text = "name: first\nmethod: linear\nmodels: [{model: x/run}, {model: y/run}]\n---\n"
    saved(text + "method: linear\nmodels: [{model: first}, {model: z/run}]\n", tmp_path / "together")
    parents = json.loads((tmp_path / "together" / "merganser.json").read_text())["parents"]
    for place in ("x", "y", "z"):
        saved(f"model: {place}/run\n", tmp_path / f"only-{place}")
        (alone,) = json.loads((tmp_path / f"only-{place}" / "merganser.json").read_text())["parents"]
        (here,) = [p for p in parents if p["path"] == f"{place}/run"]
        assert (here["digest"], here["tensors_read"]) == (alone["digest"], alone["tensors_read"])


def test_an_adapter_among_models_that_are_averaged(models, tmp_path):
    adapter(tmp_path)
    with pytest.raises(RequestError, match=r"'lora' is a change of one .*path: base, lora: adapter"):
        built("method: linear\nmodels: [{model: a}, {model: lora}]\n")
