"""Rows of classifiers have names: wherever several models meet, they are lined up by label or refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hand_statistics import write_statistics
from makers import read_model, write_model

import merganser as mg
from merganser import recipe
from merganser.cli import run
from merganser.cli.diff import compare
from merganser.compare.lineup import line_up
from merganser.compare.singular import between
from merganser.errors import AlgebraError, MerganserError
from merganser.methods import all_methods, get
from merganser.methods.adapters.port import port

NAMES = ("anger", "joy", "fear", "calm")
ORDER = [2, 0, 3, 1]
WIDTH = 6
GPT = {
    "model_type": "gpt_neox", "architectures": ["GPTNeoXForSequenceClassification"], "vocab_size": 5,
    "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2,
    "max_position_embeddings": 9,
}  # fmt: skip
SWIN = {"model_type": "swin", "architectures": ["SwinForImageClassification"]}
"""A model without a family file."""


def labelled(config, names):
    return config | {
        "id2label": {str(k): n for k, n in enumerate(names)},
        "label2id": {n: k for k, n in enumerate(names)},
    }


def tensors(seed, head="score", rows=4):
    rng = np.random.default_rng(seed)
    shapes = {
        f"{head}.weight": (rows, WIDTH),
        f"{head}.bias": (rows,),
        "gpt_neox.embed_in.weight": (5, WIDTH),
        "gpt_neox.final_layer_norm.weight": (WIDTH,),
        "gpt_neox.final_layer_norm.bias": (WIDTH,),
    }
    layer = {
        "input_layernorm": (WIDTH,), "post_attention_layernorm": (WIDTH,), "attention.query_key_value": (18, WIDTH),
        "attention.dense": (WIDTH, WIDTH), "mlp.dense_h_to_4h": (WIDTH, WIDTH), "mlp.dense_4h_to_h": (WIDTH, WIDTH),
    }  # fmt: skip
    for module, shape in layer.items():
        shapes[f"gpt_neox.layers.0.{module}.weight"] = shape
        shapes[f"gpt_neox.layers.0.{module}.bias"] = shape[:1]
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def turned(arrays, order=ORDER):
    """The same classifier with its rows in another order."""
    return {n: a[order] if n.startswith(("score", "classifier")) else a for n, a in arrays.items()}


@pytest.fixture(params=["family", "without a family"])
def trio(request, tmp_path, monkeypatch):
    """a, b and b with its rows in another order; all have labels, those of b's twin in its order."""
    monkeypatch.chdir(tmp_path)
    config, head = (GPT, "score") if request.param == "family" else (SWIN, "classifier")
    write_model(tmp_path / "base", tensors(0, head), labelled(config, NAMES))
    write_model(tmp_path / "a", tensors(1, head), labelled(config, NAMES))
    write_model(tmp_path / "b", tensors(2, head), labelled(config, NAMES))
    write_model(tmp_path / "twin", turned(tensors(2, head)), labelled(config, [NAMES[k] for k in ORDER]))
    return head


def opened(*names):
    return [mg.open(name, name="b" if name == "twin" else name) for name in names]


def same(one, other):
    assert list(one) == list(other)
    for name in one:
        np.testing.assert_array_equal(one.compute(name), other.compute(name), err_msg=name)


# Arithmetic -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "formula",
    [
        lambda base, a, b: 0.5 * a + 0.5 * b,
        lambda base, a, b: base + 0.3 * (a - base) + 0.7 * (b - base),
        lambda base, a, b: base + (b - base),
        lambda base, a, b: a + 0.5 * (b - a),
        lambda base, a, b: (a * b) / b,
        lambda base, a, b: base.override(b.drop("*final*")),
        lambda base, a, b: mg.slerp(a, b, 0.25),
        lambda base, a, b: base + mg.mean(a - base, b - base),
    ],
)
def test_arithmetic_goes_by_label(trio, formula):
    base, a, b = opened("base", "a", "b")
    same(formula(base, a, opened("twin")[0]), formula(base, a, b))


def test_the_result_has_the_order_of_the_weights_whose_config_it_gets(trio, tmp_path):
    base, a, twin = opened("base", "a", "twin")
    (0.5 * twin + 0.5 * a).save(tmp_path / "out")
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert list(told["id2label"].values()) == [NAMES[k] for k in ORDER]
    (base + (twin - a)).save(tmp_path / "sum")
    assert json.loads((tmp_path / "sum" / "config.json").read_text())["id2label"]["0"] == NAMES[0]
    found = read_model(tmp_path / "out")[f"{trio}.bias"]
    both = 0.5 * tensors(1, trio)[f"{trio}.bias"] + 0.5 * tensors(2, trio)[f"{trio}.bias"]
    np.testing.assert_allclose(found, both[ORDER], rtol=1e-6)


def test_a_saved_task_vector_keeps_its_labels(trio, tmp_path):
    base, b, twin = opened("base", "b", "twin")
    moved = base - base + (twin - twin * 1.0)  # degree 0 in the base's order
    (twin - mg.open("twin", name="again") * 0.0).save(tmp_path / "whole")
    same(base + 0.5 * (mg.open("whole") - base), base + 0.5 * (b - base))
    assert moved.degree == 0


def test_bodies_and_files_without_config_go_by_place_as_before(trio, tmp_path):
    a, twin = opened("a", "twin")
    same(a.select("gpt*") + twin.select("gpt*"), a.select("gpt*") + opened("b")[0].select("gpt*"))
    write_model(tmp_path / "bare", tensors(2, trio))
    (tmp_path / "bare" / "config.json").unlink()
    bare = mg.open("bare")
    np.testing.assert_array_equal(
        (a + bare).compute(f"{trio}.bias"),
        tensors(1, trio)[f"{trio}.bias"] + tensors(2, trio)[f"{trio}.bias"],
    )


# Methods ----------------------------------------------------------------------------------------------------


def statistics(name, kind, model, seed, turn=False):
    arrays = {n: a**2 for n, a in tensors(seed, "score").items()}
    if kind == "gram":
        x = np.random.default_rng(seed).standard_normal((20, WIDTH)).astype(np.float32)
        arrays = {n: x.T @ x for n in arrays if n.endswith("weight") and "norm" not in n}
    if kind == "mask":
        arrays = {n: (a > 1).astype(np.float32) for n, a in arrays.items()}
    return write_statistics(name, kind, turned(arrays) if turn and kind != "gram" else arrays, model)


METHODS = sorted(name for name, m in all_methods().items() if m.max_models != 1 or m.base != "refused")
"""Those in which two models meet."""


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("way", ["function", "recipe"])
def test_every_method_goes_by_label(name, way, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, which in enumerate(("base", "a", "b")):
        write_model(tmp_path / which, tensors(seed), labelled(GPT, NAMES))
    write_model(tmp_path / "twin", turned(tensors(2)), labelled(GPT, [NAMES[k] for k in ORDER]))
    method = get(name)
    count = method.max_models or 2
    others = {1: ["b"], 2: ["a", "b"]}[min(count, 2)]
    base = method.base in ("required", "origin") or method.max_models == 1
    given = {p.name: ([1.0] * len(others) if p.per_model else 0.5) for p in method.parameters if p.required}
    results = []
    for turn in (False, True):
        names = ["twin" if turn and n == "b" else n for n in others]
        stats = None
        if method.statistics:
            stats = [
                statistics(f"s{turn}{n}", method.statistics, tmp_path / n, 7 + k, turn and n == "twin")
                for k, n in enumerate(names)
            ]
        if way == "function":
            first = mg.open("base") if base else None
            more = {"statistics": [mg.open(s) for s in stats]} if stats else {}
            made = method(first, opened(*names), **given, **more)
        else:
            models = []
            for k, n in enumerate(names):
                one = {"model": n, "name": others[k]}
                one |= {"statistics": str(stats[k])} if stats else {}
                own = {p.key: 0.5 for p in method.parameters if p.required and p.per_model}
                models.append(one | ({"parameters": own} if own else {}))
            document = {"method": name, "models": models}
            document |= {"base_model": "base"} if base else {}
            shared = {p.key: 0.5 for p in method.parameters if p.required and not p.per_model}
            document |= {"parameters": shared} if shared else {}
            made, _ = recipe.build(recipe.load(document))
        results.append({n: made.compute(n) for n in made})
    for n in results[0]:
        np.testing.assert_array_equal(results[0][n], results[1][n], err_msg=n)


def test_a_recipe_tells_which_rows_moved(trio, tmp_path, capsys):
    text = "method: linear\nmodels: [{model: a, parameters: {weight: 1}}, {model: twin, parameters: {weight: 1}}]\n"
    (tmp_path / "r.yaml").write_text(text)
    assert run(["merge", "r.yaml", "out"]) == 0
    note = next(
        n
        for n in json.loads((tmp_path / "out" / "merganser.json").read_text())["notes"]
        if n["step"] == "labels"
    )
    assert note["rows in the order of"] == "a"
    assert note["rows moved of"] == ["twin"]
    assert note["labels"] == list(NAMES)


# Other labels -----------------------------------------------------------------------------------------------


def test_labels_of_the_same_number_under_other_names_are_refused_with_a_way_out(trio, tmp_path):
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    numbered = [f"LABEL_{k}" for k in range(4)]
    (tmp_path / "b" / "config.json").write_text(json.dumps(labelled(config, numbered)))
    a, b = opened("a", "b")
    with pytest.raises(AlgebraError, match=r"LABEL_n is a place and no name.*id2label of 'b'"):
        a + b
    (tmp_path / "b" / "config.json").write_text(json.dumps(labelled(config, NAMES)))  # the way out
    a, b = opened("a", "b")
    np.testing.assert_array_equal(
        (a + b).compute(f"{trio}.bias"), tensors(1, trio)[f"{trio}.bias"] + tensors(2, trio)[f"{trio}.bias"]
    )


def test_two_models_without_names_go_by_place(trio, tmp_path):
    for which in ("a", "b"):
        config = json.loads((tmp_path / which / "config.json").read_text())
        del config["id2label"], config["label2id"]
        (tmp_path / which / "config.json").write_text(json.dumps(config | {"num_labels": 4}))
    a, b = opened("a", "b")
    np.testing.assert_array_equal(
        (a + b).compute(f"{trio}.bias"), tensors(1, trio)[f"{trio}.bias"] + tensors(2, trio)[f"{trio}.bias"]
    )


def test_tables_that_do_not_number_rows_are_refused_unless_they_are_the_same(trio, tmp_path):
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    config["id2label"] = {"1": "anger", "2": "joy", "3": "fear", "4": "calm"}
    (tmp_path / "b" / "config.json").write_text(json.dumps(config))
    a, b = opened("a", "b")
    with pytest.raises(AlgebraError, match="id2label must number all rows from 0"):
        a + b
    b + mg.open("b", name="again")


def more_labels(tmp_path):
    """wide: a classifier of five labels, four of them those of a."""
    names = ("calm", "grief", "joy", "anger", "fear")
    write_model(tmp_path / "wide", tensors(3, rows=5), labelled(GPT, names))
    return names


def test_a_label_more_is_refused_and_the_policies_go_by_label(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "a", tensors(1), labelled(GPT, NAMES))
    names = more_labels(tmp_path)

    def merged(first, second, mismatch=None):
        document = {
            "method": "linear",
            "models": [{"model": m, "parameters": {"weight": 1.0}} for m in (first, second)],
        }
        made, _ = recipe.build(recipe.load(document | ({"mismatch": mismatch} if mismatch else {})))
        return made.compute("score.bias")

    with pytest.raises(AlgebraError, match=r"take: \{axis: labels, keep: \[3, 2, 4, 0\]\}") as caught:
        merged("a", "wide")
    assert "`mismatch` in the recipe" in str(caught.value)
    a, wide = tensors(1)["score.bias"], tensors(3, rows=5)["score.bias"]
    np.testing.assert_array_equal(merged("a", "wide", "skip"), a)
    np.testing.assert_array_equal(merged("a", "wide", "base"), a)
    here = [names.index(n) for n in NAMES]
    np.testing.assert_array_equal(merged("a", "wide", "crop"), (a + wide[here]) / 2)
    filled = np.array([a[NAMES.index(n)] if n in NAMES else wide[k] for k, n in enumerate(names)])
    np.testing.assert_array_equal(merged("wide", "a", "pad"), (wide + filled) / 2)
    for first, second, word in (("a", "wide", "pad"), ("wide", "a", "crop")):
        with pytest.raises(MerganserError, match="use base or skip"):
            merged(first, second, word)


def test_policies_hold_for_other_labels_of_the_same_number(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "a", tensors(1), labelled(GPT, NAMES))
    write_model(tmp_path / "c", tensors(2), labelled(GPT, ("anger", "joy", "fear", "grief")))
    for word in ("skip", "base"):
        document = {"method": "linear", "models": [{"model": "a"}, {"model": "c"}], "mismatch": word}
        made, _ = recipe.build(recipe.load(document))
        np.testing.assert_array_equal(made.compute("score.bias"), tensors(1)["score.bias"])
    document["mismatch"] = "crop"
    with pytest.raises(MerganserError, match="use base or skip"):
        recipe.build(recipe.load(document))


def test_a_base_without_a_head_lends_its_config_and_the_labels_stay_with_the_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    body = {n: a for n, a in tensors(0).items() if "score" not in n}
    write_model(tmp_path / "body", body, GPT | {"architectures": ["GPTNeoXModel"]})
    write_model(tmp_path / "b", tensors(2), labelled(GPT, NAMES))
    write_model(tmp_path / "twin", turned(tensors(2)), labelled(GPT, [NAMES[k] for k in ORDER]))
    merged = get("linear")(mg.open("body"), [mg.open("b"), mg.open("twin")], weight=[1.0, 1.0])
    merged.save(tmp_path / "out")
    assert list(json.loads((tmp_path / "out" / "config.json").read_text())["id2label"].values()) == list(
        NAMES
    )
    np.testing.assert_array_equal(read_model(tmp_path / "out")["score.bias"], tensors(2)["score.bias"])


def test_a_head_that_is_not_found_is_refused_where_orders_differ(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, order in (("a", range(4)), ("b", ORDER)):
        config = labelled(
            {"model_type": "detr", "architectures": ["DetrForObjectDetection"]}, [NAMES[k] for k in order]
        )
        arrays = {
            "class_labels_classifier.weight": np.zeros((5, 3), np.float32),
            "auxiliary.classifier.weight": np.zeros((5, 3), np.float32),
            "bbox.bias": np.zeros(4, np.float32),
        }
        write_model(tmp_path / name, arrays, config)
    with pytest.raises(AlgebraError, match="which rows of 'b' are its labels"):
        mg.open("a") + mg.open("b")


# Comparisons ------------------------------------------------------------------------------------------------


def test_comparisons_go_by_label(trio, tmp_path):
    a, b, twin = opened("a", "b", "twin")
    assert between(b, twin)["distance"] == 0
    told = compare(b, mg.open("twin"))
    assert told["summary"]["equal"] == len(b)
    assert {t["note"] for t in told["tensors"] if t["name"].startswith(trio)} == {"rows lined up by label"}
    lined = line_up([a, twin], opened("base")[0])
    place = next(p for p in lined.places if p.name == f"{trio}.bias")
    moved = lined.models[1].compute(place.names[1])
    np.testing.assert_array_equal(moved, tensors(2, trio)[f"{trio}.bias"])


def test_rows_of_other_labels_are_not_compared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "a", tensors(1), labelled(GPT, NAMES))
    write_model(tmp_path / "c", tensors(1), labelled(GPT, ("anger", "joy", "fear", "grief")))
    a, c = mg.open("a"), mg.open("c")
    told = {t["name"]: t for t in compare(a, c)["tensors"]}
    assert (told["score.bias"]["note"], told["score.bias"]["norm"]) == ("rows of other labels", None)
    lined = line_up([a, c])
    assert not any(p.name.startswith("score") for p in lined.places)
    assert "other labels" in next(left["reason"] for left in lined.left_out if left["tensor"] == "score.bias")


def test_a_patch_is_carried_by_label(trio):
    base, a, b, twin = opened("base", "a", "b", "twin")
    found, wanted = port(a, base, twin), port(a, base, b)
    for name in found:
        rows = found.compute(name)
        expected = wanted.compute(name)
        np.testing.assert_array_equal(rows, expected[ORDER] if name.startswith(trio) else expected)
