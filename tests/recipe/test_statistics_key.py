"""`statistics:` beside a model: found, checked before anything is read, noted in the manifest."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from hand_statistics import write_statistics
from makers import read_model, write_model

import merganser as mg
from merganser.cli import run
from merganser.engine import compute_all
from merganser.errors import RequestError
from merganser.methods import get
from merganser.methods.merge._statistics import UNOBSERVED
from merganser.recipe import build, load

LLAMA = {
    "model_type": "llama", "vocab_size": 7, "hidden_size": 8, "intermediate_size": 10, "num_hidden_layers": 3,
    "num_attention_heads": 2,
}  # fmt: skip
MATRICES = {
    "self_attn.q_proj": (8, 8), "self_attn.k_proj": (8, 8), "self_attn.v_proj": (8, 8), "self_attn.o_proj": (8, 8),
    "mlp.gate_proj": (10, 8), "mlp.up_proj": (10, 8), "mlp.down_proj": (8, 10),
}  # fmt: skip
SHAPES = {
    f"model.layers.{k}.{name}.weight": shape
    for k in range(3)
    for name, shape in (MATRICES | {"input_layernorm": (8,), "post_attention_layernorm": (8,)}).items()
} | {"model.embed_tokens.weight": (7, 8), "model.norm.weight": (8,), "lm_head.weight": (7, 8)}


def numbers(seed, squared=False, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    found = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return {name: array**2 for name, array in found.items()} if squared else found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """base, math, code; stats/math/fisher and stats/code/fisher, gram, mask."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "math", "code")):
        write_model(tmp_path / name, numbers(seed), LLAMA)
    for seed, name in enumerate(("math", "code"), 10):
        home = tmp_path / name
        write_statistics(tmp_path / "stats" / name / "fisher", "fisher", numbers(seed, True), home)
        grams = {
            n: (x := np.random.default_rng(seed).standard_normal((20, s[1])).astype(np.float32)).T @ x
            for n, s in SHAPES.items()
            if "proj" in n
        }
        write_statistics(tmp_path / "stats" / name / "gram", "gram", grams, home, tokens=seed)
        masks = {n: (a > 1).astype(np.float32) for n, a in numbers(seed).items() if "mlp" in n}
        write_statistics(tmp_path / "stats" / name / "mask", "mask", masks, home)
    return tmp_path


TEXT = """
method: {method}
models:
  - {{model: math, statistics: {first}}}
  - {{model: code, statistics: {second}}}
"""


def recipe(method="fisher", first="stats/math", second="stats/code", **more):
    found = yaml.safe_load(TEXT.format(method=method, first=first, second=second))
    return found | more


def opened(kind, *names):
    return [mg.open(f"stats/{name}/{kind}") for name in names]


def models(*names):
    return [mg.open(name) for name in names]


@pytest.mark.parametrize(
    ("method", "kind", "parameters"),
    [
        ("fisher", "fisher", {"normalize": True}),
        ("regmean", "gram", {"by_tokens": True}),
        ("graft", "mask", {}),
    ],
)
@pytest.mark.parametrize("ending", ["", "/kind"])
def test_a_recipe_gives_what_the_method_gives(method, kind, parameters, ending, folder):
    end = f"/{kind}" if ending else ""
    more = {"base_model": "base"} if method == "graft" else {}
    told = recipe(method, f"stats/math{end}", f"stats/code{end}", parameters=parameters, **more)
    weights, fields = build(load(told))
    base = mg.open("base") if method == "graft" else None
    direct = get(method)(base, models("math", "code"), statistics=opened(kind, "math", "code"), **parameters)
    ours, theirs = compute_all(weights), compute_all(direct)
    for name in SHAPES:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    report = mg.save(weights, folder / "out", **fields)
    assert report.notes == direct.notes
    manifest = json.loads((folder / "out" / "merganser.json").read_text())
    parents = {parent["name"]: parent for parent in manifest["parents"]}
    for name in ("math", "code"):
        own = parents[f"{name}/{kind}"]
        sealed = json.loads((folder / "stats" / name / kind / "merganser.json").read_text())
        assert own["digest"] == sealed["digest"]
    assert manifest["recipe"]["models"][0]["statistics"] == f"stats/math{end}"


def test_statistics_beside_the_recipe_are_found_from_elsewhere(folder, monkeypatch):
    (folder / "recipe.yaml").write_text(TEXT.format(method="fisher", first="stats/math", second="stats/code"))
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    weights, _ = build(load(folder / "recipe.yaml"))
    assert len(weights) == len(SHAPES)


def test_slices_cut_the_statistics_with_the_models(folder):
    source = {"model": "math", "statistics": "stats/math", "layer_range": [1, 3]}
    other = {"model": "code", "statistics": "stats/code", "layer_range": [0, 2]}
    slices = [{"sources": [source, other]}, {"sources": [source | {"layer_range": [0, 1]}]}]
    weights, fields = build(load({"method": "fisher", "slices": slices}))
    a, b, fa, fb = numbers(1), numbers(2), numbers(10, True), numbers(11, True)
    for at, (one, two) in enumerate([(1, 0), (2, 1)]):
        for name in MATRICES:
            x, y = f"model.layers.{one}.{name}.weight", f"model.layers.{two}.{name}.weight"
            f, g = np.maximum(fa[x], 1e-6).astype(float), np.maximum(fb[y], 1e-6).astype(float)
            np.testing.assert_allclose(
                mg.compute(weights, f"model.layers.{at}.{name}.weight"),
                (f * a[x] + g * b[y]) / (f + g),
                rtol=1e-5,
                atol=1e-6,
            )
    np.testing.assert_array_equal(
        mg.compute(weights, "model.layers.2.mlp.up_proj.weight"), a["model.layers.0.mlp.up_proj.weight"]
    )
    mg.save(weights, folder / "out", **fields)


def test_slices_tell_in_the_results_names_what_had_no_statistics(folder):
    kept = {n: a for n, a in numbers(11, True).items() if "layers.1.mlp" not in n}
    write_statistics(folder / "fewer", "fisher", kept, folder / "code")
    sources = [
        {"model": "math", "statistics": "stats/math", "layer_range": [0, 2]},
        {"model": "code", "statistics": "fewer", "layer_range": [1, 3]},
    ]
    first = [{"model": "math", "statistics": "stats/math", "layer_range": [0, 1]}]
    weights, _ = build(load({"method": "fisher", "slices": [{"sources": first}, {"sources": sources}]}))
    names = [f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up", "down")]
    ((note,),) = ([note for note in weights.notes if UNOBSERVED in note],)
    assert sorted(note[UNOBSERVED]) == sorted(names)


def test_missing_statistics_are_listed_in_report_manifest_and_explain(folder, capsys):
    kept = {n: a for n, a in numbers(11, True).items() if "layernorm" not in n}
    write_statistics(folder / "fewer", "fisher", kept, folder / "code")
    (folder / "recipe.yaml").write_text(json.dumps(recipe(second="fewer")))
    assert run(["explain", "recipe.yaml"]) == 0
    said = capsys.readouterr().out
    assert "math, statistics stats/math" in said
    assert "code, statistics fewer" in said
    assert "fisher: tensors without statistics 6 (model.layers.0.input_layernorm.weight" in said
    assert run(["merge", "recipe.yaml", "out"]) == 0
    assert "fisher: tensors without statistics 6 (" in capsys.readouterr().out
    manifest = json.loads((folder / "out" / "merganser.json").read_text())
    (note,) = manifest["notes"]
    assert len(note[UNOBSERVED]) == 6
    merged, plain = read_model(folder / "out"), get("linear")(None, models("math", "code"))
    for name in note[UNOBSERVED]:
        np.testing.assert_array_equal(merged[name], mg.compute(plain, name))


def test_tensors_that_the_recipe_changed_have_no_statistics(folder):
    shapes = SHAPES | {"lm_head.weight": (9, 8), "model.embed_tokens.weight": (9, 8)}
    write_model(folder / "code", numbers(2, shapes=shapes), LLAMA | {"vocab_size": 9})
    write_statistics(folder / "new", "fisher", numbers(5, True, shapes), folder / "code")
    told = recipe(second="new", mismatch={"lm_head*": "crop", "*": "skip"})
    weights, fields = build(load(told))
    notes = {key: value for note in weights.notes for key, value in note.items()}
    assert notes[UNOBSERVED] == ["lm_head.weight"]
    report = mg.save(weights, folder / "out", **fields)
    merged, head = read_model(folder / "out"), numbers(2, shapes=shapes)["lm_head.weight"][:7]
    np.testing.assert_allclose(merged["lm_head.weight"], (numbers(1)["lm_head.weight"] + head) / 2, rtol=1e-6)
    np.testing.assert_array_equal(
        merged["model.embed_tokens.weight"], numbers(1)["model.embed_tokens.weight"]
    )
    assert report.tensors == len(SHAPES)


def refused(document, message):
    with pytest.raises(RequestError, match=message):
        build(load(document))


def test_statistics_of_another_model_are_refused(folder):
    refused(recipe(first="stats/code"), r"models\[0\]\.statistics: statistics of another model: .*'math'")
    write_model(folder / "math", numbers(7), LLAMA)
    refused(recipe(), "statistics of another model")


@pytest.mark.parametrize(
    ("first", "message"),
    [
        ("stats/nothing", "there is no directory 'stats/nothing'"),
        ("stats/math/gram", "holds statistics of the kind 'gram', not 'fisher'"),
        ("stats", r"holds no statistics of the kind 'fisher' \(it has none\)"),
        ("org/name", "there is no directory 'org/name'"),
    ],
)
def test_places_without_the_right_statistics(first, message, folder):
    refused(recipe(first=first), r"recipe: models\[0\]\.statistics: .*" + message)


def test_a_kind_that_was_not_collected_is_named(folder):
    import shutil

    shutil.rmtree(folder / "stats" / "math" / "fisher")
    refused(recipe(), r"holds no statistics of the kind 'fisher' \(it has gram, mask\)")


def test_a_sealed_checkpoint_that_is_no_statistics(folder):
    mg.save(mg.open("math"), folder / "copy")
    refused(recipe(first="copy"), "does not say what statistics it holds")
    manifest = json.loads((folder / "stats/math/fisher/merganser.json").read_text())
    manifest["notes"][0]["statistics"]["identity"] = 3
    (folder / "stats/math/fisher/merganser.json").write_text(json.dumps(manifest))
    with pytest.raises(mg.MerganserError, match="has no valid 'identity'"):
        build(load(recipe()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "linear"}, r"models\[0\]\.statistics: linear takes no statistics; remove the key"),
        ({"models": [{"model": "math"}]}, r"models\[0\]: fisher needs statistics of the kind 'fisher'"),
        ({"models": [{"model": "math", "statistics": 3}]}, r"models\[0\]\.statistics: expected the path"),
        ({"models": [{"model": "math", "statistic": "x"}]}, "did you mean 'statistics'"),
        (
            {"models": [{"model": {"path": "math", "lora": "x"}, "statistics": "stats/math"}]},
            "exists only in this recipe, so nothing was observed on it",
        ),
        ({"parameters": {"statistics": "stats"}}, r"parameters\.statistics: unknown parameter of fisher"),
        (
            {
                "method": "graft",
                "base_model": "base",
                "models": [
                    {"model": "base", "statistics": "stats/math"},
                    {"model": "math", "statistics": "stats/math"},
                ],
            },
            "graft takes no statistics of its base",
        ),
    ],
)
def test_where_the_key_does_not_belong(change, message, folder):
    refused(recipe() | change, message)


def test_a_document_of_the_file_was_never_observed(folder):
    text = "name: both\nmethod: linear\nmodels: [{model: math}, {model: code}]\n---\n"
    text += "method: fisher\nmodels: [{model: both, statistics: stats/math}]\n"
    with pytest.raises(RequestError, match="'both' exists only in this recipe"):
        load(text)


def test_mergekits_form_has_no_such_key(folder):
    told = {
        "merge_method": "linear",
        "models": [{"model": "math", "statistics": "x", "parameters": {"weight": 1}}],
    }
    refused(told, r"models\[0\]\.statistics: belongs to merganser's own form")
    with pytest.raises(RequestError, match="is not a method of mergekit; write method: fisher"):
        load({"merge_method": "fisher", "models": [{"model": "math"}]})


def test_mixed_settings_by_tensor_name_share_one_list_of_missing_ones(folder):
    kept = {n: a for n, a in numbers(11, True).items() if "norm" not in n}
    write_statistics(folder / "fewer", "fisher", kept, folder / "code")
    told = recipe(second="fewer", parameters={"floor": {"*layers.0*": 0.0, "*": 1.0}})
    weights, _ = build(load(told))
    (note,) = [note for note in weights.notes if UNOBSERVED in note]
    assert sorted(note[UNOBSERVED]) == sorted(n for n in SHAPES if "norm" in n)
    name = "model.layers.0.mlp.up_proj.weight"
    direct = get("fisher")(
        None, models("math", "code"), statistics=[mg.open("stats/math/fisher"), mg.open("fewer")], floor=0.0
    )
    np.testing.assert_array_equal(mg.compute(weights, name), mg.compute(direct, name))
