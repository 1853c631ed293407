"""Searches end to end, on models of two numbers and a fitness that is known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from makers import python, write_model
from toy_models import arithmetic, near, toys, written

from merganser.errors import RequestError
from merganser.recipe import build, load
from merganser.search import CallableFitness, search
from merganser.search.run import search_into

OPEN = {"search": [0, 1]}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return toys(tmp_path)


@pytest.mark.parametrize(
    ("by", "evaluations", "off"), [("grid", 121, 1e-6), ("random", 150, 0.2), ("cma", 120, 5e-3)]
)
def test_the_best_weights_are_found(place: Path, by: str, evaluations: int, off: float) -> None:
    found = search(
        written(place, arithmetic(OPEN, OPEN)), near(0.3, 0.8), by=by, evaluations=evaluations, seed=1
    )
    assert list(found.values.values()) == pytest.approx([0.3, 0.8], abs=off)
    assert found.evaluations == evaluations
    assert found.best.score.fitness > -2 * off**2 - 1e-9


def test_the_recipe_written_rebuilds_what_was_scored(place: Path) -> None:
    out = place / "best.yaml"
    found = search_into(written(place, arithmetic(OPEN, OPEN)), near(0.25, 0.5), out, evaluations=60, seed=2)
    weights, _ = build(load(out))
    x, y = float(weights.compute("net.0.x")[0]), float(weights.compute("net.1.y")[0])
    assert found.best.score.fitness == -((x - 0.25) ** 2) - (y - 0.5) ** 2
    head = [line[2:] for line in out.read_text().splitlines() if line.startswith("#")]
    told = yaml.safe_load("\n".join(head))
    assert told["best"] == found.best.score.fitness
    assert (told["fitness"], told["by"], told["seed"], told["evaluations"]) == ("near 0.25 0.5", "cma", 2, 60)


def test_same_seed_same_bytes(place: Path) -> None:
    texts, journals = [], []
    for name in ("one", "two"):
        out = place / f"{name}.yaml"
        search_into(written(place, arithmetic(OPEN, OPEN)), near(0.3, 0.8), out, evaluations=30, seed=4)
        texts.append(out.read_bytes())
        journals.append((place / f"{name}.journal.jsonl").read_bytes())
    assert texts[0] == texts[1]
    assert journals[0] == journals[1]


def test_a_journal_saves_evaluations_of_the_same_merges_only(place: Path) -> None:
    recipe, out = written(place, arithmetic(OPEN, OPEN)), place / "new" / "best.yaml"
    calls: list[tuple[float, float]] = []
    settings = {"by": "random", "evaluations": 10, "seed": 4, "overwrite": True}
    search_into(recipe, near(0.3, 0.8, calls), out, **settings)
    assert len(calls) == 10
    again = search_into(recipe, near(0.3, 0.8, calls), out, **settings)
    assert (len(calls), again.made, again.taken) == (10, 0, 10)
    search_into(recipe, near(0.3, 0.8, calls), out, **(settings | {"evaluations": 14}))
    assert len(calls) == 14
    search_into(recipe, near(0.1, 0.1, calls), out, **settings)  # another fitness
    assert len(calls) == 24
    write_model(place / "a", {n: np.array([2.0], np.float32) for n in ("net.0.x", "net.1.y", "out.z")})
    search_into(recipe, near(0.3, 0.8, calls), out, **settings)  # another model under the same name
    assert len(calls) == 34


KILLED = """
import os, sys
sys.path[:0] = [{tests!r}, {search!r}]
from pathlib import Path
from toy_models import near
from merganser.search import CallableFitness
from merganser.search.run import search_into
inner, calls = near(0.3, 0.8), []
def fitness(weights):
    calls.append(0)
    if len(calls) > {after}:
        os.kill(os.getpid(), 9)
    return inner.function(weights)
place = Path({place!r})
search_into(place / "open.yaml", CallableFitness(fitness, inner.told["fitness"]), place / "best.yaml",
            by="random", evaluations=25, seed=9)
print(len(calls))
"""


def test_a_killed_search_goes_on_where_it_stopped(place: Path) -> None:
    written(place, arithmetic(OPEN, OPEN))
    here = Path(__file__).parent
    settings = {"tests": str(here.parent), "search": str(here), "place": str(place)}
    killed = python(KILLED.format(**settings, after=11))
    assert killed.returncode == -9
    assert not (place / "best.yaml").exists()
    journal = place / "best.journal.jsonl"
    assert len(journal.read_text().splitlines()) == 12
    with journal.open("a") as file:
        file.write('{"key": "cut off by the ki')
    rest = python(KILLED.format(**settings, after=10**9))
    assert rest.stdout.strip() == "14", rest.stderr
    whole = search_into(
        place / "open.yaml", near(0.3, 0.8), place / "other.yaml", by="random", evaluations=25, seed=9
    )
    assert whole.made == 25
    assert (place / "best.yaml").read_bytes() == (place / "other.yaml").read_bytes()
    assert journal.read_bytes() == (place / "other.journal.jsonl").read_bytes()


def test_a_file_that_is_no_journal_is_not_touched(place: Path) -> None:
    other = place / "best.journal.jsonl"
    other.write_text('{"mine": 1}\n')
    with pytest.raises(RequestError, match="is no journal of a search"):
        search_into(written(place, arithmetic(OPEN, OPEN)), near(0, 0), place / "best.yaml", evaluations=2)
    assert other.read_text() == '{"mine": 1}\n'


def test_baselines_stand_beside(place: Path) -> None:
    found = search(
        written(place, arithmetic(OPEN, OPEN)),
        near(0.5, 1.0),
        evaluations=20,
        seed=0,
        baseline=True,
        test=near(0.0, 1.0),
    )
    rows = {one.name: one for one in found.baselines}
    assert list(rows) == ["base base", "parent a", "parent b", "uniform average", "random search"]
    assert {name: one.score.fitness for name, one in rows.items() if name != "random search"} == {
        "base base": -1.25,
        "parent a": -1.25,
        "parent b": -0.25,
        "uniform average": -0.25,
    }
    assert rows["parent b"].test is not None
    assert rows["parent b"].test.fitness == 0.0
    alone = search(
        written(place, arithmetic(OPEN, OPEN)), near(0.5, 1.0), by="random", evaluations=20, seed=0
    )
    assert rows["random search"].score == alone.best.score
    assert found.best.test is not None
    x, y = found.values.values()
    assert found.best.test.fitness == pytest.approx(-(x**2) - (y - 1) ** 2, rel=1e-5)


def test_the_recipe_says_what_it_scored_on_data_that_did_not_choose_it(place: Path) -> None:
    found = search_into(
        written(place, arithmetic(OPEN, OPEN)),
        near(0.5, 1.0),
        place / "best.yaml",
        evaluations=12,
        baseline=True,
        test=near(0.0, 1.0),
    )
    head = [line[2:] for line in (place / "best.yaml").read_text().splitlines() if line.startswith("# ")]
    told = yaml.safe_load("\n".join(head))
    assert found.best.test is not None
    assert (told["best"], told["test"]) == (found.best.score.fitness, found.best.test.fitness)
    assert told["baselines"]["parent b"] == {"search": -0.25, "test": 0.0}
    assert list(told["baselines"]) == [one.name for one in found.baselines]


def test_a_merge_that_fails_is_worth_nothing(place: Path) -> None:
    def fitness(weights) -> float:
        return math.nan if float(weights.compute("net.0.x")[0]) > 0.5 else 1.0

    found = search(
        written(place, arithmetic({"search": [0, 1]}, 0.0)),
        CallableFitness(fitness, "half"),
        by="grid",
        evaluations=11,
    )
    assert found.values["models[0].parameters.weight"] == 0.0
    write_model(place / "a", {n: np.array([np.nan], np.float32) for n in ("net.0.x", "net.1.y", "out.z")})

    def computed(weights) -> float:
        from merganser.running import live_tensors

        return float(live_tensors(weights)["net.0.x"][0])

    journal = place / "j.jsonl"
    with pytest.raises(RequestError, match="none of 3 candidates gave a model"):
        search(
            written(place, arithmetic({"search": [0.5, 1]}, 0.0)),
            CallableFitness(computed, "x"),
            by="grid",
            evaluations=3,
            journal=journal,
        )
    assert "failed" in json.loads(journal.read_text().splitlines()[1])["measured"]


def test_a_candidate_without_a_score_is_never_the_best(place: Path) -> None:
    """Undefined where the weight is 1, and then everywhere: nothing is written, and the reason is told."""

    def but(*weights: float) -> CallableFitness:
        def fitness(merge) -> float:
            x = float(merge.compute("net.0.x")[0])
            return math.nan if x in weights else x

        return CallableFitness(fitness, f"x but {weights}")

    recipe = written(place, arithmetic({"search": [0.5, 1]}, 0.0))
    found = search(recipe, but(1.0), by="grid", evaluations=3)
    assert (found.best.score.fitness, found.failed) == (0.75, 1)
    with pytest.raises(RequestError, match=r"none of 3 candidates gave a model.*undefined"):
        search_into(recipe, but(0.5, 0.75, 1.0), place / "best.yaml", by="grid", evaluations=3)
    assert not (place / "best.yaml").exists()


def test_candidates_are_rounded_as_they_will_be_saved(place: Path) -> None:
    seen = []

    def fitness(weights) -> float:
        seen.append(float(weights.compute("net.0.x")[0]))
        return 0.0

    recipe = written(place, arithmetic({"choice": [0.3, 0.6]}, 0.0, dtype="bfloat16"))
    search(recipe, CallableFitness(fitness, "seen"), by="grid", evaluations=2)
    assert seen == [0.30078125, 0.6015625]


def test_density_of_ties_is_searched_too(place: Path) -> None:
    open_ties = arithmetic(1.0, 1.0, parameters={"density": {"choice": [0.0, 1.0]}})
    found = search(written(place, open_ties | {"method": "ties"}), near(1.0, 1.0), by="grid", evaluations=2)
    assert found.values == {"parameters.density": 1.0}
    assert found.best.score.fitness == 0.0


def test_out_is_checked_before_anything_runs(place: Path) -> None:
    def never(weights) -> float:
        raise AssertionError("it ran")

    recipe = written(place, arithmetic(OPEN, OPEN))
    (place / "there.yaml").write_text("kept")
    for out, told in (
        ("there.yaml", "already exists"),
        ("there.yaml/such.yaml", "a file is in the place of its folder"),
        ("x", r"\*.yaml"),
    ):
        with pytest.raises(RequestError, match=told):
            search_into(recipe, CallableFitness(never, "never"), place / out, evaluations=2)
    with pytest.raises(RequestError, match="at least one evaluation"):
        search_into(recipe, CallableFitness(never, "never"), place / "new.yaml", evaluations=0)
    assert (place / "there.yaml").read_text() == "kept"
    assert not list(place.glob("*.jsonl"))
