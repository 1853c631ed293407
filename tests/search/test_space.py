"""Open numbers of recipes: what may be marked, and the recipe that values make."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml
from toy_models import arithmetic, toys, written

from merganser.errors import RequestError
from merganser.recipe import build, load
from merganser.search import Space
from merganser.search.groups import groups
from merganser.search.writer import write_recipe


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return toys(tmp_path)


def opened(place: Path, document: object) -> Space:
    return Space.open(written(place, document))


def test_values_of_every_kind_fill_the_recipe(place: Path) -> None:
    space = opened(
        place,
        arithmetic(
            {"search": [0, 2]},
            {"search": [0.01, 1], "scale": "log", "start": 0.1},
            dtype={"choice": ["float32", "bfloat16"]},
            parameters={"lambda": {"search": [0, 1], "gradient": 3, "start": 1}},
        ),
    )
    keys = [one.key for one in space.dimensions]
    assert keys == [
        "models[0].parameters.weight",
        "models[1].parameters.weight",
        "dtype",
        *(f"parameters.lambda[{k}]" for k in range(3)),
    ]
    assert [one.start for one in space.dimensions] == pytest.approx([0.5, 0.5, 0.25, 1, 1, 1])
    values = space.values([0.25, 1.0, 0.9, 0.0, 0.5, 1.0])
    (made,) = space.plain(values)
    assert made["models"][0]["parameters"]["weight"] == 0.5
    assert made["models"][1]["parameters"]["weight"] == 1.0
    assert made["dtype"] == "bfloat16"
    assert made["parameters"]["lambda"] == [0.0, 0.5, 1.0]
    assert space.dimensions[1].value(0.5) == pytest.approx(0.1)
    assert math.isclose(space.dimensions[1].unit(0.1), 0.5)


def test_one_name_is_one_number(place: Path) -> None:
    space = opened(
        place, arithmetic({"search": [0, 1], "name": "w"}, {"*x": {"search": [0, 1], "name": "w"}, "*": 0.5})
    )
    assert [one.key for one in space.dimensions] == ["w"]
    (made,) = space.plain({"w": 0.75})
    assert made["models"][0]["parameters"]["weight"] == 0.75
    assert made["models"][1]["parameters"]["weight"] == {"*x": 0.75, "*": 0.5}
    with pytest.raises(RequestError, match="is called 'w' and has other bounds"):
        opened(place, arithmetic({"search": [0, 1], "name": "w"}, {"search": [0, 2], "name": "w"}))


@pytest.mark.parametrize("form", ["method", "merge_method"])
def test_by_layer_gives_each_layer_its_number(place: Path, form: str) -> None:
    document = arithmetic({"search": [0, 1], "by": "layer"}, 0.0)
    document = {form: document.pop("method"), **document}
    space = opened(place, document)
    assert [one.key for one in space.dimensions] == [
        f"models[0].parameters.weight[{group}]" for group in ("net.0", "net.1", "out")
    ]
    values = dict(zip([one.key for one in space.dimensions], (0.1, 0.2, 0.3), strict=True))
    weights, _ = build(space.recipe(values))
    # a is (1, 0) and its third number 1
    assert [float(weights.compute(name)[0]) for name in weights] == pytest.approx([0.1, 0.0, 0.3])


def test_groups_are_told_from_names() -> None:
    names = [
        "model.layers.1.mlp.up",
        "model.layers.11.mlp.up",
        "model.embed.weight",
        "x[0]",
        "model.norm.weight",
    ]
    found = groups(names, "layer")
    assert [found[name].pattern for name in names] == [
        "model.layers.1.*",
        "model.layers.11.*",
        "model.embed.*",
        "x[[]0]",
        "model.norm.*",
    ]
    assert groups(names, "tensor")["x[0]"].pattern == "x[[]0]"


@pytest.mark.parametrize(
    ("weight", "told"),
    [
        (0.5, "leaves no number open"),
        ({"search": [1, 0]}, r"models\[0\].parameters.weight.search: expected \[low, high\]"),
        ({"search": [0, 1], "scale": "lig"}, "expected linear or log, not 'lig'"),
        ({"search": [0, 1], "scale": "log"}, "log scale needs low > 0"),
        ({"search": [0, 1], "strat": 0.5}, "weight.strat: unknown key; did you mean 'start'"),
        ({"search": [0, 1], "start": 2}, "start: expected a number from 0 to 1"),
        ({"search": [0, 1], "by": "layers"}, "did you mean 'layer'"),
        ({"search": [0, 1], "points": 1}, "points: expected a whole number from 2"),
        ({"search": [0, 1], "gradient": 1}, "gradient: expected a number of points"),
        ({"search": [0, 1], "gradient": 2, "by": "layer"}, "either by or gradient"),
        ({"choice": [1]}, "expected a list of at least two values"),
        ({"choice": [1, 1]}, "a value is listed twice"),
        ({"choice": [1, 2], "start": 3}, "none of the choices"),
        ({"*x": {"search": [0, 1], "by": "layer"}, "*": 1}, "whole value of a parameter"),
        ({"*q": {"search": [0, 1]}, "*": 1}, None),
        ({"search": [0, 1], "name": ""}, "expected a name"),
    ],
)
def test_wrong_marks_are_told(place: Path, weight: object, told: str | None) -> None:
    if told is None:  # a pattern that matches nothing is told when the recipe is built
        space = opened(place, arithmetic(weight, 1.0))
        with pytest.raises(RequestError, match="no tensor matches the pattern"):
            build(space.recipe(space.values([0.5])))
        return
    with pytest.raises(RequestError, match=told):
        opened(place, arithmetic(weight, 1.0))


def test_a_wrong_recipe_is_told_as_ever(place: Path) -> None:
    with pytest.raises(RequestError, match="unknown parameter of task_arithmetic"):
        opened(place, arithmetic({"search": [0, 1]}, 1.0, parameters={"densty": 0.1}))
    with pytest.raises(RequestError, match="slices"):
        source = {
            "model": "a",
            "layer_range": [0, 1],
            "parameters": {"weight": {"search": [0, 1], "by": "layer"}},
        }
        opened(place, {"method": "linear", "slices": [{"sources": [source]}]})


def test_the_writer_keeps_numbers_and_finds_models_from_elsewhere(place: Path, tmp_path: Path) -> None:
    numbers = [0.1 + 0.2, 1e-17, 1 / 3, 5e22, -0.0]
    document = arithmetic(numbers[0], {"*x": numbers[1], "*y": numbers[2], "*": numbers[3]})
    (tmp_path / "else" / "where").mkdir(parents=True)
    out = tmp_path / "else" / "where" / "found.yaml"
    write_recipe(out, [document], {"found by": "a test: #1", "n": [1, 2]}, source=place, overwrite=False)
    text = out.read_text()
    assert text.startswith("# found by: 'a test: #1'\n")
    again = yaml.safe_load(text)
    assert again["base_model"] == "../../base"
    assert again["models"][0]["parameters"]["weight"] == numbers[0]
    assert list(again["models"][1]["parameters"]["weight"].values()) == numbers[1:4]
    assert len(build(load(out))[0]) == 3
    with pytest.raises(RequestError, match="already exists"):
        write_recipe(out, [document], {}, source=place, overwrite=False)
    with pytest.raises(RequestError, match=r"called \*.yaml"):
        write_recipe(out.with_suffix(".json"), [document], {}, source=place, overwrite=False)
    assert sorted(path.name for path in out.parent.iterdir()) == ["found.yaml"]
