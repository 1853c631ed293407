from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

import merganser
from merganser import recipe
from merganser.errors import MerganserError, RequestError


@pytest.fixture
def parents(tmp_path, monkeypatch):
    """Four models in the working directory, as arrays."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    arrays = {}
    for name in ("base", "a", "b", "c"):
        arrays[name] = {
            "layers.0.mlp.w": rng.standard_normal((4, 4)).astype(np.float32),
            "layers.0.attn.w": rng.standard_normal((4, 4)).astype(np.float32),
            "head.w": rng.standard_normal(6).astype(np.float32),
        }
        (tmp_path / name).mkdir()
        save_file(arrays[name], tmp_path / name / "model.safetensors")
    return arrays


def built(text, **options):
    return recipe.build(recipe.load(text), **options)


def same(weights, expected):
    assert set(weights) == set(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(
            merganser.compute(weights, name), array, rtol=2e-6, atol=2e-7, err_msg=name
        )


def by_name(parents, function):
    return {
        n: function(n, *(parents[m][n].astype(np.float64) for m in ("base", "a", "b"))) for n in parents["a"]
    }


TWO = """
{form}: {method}
base_model: base
models:
  - model: a
    parameters: {{weight: 0.5}}
  - model: b
    parameters: {{weight: 0.25}}
parameters: {{{parameters}}}
"""


def two(form, method, parameters=""):
    return TWO.format(form=form, method=method, parameters=parameters)


# Both forms -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["method", "merge_method"])
def test_task_arithmetic(parents, form):
    weights, fields = built(two(form, "task_arithmetic", "lambda: 0.5"))
    same(weights, by_name(parents, lambda n, base, a, b: base + 0.5 * (0.5 * (a - base) + 0.25 * (b - base))))
    assert fields["dtype"] is None
    assert fields["seed"] == 0
    assert json.loads(json.dumps(fields["recipe"]))["form"] == {"method": "merganser"}.get(form, "mergekit")


def test_a_recipe_may_be_a_file_a_text_or_a_mapping(parents, tmp_path):
    text = two("method", "task_arithmetic")
    (tmp_path / "r.yaml").write_text(text)
    canonical = recipe.load(text).canonical
    assert recipe.load(tmp_path / "r.yaml").canonical == canonical
    assert recipe.load("r.yaml").canonical == canonical
    assert recipe.load(yaml.safe_load(text)).canonical == canonical
    assert recipe.load("{method: linear, models: [{model: a}]}").method.name == "linear"


def test_paths_are_looked_for_here_and_then_beside_the_recipe(parents, tmp_path, monkeypatch):
    (tmp_path / "r.yaml").write_text("method: linear\nmodels: [{model: a}]\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    same(built(tmp_path / "r.yaml")[0], parents["a"])
    (elsewhere / "a").mkdir()
    save_file(parents["b"], elsewhere / "a" / "model.safetensors")
    same(built(tmp_path / "r.yaml")[0], parents["b"])


def test_a_model_that_is_not_there(parents):
    with pytest.raises(MerganserError, match="no checkpoint at 'nowhere'"):
        built("method: linear\nmodels: [{model: nowhere}]")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("dtype: bfloat16", "bfloat16"),
        ("dtype: float32\nout_dtype: float16", "float16"),
        ("out_dtype: bfloat16", "bfloat16"),
        ("", None),
    ],
)
def test_dtype_is_that_of_the_output(parents, keys, expected):
    for form in ("method", "merge_method"):
        assert built(two(form, "ties") + keys)[1]["dtype"] == expected


@pytest.mark.parametrize("form", ["method", "merge_method"])
@pytest.mark.parametrize(
    "models", ["[{model: a}]", "[{model: base}, {model: a}]", "[{model: a}, {model: ./base}]"]
)
def test_slerp_goes_from_the_base_to_the_other(parents, form, models):
    weights, _ = built(f"{form}: slerp\nbase_model: base\nmodels: {models}\nparameters: {{t: 1}}")
    same(weights, parents["a"])
    weights, _ = built(f"{form}: slerp\nbase_model: base\nmodels: {models}\nparameters: {{t: 0.0}}")
    same(weights, parents["base"])


@pytest.mark.parametrize("form", ["method", "merge_method"])
def test_a_listed_base_is_no_delta(parents, form):
    models = "[{model: base}, {model: a}]"
    text = f"{form}: task_arithmetic\nbase_model: base\nmodels: {models}\nparameters: {{weight: 1}}"
    same(built(text)[0], parents["a"])


def test_filters_take_the_first_substring_that_matches(parents):
    weights, _ = built(
        two(
            "merge_method",
            "task_arithmetic",
            "lambda: [{filter: mlp, value: 0}, {filter: layers, value: 1e-1}, {value: 1}]",
        )
    )
    scale = {"layers.0.mlp.w": 0.0, "layers.0.attn.w": 0.1, "head.w": 1.0}
    same(
        weights,
        by_name(parents, lambda n, base, a, b: base + scale[n] * (0.5 * (a - base) + 0.25 * (b - base))),
    )


@pytest.mark.parametrize("form", ["method", "merge_method"])
def test_a_models_own_value_stands_above_the_global_one_and_falls_back_to_it(parents, form):
    weights, _ = built(
        f"""
{form}: task_arithmetic
base_model: base
models:
  - model: a
    parameters:
      weight: {{filter: mlp, value: 2}}
  - model: b
parameters:
  weight:
    - filter: head
      value: 3
    - filter: "*"
      value: 0.5
"""
    )
    first = {"layers.0.mlp.w": 2.0, "layers.0.attn.w": 0.5, "head.w": 3.0}
    second = {"layers.0.mlp.w": 0.5, "layers.0.attn.w": 0.5, "head.w": 3.0}
    same(
        weights,
        by_name(parents, lambda n, base, a, b: base + first[n] * (a - base) + second[n] * (b - base)),
    )


def test_a_tensor_without_a_value_is_an_error(parents):
    text = two("merge_method", "task_arithmetic").replace(
        "{weight: 0.25}", "{weight: {filter: mlp, value: 1}}"
    )
    with pytest.raises(
        RequestError, match=r"models\[1\].parameters.weight: gives no weight for tensor 'head.w'"
    ):
        merganser.compute(built(text)[0], "head.w")


@pytest.mark.parametrize("form", ["method", "merge_method"])
def test_a_switch_may_differ_between_tensors(parents, form):
    weights, _ = built(
        two(form, "task_arithmetic", "normalize: [{filter: head, value: true}, {value: false}]")
    )

    def expected(n, base, a, b):
        return base + (0.5 * (a - base) + 0.25 * (b - base)) / (0.75 if n == "head.w" else 1.0)

    same(weights, by_name(parents, expected))


# merganser's own form ---------------------------------------------------------------------------------------


def test_patterns(parents):
    weights, _ = built(
        two("method", "task_arithmetic", "scale: {'*.mlp.*': 0, 're:^layers\\.0\\.a': 0.1, '*': 1}").replace(
            "{{", "{"
        )
    )
    scale = {"layers.0.mlp.w": 0.0, "layers.0.attn.w": 0.1, "head.w": 1.0}
    same(
        weights,
        by_name(parents, lambda n, base, a, b: base + scale[n] * (0.5 * (a - base) + 0.25 * (b - base))),
    )


def test_a_pattern_that_matches_nothing_is_an_error(parents):
    with pytest.raises(
        RequestError,
        match=r"parameters.lambda: no tensor matches the pattern 'haed.w'; did",
    ):
        built(two("method", "task_arithmetic", "lambda: {haed.w: 0, '*': 1}"))
    with pytest.raises(RequestError, match="open numbers is one for `merganser search`"):
        built(two("method", "task_arithmetic", "lambda: {search: [0, 1]}"))
    with pytest.raises(RequestError, match="'serach'; did you mean 'search'"):
        built(two("method", "task_arithmetic", "lambda: {serach: [0, 1]}"))


def test_linear_in_our_form_only_borrows_from_the_base(parents):
    weights, _ = built("method: linear\nbase_model: base\nmodels: [{model: a}, {model: b}]")
    same(weights, by_name(parents, lambda n, base, a, b: (a + b) / 2))
    assert weights.origin.name == "base"
    weights, _ = built("method: linear\nbase_model: base\nmodels: [{model: a}, {model: base}]")
    same(weights, by_name(parents, lambda n, base, a, b: (a + base) / 2))


def test_linear_in_mergekits_form_merges_the_base_too(parents):
    text = "merge_method: linear\nbase_model: base\nmodels: [{model: a}, {model: b}]\n"
    weights, _ = built(text + "parameters: {weight: 1}")
    same(weights, by_name(parents, lambda n, base, a, b: (a + b + base) / 3))
    each = "merge_method: linear\nbase_model: base\nmodels: [{model: a, parameters: {weight: 1}}]"
    with pytest.raises(RequestError, match="base_model: mergekit's linear merges the base too"):
        recipe.load(each)


def test_the_seed_of_the_call_stands_above_the_recipes(parents):
    text = two("method", "dare_linear", "density: 0.5") + "seed: 7\n"
    weights, fields = built(text)
    assert fields["seed"] == fields["recipe"]["seed"] == 7
    again, fields = built(text, seed=7)
    other, fields = built(text, seed=8)
    assert fields["seed"] == fields["recipe"]["seed"] == 8
    first = merganser.compute(weights, "layers.0.mlp.w")
    np.testing.assert_array_equal(first, merganser.compute(again, "layers.0.mlp.w"))
    assert (first != merganser.compute(other, "layers.0.mlp.w")).any()


def test_degree_is_passed_on(parents):
    text = "method: linear\nmodels: [{model: a}]\nparameters: {normalize: false, weight: 0.5}\n"
    weights, fields = built(text + "degree: 0.5")
    assert fields["degree"] == weights.degree == 0.5
    assert "degree" not in built(text)[1]


def test_names_and_labels():
    def labels(*entries, base=None):
        raw = {"method": "linear", "models": list(entries)} | ({"base_model": base} if base else {})
        return [model.label for model in recipe.load(raw).models]

    assert labels({"model": "x/run"}, {"model": "y/run"}, {"model": "z/run/"}) == ["run", "run#2", "run#3"]
    assert labels({"model": "x/run"}, {"model": "y", "name": "run"}) == ["run#2", "run"]
    assert labels({"model": "x/run"}, {"model": "y/run#2"}, {"model": "z/run"}) == ["run", "run#2", "run#3"]
    assert labels({"model": "x/run"}, base="y/run") == ["run", "run#2"]
    with pytest.raises(RequestError, match=r"models\[1\].name: two models are called 'm'"):
        labels({"model": "a", "name": "m"}, {"model": "b", "name": "m"})


def test_models_of_one_directory_name_draw_differently(parents, tmp_path):
    for place in ("x", "y"):
        (tmp_path / place / "run").mkdir(parents=True)
        ones = {n: v + 1 for n, v in parents["base"].items()}
        save_file(ones, tmp_path / place / "run" / "model.safetensors")
    masks = []
    for weights in ([1, 0], [0, 1]):
        models = [
            {"model": f"{place}/run", "parameters": {"weight": w}}
            for place, w in zip("xy", weights, strict=True)
        ]
        raw = {
            "method": "dare_linear",
            "base_model": "base",
            "models": models,
            "parameters": {"density": 0.5},
        }
        merged = merganser.compute(built(raw)[0], "layers.0.mlp.w")
        masks.append(merged > parents["base"]["layers.0.mlp.w"] + 1)
    assert (masks[0] != masks[1]).any()


# mergekit's form --------------------------------------------------------------------------------------------


def test_mergekits_defaults(parents):
    """density 1, weights required, ties normalised and exact ties to plus; rescale switches l1 on."""
    weights, _ = built(two("merge_method", "ties"))

    def elected(n, base, a, b):
        x, y = 0.5 * (a - base), 0.25 * (b - base)
        sign = np.where(x + y >= 0, 1, -1)
        inside_x, inside_y = np.sign(x) == sign, np.sign(y) == sign
        return base + (x * inside_x + y * inside_y) / (0.5 * inside_x + 0.25 * inside_y)

    same(weights, by_name(parents, elected))

    weights, _ = built(two("merge_method", "breadcrumbs", "density: 0.5, gamma: 0.25, rescale: true"))

    def crumbs(n, base, a, b):
        total = 0.0
        for w, v in ((0.5, a - base), (0.25, b - base)):
            order = np.argsort(-np.abs(v).ravel())
            mask = np.zeros(v.size)
            mask[order[int(0.25 * v.size) : int(0.25 * v.size) + int(0.5 * v.size)]] = 1
            kept = v * mask.reshape(v.shape)
            total = total + w * kept * np.abs(v).sum() / np.abs(kept).sum()
        return base + total

    same(weights, by_name(parents, crumbs))


def test_keys_without_effect_are_accepted(parents):
    plain, _ = built(two("merge_method", "task_arithmetic"))
    extra, _ = built(two("merge_method", "task_arithmetic", "int8_mask: true, rescale: false, density: 0.3"))
    for name in plain:
        np.testing.assert_array_equal(merganser.compute(plain, name), merganser.compute(extra, name))
    ties = two("merge_method", "ties", "int8_mask: 1, density: 0.5")
    assert set(recipe.load(ties).parameters) == {"density"}


def test_dare_without_rescale(parents):
    weights, _ = built(
        two("merge_method", "dare_linear", "density: 0.5, rescale: false").replace("0.25", "0")
    )
    merged, base, a = (
        merganser.compute(weights, "layers.0.mlp.w"),
        parents["base"]["layers.0.mlp.w"],
        parents["a"]["layers.0.mlp.w"],
    )
    whole = base + 0.5 * (a.astype(np.float64) - base)
    assert (np.isclose(merged, base, rtol=1e-5) | np.isclose(merged, whole, rtol=1e-5)).all()


# What is refused, and how -----------------------------------------------------------------------------------

GOOD = two("method", "ties")
THEIRS = two("merge_method", "ties")
BAD = {
    "not a mapping": ("- 1\n- 2\n", "a recipe is a mapping"),
    "empty": ("\n", "a recipe is a mapping"),
    "no method": ("models:\n- model: a\n", "names no method"),
    "method misspelt": ("metod: ties\nmodels: []\n", "metod: unknown key; did you mean 'method'"),
    "both methods": (GOOD + "merge_method: ties\n", "either merge_method"),
    "unknown method": (GOOD.replace("ties", "tise"), "method: unknown method 'tise'; did you mean 'ties'"),
    "method of wrong type": (GOOD.replace("ties", "3"), "expected the name of a method, not 3"),
    "unknown key": (THEIRS + "paramaters: {}\n", "paramaters: unknown key; did you mean 'parameters'"),
    "slices beside models": (THEIRS + "slices: [1]\n", "slices: a recipe has one of models, slices, modules"),
    "our key in theirs": (THEIRS + "seed: 1\n", "seed: belongs to merganser's own form"),
    "no models": ("method: linear\nmodels:\n", "models: expected a list"),
    "models of wrong type": ("method: linear\nmodels: a\n", "models: expected a list"),
    "model of wrong type": ("method: linear\nmodels: [a]\n", r"models\[0\]: expected {model: PATH"),
    "model without path": ("method: linear\nmodels: [{}]\n", r"models\[0\]: names no model"),
    "model path of wrong type": (
        "method: linear\nmodels: [{model: 3}]\n",
        r"models\[0\].model: expected the path",
    ),
    "model key": ("method: linear\nmodels: [{model: a, wieght: 1}]\n", r"models\[0\].wieght: unknown key"),
    "two loras": (THEIRS.replace("model: a", "model: a+b+c"), "has more than one"),
    "model twice": (THEIRS.replace("model: b", "model: ./a"), r"models\[1\].model: './a' is listed twice"),
    "no base": (GOOD.replace("base_model: base\n", ""), "base_model: ties needs a base model"),
    "only the base": (
        "method: ties\nbase_model: a\nmodels: [{model: a}]\n",
        "takes at least 1 model beside its base",
    ),
    "parameters of the base": (GOOD.replace("model: a", "model: base"), "ties does not merge the base"),
    "slerp of three": (
        "method: slerp\nbase_model: a\nmodels: [{model: b}, {model: c}]\nparameters: {t: 0.5}\n",
        "slerp takes exactly 1 model beside its base; there are 2",
    ),
    "slerp without t": ("method: slerp\nbase_model: a\nmodels: [{model: b}]\n", "parameters: slerp needs t"),
    "no weight in theirs": (
        "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}, {model: b}]\n",
        r"models\[1\].parameters: linear needs weight for every model",
    ),
    "parameter misspelt": (
        GOOD.replace("{weight: 0.25}", "{densty: 0.5}"),
        r"models\[1\].parameters.densty: unknown parameter of ties; did you mean 'density'",
    ),
    "parameter of another method": (
        two("method", "linear", "density: 1"),
        "density: unknown parameter of linear",
    ),
    "our parameter in theirs": (
        two("merge_method", "ties", "tie: plus"),
        "parameters.tie: unknown parameter",
    ),
    "global parameter on a model": (
        GOOD.replace("{weight: 0.25}", "{normalize: true}"),
        r"models\[1\].parameters.normalize: there is one normalize for all models",
    ),
    "lambda twice": (two("method", "ties", "lambda: 1, scale: 1"), "lambda and scale are the same"),
    "seed among parameters": (two("method", "dare_ties", "seed: 1"), "the seed stands at the top"),
    "text for a number": (
        two("method", "ties", "lambda: big"),
        "parameters.lambda: expected a number, not 'big'",
    ),
    "bool for a number": (two("method", "ties", "lambda: true"), "expected a number, not true"),
    "nan": (two("method", "ties", "lambda: .nan"), "expected a number, not nan"),
    "infinite": (two("method", "ties", "lambda: .inf"), "expected a number, not inf"),
    "huge": (two("method", "ties", "lambda: 1" + "0" * 400), "expected a number"),
    "nothing": (two("method", "ties", "lambda: "), "lambda: has no value"),
    "density above 1": (two("method", "ties", "density: 20"), "density is a share, from 0 to 1, not 20"),
    "density below 0": (
        two("merge_method", "ties", "density: -0.1"),
        "density is a share, from 0 to 1, not -0.1",
    ),
    "number for a bool": (two("method", "ties", "normalize: 2"), "normalize: expected true or false, not 2"),
    "wrong choice": (
        two("method", "ties", "scope: modle"),
        "expected one of tensor, model, .*did you mean 'model'",
    ),
    "bool for a choice": (two("method", "ties", "rescale: true"), "expected one of none, l1, not true"),
    "gradient out of range": (
        two("merge_method", "ties", "density: [0.1, 1.5]"),
        r"density\[1\]: density is a share, from 0 to 1, not 1.5",
    ),
    "empty gradient in a filter": (
        two("merge_method", "ties", "density: [{filter: mlp, value: []}]"),
        r"density\[0\].value: an empty list",
    ),
    "empty list": (two("method", "ties", "density: []"), "an empty list"),
    "filter misspelt": (
        two("merge_method", "ties", "density: [{fliter: mlp, value: 1}]"),
        r"density\[0\].fliter: unknown key; did you mean 'filter'",
    ),
    "filter without value": (
        two("method", "ties", "density: [{filter: mlp}]"),
        r"density\[0\]: has no value",
    ),
    "mixed list": (two("method", "ties", "density: [{value: 1}, 0.5]"), r"density\[1\]: expected {filter"),
    "pattern that is no expression": (
        two("method", "ties", "density: {'re:(': 1}"),
        "is not a regular expression",
    ),
    "dtype": (GOOD + "dtype: bfloat61\n", "dtype: unknown dtype 'bfloat61'; did you mean 'bfloat16'"),
    "integer dtype": (GOOD + "dtype: int64\n", "dtype: expected a float dtype"),
    "dtype of wrong type": (
        GOOD + "out_dtype: 16\n",
        "out_dtype: expected a float dtype such as bfloat16, not 16",
    ),
    "negative seed": (GOOD + "seed: -1\n", "seed: expected a whole number"),
    "seed of wrong type": (GOOD + "seed: 1.5\n", "seed: expected a whole number"),
    "degree of wrong type": (GOOD + "degree: one\n", "degree: expected a number"),
    "key twice": (GOOD + "method: linear\n", "line 10: the key 'method' is given twice"),
    "deep key twice": (
        GOOD.replace("{weight: 0.5}", "{weight: 0.5, weight: 1}"),
        "the key 'weight' is given twice",
    ),
    "not YAML": ("method: [\n", "not acceptable YAML: line "),
    "two results": ("method: a\n---\nmethod: b\n", "has no name, and neither has another"),
    "python tag": ("method: !!python/object/apply:os.system ['true']\n", "has no meaning in a recipe"),
    "set tag": ("method: !!set {a}\n", "has no meaning in a recipe"),
    "merge key": ("x: &x {a: 1}\ny:\n  <<: *x\n", "keys must be plain text"),
    "recursion": ("method: &x\n  - *x\n", "nested deeper|not acceptable|found unconstructable"),
    "deep": ("method: " + "[" * 5000 + "]" * 5000 + "\n", "nested deeper|not acceptable YAML: line 1"),
    "less deep": ("method: " + "[" * 40 + "]" * 40 + "\n", "nested deeper"),
    "control character": ("method: a\x07\n", "not acceptable YAML"),
    "too long": ("method: linear\n" + "#" * 1_000_001, "longer than"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_refused(name):
    text, message = BAD[name]
    with pytest.raises(RequestError, match=message) as error:
        recipe.load(text)
    assert str(error.value).startswith("recipe: ")


def test_aliases_are_read_but_cannot_explode():
    text = "method: linear\nmodels:\n- {model: a, parameters: &p {weight: 2}}\n- {model: b, parameters: *p}\n"
    source = recipe.load(text).parts[0].slices[0].sources[1]
    assert source.parameters["weight"].value("x") == 2.0
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
    )
    with pytest.raises(RequestError, match=r"more than 100,000 values"):
        recipe.load(bomb)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(RequestError, match="no recipe at"):
        recipe.load(tmp_path / "none.yaml")
    (tmp_path / "some.yaml").write_text("method: linear\n")
    with pytest.raises(RequestError, match=r"did you mean '.*some\.yaml'"):
        recipe.load(tmp_path / "sme.yaml")
    with pytest.raises(RequestError, match="cannot be read"):
        recipe.load(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"method: \xff\xfe\n")
    with pytest.raises(RequestError, match="not UTF-8"):
        recipe.load(tmp_path / "bytes.yaml")
    (tmp_path / "long.yaml").write_bytes(b"#" * 1_000_001)
    with pytest.raises(RequestError, match="longer than"):
        recipe.load(tmp_path / "long.yaml")


def test_errors_name_the_file_and_the_place(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(GOOD.replace("{weight: 0.25}", "{densty: 0.5}"))
    with pytest.raises(RequestError, match=r"r\.yaml: models\[1\]\.parameters\.densty"):
        recipe.load(path)
