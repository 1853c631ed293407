"""Searches, soups and mixtures on suites that models run, and their commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from merganser.cli import run
from merganser.errors import RequestError
from merganser.recipe import build, load
from merganser.search import SuiteFitness
from merganser.search.run import search_into

pytestmark = pytest.mark.models
OPEN = {"search": [0, 1.2]}


@pytest.fixture
def place(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from tiny_classifiers import RECIPE, recipe

    monkeypatch.chdir(tiny)
    recipe(tiny, "open.yaml", {**RECIPE, "parameters": {"weight": OPEN}})
    return tiny


def test_the_score_of_the_search_is_that_of_the_saved_merge(place: Path) -> None:
    from merganser.evaluate import evaluate

    found = search_into("open.yaml", SuiteFitness("val.yaml"), "best.yaml", by="grid", evaluations=4)
    weights, fields = build(load("best.yaml"))
    weights.save("merged", **fields)
    saved = evaluate("merged", "val.yaml").metrics
    assert dict(found.best.score.tasks) == {task: saved[task]["accuracy"] for task in ("sign", "place")}
    assert found.best.score.fitness == sum(found.best.score.tasks.values()) / 2
    assert found.best.score.fitness > 0.6


def test_candidates_are_not_identified_and_keep_to_memory(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from merganser.evaluate import run as running
    from merganser.running import live, model
    from merganser.search import live as candidates

    limits: list[int | None] = []

    def noted(weights: object, **given: int | None) -> object:
        limits.append(given.get("memory"))
        return live.live_tensors(weights, **given)  # type: ignore[arg-type]

    def never(model: object) -> str:
        raise AssertionError("all numbers of a candidate were read")

    monkeypatch.setattr(running, "live_identity", never)
    for module in (model, candidates):
        monkeypatch.setattr(module, "live_tensors", noted)
    words = ["open.yaml", "val.yaml", "best.yaml", "--by", "random", "--evaluations", "2", "--quiet"]
    assert run(["search", *words, "--memory", "16GiB"]) == 0
    assert limits == [16 * 2**30] * 2  # the one that is opened and the one that is put into it
    Path("best.journal.jsonl").unlink()
    assert run(["search", *words, "--memory", "1MiB", "--overwrite"]) == 2
    assert "--memory 1 MiB is too little" in capsys.readouterr().err


def test_tasks_are_combined_as_asked(place: Path) -> None:
    weights = build(load({"method": "linear", "models": [{"model": "sign"}]}))[0]
    mean = SuiteFitness("val.yaml")
    measured = mean.measure(weights)
    scores = mean.tasks(measured)
    assert scores["sign"] > scores["place"]
    assert SuiteFitness("val.yaml", combine="worst").score(measured) == scores["place"]
    assert SuiteFitness("val.yaml", combine={"sign": 3, "place": 1}).score(measured) == pytest.approx(
        (3 * scores["sign"] + scores["place"]) / 4
    )
    loss = SuiteFitness("val.yaml", metric="loss").tasks(measured)
    assert loss["sign"] == -measured["tasks"]["sign"]["metrics"]["loss"]
    only = SuiteFitness("val.yaml", combine={"place": 1})
    assert list(only.measure(weights)["tasks"]) == ["place"]
    assert only.identity != mean.identity
    with pytest.raises(RequestError, match="has no metric 'los'; did you mean 'loss'"):
        SuiteFitness("val.yaml", metric="los")  # before anything runs
    with pytest.raises(RequestError, match="has no metric 'f1'"):
        SuiteFitness("val.yaml", metric={"sign": "f1"})
    for combine, told in (
        ("means", "did you mean 'mean'"),
        ({"sing": 1.0}, "has no task 'sing'; did you mean 'sign'"),
        ({"sign": -1.0}, "weights of tasks are numbers from 0"),
    ):
        with pytest.raises(RequestError, match=told):
            SuiteFitness("val.yaml", combine=combine)


def test_search_as_a_command(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "search",
        "open.yaml",
        "val.yaml",
        "best.yaml",
        "--by",
        "random",
        "--evaluations",
        "4",
        "--seed",
        "1",
    ]
    assert run([*words, "--baseline", "--test", "test.yaml"]) == 0
    text = capsys.readouterr().out
    assert "4 candidates by random, seed 1: 8 evaluations made" in text
    for row in ("found", "parent sign", "parent place", "uniform average", "base base"):
        assert row in text
    assert run([*words, "--overwrite", "--json", "--fitness", "worst"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["made"], told["taken_from_journal"]) == (0, 4)
    assert told["best"]["fitness"] == min(told["best"]["tasks"].values())
    assert set(yaml.safe_load(Path("best.yaml").read_text())) == {
        "method",
        "base_model",
        "models",
        "parameters",
    }


def test_rows_that_were_searched_on_are_known_in_another_order_and_file(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = yaml.safe_load(Path("val.yaml").read_text())
    for task in suite["tasks"]:
        lines = Path(task["data"]).read_text().splitlines()
        Path(f"turned-{Path(task['data']).name}").write_text("\n".join(lines[::-1][1:]) + "\n")
        task["data"] = f"turned-{Path(task['data']).name}"
    Path("turned.yaml").write_text(yaml.safe_dump(suite))
    assert run(["search", "open.yaml", "val.yaml", "best.yaml", "--test", "turned.yaml"]) == 2
    assert "in another order or file" in capsys.readouterr().err
    assert not Path("best.yaml").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["open.yaml", "val.yaml", "best.yaml", "--by", "cmaes"], "unknown optimiser"),
        (["open.yaml", "val.yaml", "best.yaml", "--evaluations", "0"], "at least one evaluation"),
        (["open.yaml", "val.yaml", "best.yaml", "--fitness", "sgin=1"], "did you mean 'sign'"),
        (["open.yaml", "val.yaml", "best.yaml", "--fitness", "sign=x"], "the weight of 'sign' is 'x'"),
        (["open.yaml", "val.yaml", "best.yaml", "--test", "val.yaml"], "reads data that is searched on"),
        (["open.yaml", "bare.yaml", "best.yaml"], "no column 'label'"),
        (["open.yaml", "no.yaml", "best.yaml"], "no suite at"),
        (["plain.yaml", "val.yaml", "best.yaml"], "leaves no number open"),
        (["open.yaml", "val.yaml", "val.yaml"], "already exists"),
    ],
)
def test_wrong_requests_are_told(
    place: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    from tiny_classifiers import RECIPE, recipe

    recipe(place, "plain.yaml", RECIPE)
    assert run(["search", *words]) == 2
    assert told in capsys.readouterr().err
    assert not Path("best.yaml").exists()


def test_soup_learn_and_rank_mixtures_as_commands(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from merganser.evaluate import ensemble, evaluate

    assert run(["soup", "sign", "place", "soup.yaml", "--suite", "val.yaml", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["model"] for one in told["models"]] == ["sign", "place"]
    assert told["soup"]["fitness"] >= max(one["fitness"] for one in told["models"])
    assert run(["soup", "sign", "place", "soup.yaml", "--suite", "val.yaml", "--overwrite"]) == 0
    assert "greedy soup of" in capsys.readouterr().out
    from tiny_classifiers import RECIPE, recipe

    recipe(place, "merge.yaml", RECIPE)
    assert run(["learn", "merge.yaml", "bare.yaml", "learned.yaml", "--steps", "3"]) == 0
    text = capsys.readouterr().out
    assert "adamerging: 3 steps" in text
    assert "learned.yaml" in text
    build(load("learned.yaml"))
    assert run(["rank-mixtures", "sign", "other=place", "--suite", "val.yaml", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["sets"]
    assert {row["name"] for row in rows} == {"sign", "other", "sign+other"}
    together = ensemble([evaluate("sign", "val.yaml"), evaluate("place", "val.yaml")]).metrics
    both = next(row for row in rows if row["name"] == "sign+other")
    assert both["ensemble"] == pytest.approx(np.mean([task["accuracy"] for task in together.values()]))
    again = [
        "rank-mixtures",
        "sign",
        "other=place",
        "--suite",
        "val.yaml",
        "--journal",
        "kept.jsonl",
        "--json",
    ]
    for _ in range(2):
        assert run(again) == 0
        assert json.loads(capsys.readouterr().out)["sets"] == rows
    (place / "sets.yaml").write_text("sets: [{parts: [sign], true: 1}, {parts: [place], true: 2}]")
    assert run(["rank-mixtures", "sign", "place", "--suite", "val.yaml", "--sets", "sets.yaml"]) == 0
    assert "mean of parts" in capsys.readouterr().out
    assert run(["rank-mixtures", "sign", "./sign", "--suite", "val.yaml"]) == 2
    assert "two parts are called 'sign'" in capsys.readouterr().err
