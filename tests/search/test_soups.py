"""Soups against averages done by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from makers import write_model
from toy_models import NAMES, near, toys

import merganser as mg
from merganser.errors import RequestError
from merganser.recipe import build, load
from merganser.search import CallableFitness, soup
from merganser.search.soups import soup_into


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return toys(tmp_path)


def test_greedy_keeps_what_does_not_hurt(place: Path) -> None:
    # Fitness: minus the squared distance from (0.5, 0.5). Alone: base -0.5, a -0.5, b -0.5, c -14.5; equal ones keep
    # their order. base; with a (0.5, 0): -0.25, kept; with b (1/3, 1/3): -1/18, kept;
    # with c (0, 1.25): worse, left out.
    models = [mg.open(name, name=name) for name in ("c", "base", "a", "b")]
    found = soup(models, near(0.5, 0.5))
    assert found.ingredients == (1, 2, 3)
    assert [(k, added) for k, _, added in found.tried] == [(1, True), (2, True), (3, True), (0, False)]
    assert [score.fitness for score in found.singles] == [-14.5, -0.5, -0.5, -0.5]
    assert [score.fitness for _, score, _ in found.tried] == pytest.approx([-0.5, -0.25, -1 / 18, -0.8125])
    assert found.uniform.fitness == pytest.approx(-0.8125)
    assert found.score.fitness == pytest.approx(-1 / 18)


def test_an_average_that_is_as_good_is_kept(place: Path) -> None:
    models = [
        mg.open("a", name="a"),
        mg.open("base", name="base"),
    ]  # (0.5, 0) is as far from (0.75, 0) as (1, 0)
    assert soup(models, near(0.75, 0.0)).ingredients == (0, 1)


def test_the_recipe_makes_the_soup(place: Path) -> None:
    (place / "out").mkdir()
    found = soup_into(["c", "base", "a", "b"], near(0.5, 0.5), place / "out" / "soup.yaml")
    document = yaml.safe_load((place / "out" / "soup.yaml").read_text())
    assert [one["model"] for one in document["models"]] == ["../base", "../a", "../b"]
    weights, _ = build(load(place / "out" / "soup.yaml"))
    x, y = (float(weights.compute(name)[0]) for name in NAMES[:2])
    assert -((x - 0.5) ** 2) - (y - 0.5) ** 2 == found.score.fitness
    assert (place / "out" / "soup.journal.jsonl").exists()
    uniform = soup_into(["c", "base"], near(0.5, 0.5), place / "out" / "all.yaml", kind="uniform")
    assert uniform.score == uniform.uniform
    assert len(yaml.safe_load((place / "out" / "all.yaml").read_text())["models"]) == 2


def test_a_link_to_a_model_stays_in_the_recipe(place: Path) -> None:
    (place / "links").mkdir()
    (place / "links" / "run").symlink_to(place / "a")
    soup_into(["base", "links/run"], near(0.5, 0.5), place / "soup.yaml")
    document = yaml.safe_load((place / "soup.yaml").read_text())
    assert [one["model"] for one in document["models"]] == ["base", "links/run"]


def test_wrong_requests_are_told(place: Path) -> None:
    models = [mg.open("a", name="a"), mg.open("b", name="b")]
    with pytest.raises(RequestError, match="unknown soup 'gredy'; did you mean 'greedy'"):
        soup(models, near(0, 0), kind="gredy")
    with pytest.raises(RequestError, match="at least two models; there is 1"):
        soup(models[:1], near(0, 0))
    with pytest.raises(RequestError, match="given twice"):
        soup_into(["a", "./a"], near(0, 0), place / "soup.yaml")
    write_model(place / "wide", {name: np.zeros(2, np.float32) for name in NAMES})
    with pytest.raises(RequestError, match="shape"):
        soup([*models, mg.open("wide", name="wide")], near(0, 0))


def test_models_that_contradict_each_other_make_a_soup_where_that_is_allowed(place: Path) -> None:
    for name, theta in (("a", 1e4), ("b", 1e6)):
        (place / name / "config.json").write_text(f'{{"model_type": "toy", "rope_theta": {theta}}}')
    with pytest.raises(RequestError, match=r"rope_theta is .* soup --allow rope_theta"):
        soup_into(["a", "b"], near(0.5, 0.5), place / "soup.yaml")
    found = soup_into(["a", "b"], near(0.5, 0.5), place / "soup.yaml", allow=["rope_theta"])
    assert found.ingredients == (0, 1)
    weights, _ = build(load(place / "soup.yaml"))
    assert weights.notes[-1]["step"] == "parents differ"


def test_models_whose_tokens_differ_make_a_soup_where_that_is_allowed(place: Path) -> None:
    rows = next(iter(mg.open("a").values())).shape[0]
    for name, words in (("a", ["red"]), ("b", ["blue"])):
        (place / name / "config.json").write_text(f'{{"model_type": "toy", "vocab_size": {rows}}}')
        (place / name / "vocab.txt").write_text("\n".join(words))
    with pytest.raises(
        RequestError, match=r"'red' is token 0 in 'a' and no token in 'b'.* soup --allow tokenizer"
    ):
        soup_into(["a", "b"], near(0.5, 0.5), place / "soup.yaml")
    soup_into(["a", "b"], near(0.5, 0.5), place / "soup.yaml", allow=["tokenizer"])
    weights, _ = build(load(place / "soup.yaml"))
    assert weights.notes[-1]["step"] == "parents differ"


def scored_but(*dead: tuple[float, float]) -> CallableFitness:
    """x + y of a merge; for those that stand at these places it is undefined."""

    def fitness(weights) -> float:
        place = float(weights.compute("net.0.x")[0]), float(weights.compute("net.1.y")[0])
        return math.nan if place in dead else sum(place)

    return CallableFitness(fitness, f"sum but {dead}")


def test_models_without_a_score_are_in_no_greedy_soup(place: Path, tmp_path: Path) -> None:
    models = [mg.open(name, name=name) for name in ("c", "base", "a")]
    found = soup(models, scored_but((-1.0, 4.0), (0.5, 0.0)))
    assert found.ingredients == (2,), "c has no score, and neither has the average of a and base"
    told = found.as_json(["c", "base", "a"])
    assert told["models"][0]["fitness"] is None and "undefined" in told["models"][0]["failed"]
    assert [one["fitness"] for one in told["models"][1:]] == [0.0, 1.0]
    with pytest.raises(RequestError, match="none of the models can be scored"):
        soup_into(["c", "a"], scored_but((-1.0, 4.0), (1.0, 0.0)), tmp_path / "none.yaml")
    assert not (tmp_path / "none.yaml").exists()
