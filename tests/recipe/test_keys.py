"""Keys that mergekit 0.1.5 takes no notice of, as people leave them in recipes: read over with a word, or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from makers import normal, read_model, write_model
from tiny_llamas import llama

from merganser import recipe
from merganser.cli import run
from merganser.errors import RequestError
from merganser.search import Space

TWO = """models:
- {model: a, parameters: {weight: 0.25}}
- {model: b, parameters: {weight: 0.75}}
"""
LINEAR = "merge_method: linear\n" + TWO
TIES = "merge_method: ties\nbase_model: a\nmodels: [{model: b, parameters: {weight: 1, density: 0.5}}]\n"

READ_OVER = {
    "at the top": (LINEAR + "random_seed: 0\n", "random_seed"),
    "a dtype that is misspelt": (LINEAR + "dtyp: float16\n", "dtyp (did you mean 'dtype'?)"),
    "two": (LINEAR + "tags: [merge]\nlicense: mit\n", "tags, license"),
    "under a model": (LINEAR.replace("model: a,", "model: a, layer_range: [0, 2],"), "models[0].layer_range"),
    "of another method": (TIES + "parameters: {select_topk: 0.2}\n", "parameters.select_topk"),
    "of all, under a model": (
        TIES.replace("density: 0.5", "density: 0.5, lambda: 0.1"),
        "models[0].parameters.lambda (there is one for all models, under parameters)",
    ),
    "of another method, where ours has it too": (
        (
            "merge_method: nearswap\nbase_model: a\nmodels: [{model: b}]\n"
            "parameters: {t: 0.1, normalize: true, lambda: 2}\n"
        ),
        "parameters.normalize, parameters.lambda",
    ),
    "scale of a stack": (
        "merge_method: sce\nbase_model: a\nmodels: [{model: b}]\nparameters: {lambda: 2, density: 0.5}\n",
        "parameters.lambda, parameters.density",
    ),
    "without a value": (TIES + "parameters: {lambda: null}\n", "parameters.lambda (has no value)"),
    "in a filter": (
        LINEAR.replace("weight: 0.25", "weight: [{filter: x, value: 0.25, note: low}, {value: 0.25}]"),
        "models[0].parameters.weight[0].note",
    ),
    "a bool as a number": (
        LINEAR.replace("0.25", "true"),
        "models[0].parameters.weight (true is taken as 1)",
    ),
    "a number as a bool": (
        LINEAR + "parameters: {normalize: 2.5}\n",
        "parameters.normalize (2.5 is taken as True)",
    ),
    "a layer in quotes": (
        'merge_method: passthrough\nslices: [{sources: [{model: c, layer_range: ["0", 2.0]}]}]\n',
        "layer_range[0] ('0' is taken as 0), slices[0].sources[0].layer_range[1] (2.0 is taken as 2)",
    ),
    "twice": (
        LINEAR + "parameters: {normalize: false}\nparameters: {normalize: true}\n",
        "the key 'parameters' is given twice (as PyYAML reads it)",
    ),
    "a merge of lists": (
        """base: &d {weight: 0.25, density: 1.0}
merge_method: linear
models:
- {model: a, parameters: {weight: 0.25}}
- model: b
  parameters: {<<: [*d], weight: 0.75}
""",
        "keys must be plain text",
    ),
    "a document": (
        "name: spare\n" + TIES + "---\n" + LINEAR,
        "the document spare (nothing uses it, so it is not made)",
    ),
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for seed, name in enumerate("ab"):
        write_model(tmp_path / name, {"x": normal(4, seed=seed)})
    llama(tmp_path / "c", 3)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", list(READ_OVER))
def test_it_is_read_over_with_a_word(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, told = READ_OVER[name]
    Path("r.yaml").write_text(text)
    assert run(["merge", "r.yaml", "out", "--quiet", "--no-sync"]) == 0
    warned = capsys.readouterr().err
    assert warned.startswith("warning: ") and told in warned
    assert run(["explain", "r.yaml"]) == 0
    assert told in capsys.readouterr().err
    for command in (["merge", "r.yaml", "other"], ["explain", "r.yaml"]):
        assert run([*command, "--strict"]) == 2
        assert told in capsys.readouterr().err
    assert not Path("other").exists()


def test_the_values_are_those_of_the_recipe_without_it(place: Path) -> None:
    def made(name: str, text: str) -> np.ndarray:
        Path("r.yaml").write_text(text)
        assert run(["merge", "r.yaml", name, "--quiet", "--no-sync"]) == 0
        return read_model(Path(name))["x"]

    plain = made("plain", LINEAR)
    for name in (
        "at the top",
        "in a filter",
        "twice",
        "a merge of lists",
        "a document",
        "a number as a bool",
    ):
        np.testing.assert_array_equal(made(name, READ_OVER[name][0]), plain)
    np.testing.assert_array_equal(
        made("one", LINEAR.replace("0.25", "true")), made("two", LINEAR.replace("0.25", "1.0"))
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LINEAR + "paramters: {normalize: true}\n", "paramters: unknown key; did you mean 'parameters'"),
        (TIES.replace("density", "densty"), "densty: unknown parameter of ties; did you mean 'density'"),
        (LINEAR.replace("{model: a,", "{model: a, paramters: {},"), r"models\[0\]\.paramters: unknown key"),
        (
            TIES + "parameters: {tie: zero}\n",
            "tie: unknown parameter of mergekit's ties; it belongs to merganser",
        ),
        (LINEAR + "steps: [{take: {axis: neurons, keep: 0-3}}]\n", "steps: belongs to merganser's own form"),
        (LINEAR.replace("merge_method", "method") + "tags: [merge]\n", "tags: unknown key"),
        (
            LINEAR.replace("merge_method", "method") + "dtype: float32\ndtype: float16\n",
            "the key 'dtype' is given twice",
        ),
        (LINEAR + "? [a]\n: 1\n", "keys must be plain text"),
        ("merge_method: linear\n<<: [1]\n" + TWO, "<< merges mappings"),
    ],
)
def test_what_was_meant_and_would_not_happen_is_an_error(text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        recipe.load(text)


def test_mixtures_too() -> None:
    text = """base_model: a
gate_mode: random
experts:
- {source_model: a, weight: 0.5}
- {source_model: b}
tokenizer: union
"""
    assert recipe.load(text).ignored == ("tokenizer", "experts[0].weight")
    prompts = text.replace("random", "hidden").replace("b}", "b, positive_prompts: ['']}")
    assert recipe.load(prompts.replace("weight: 0.5", "positive_prompts: [x]")).ignored == ("tokenizer",)
    with pytest.raises(RequestError, match="did you mean 'gate_mode'"):
        recipe.load(text.replace("gate_mode", "gate_mod"))


OPEN = """merge_method: task_arithmetic
base_model: a
models: [{model: b, parameters: {weight: {search: [0, 1]}}}]
parameters: {normalize: false}
parameters: {normalize: false}
tags: [merge]
"""


def test_a_recipe_with_open_numbers_is_read_so_too(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("r.yaml").write_text(OPEN)
    assert Space.open("r.yaml").ignored == (
        "line 5: the key 'parameters' is given twice (as PyYAML reads it)",
        "tags",
    )
    assert run(["search", "r.yaml", "suite.yaml", "out.yaml", "--strict"]) == 2
    assert "tags; without --strict it is a warning" in capsys.readouterr().err
    assert run(["search", "r.yaml", "suite.yaml", "out.yaml"]) == 2  # there is no suite
    assert capsys.readouterr().err.startswith("warning: keys of the recipe that are read over")
    Path("own.yaml").write_text(OPEN.replace("merge_method", "method"))
    with pytest.raises(RequestError, match="given twice"):
        Space.open("own.yaml")


@pytest.mark.models
def test_commands_that_run_a_recipe_know_strict(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("r.yaml").write_text(OPEN.replace("{search: [0, 1]}", "0.5"))
    for command in ("learn", "evaluate"):
        assert run([command, "r.yaml", "suite.yaml", "out.yaml", "--strict"]) == 2
        assert "tags; without --strict it is a warning" in capsys.readouterr().err
    assert run(["learn", "r.yaml", "suite.yaml", "out.yaml"]) == 2
    assert "warning: keys of the recipe that are read over" in capsys.readouterr().err
