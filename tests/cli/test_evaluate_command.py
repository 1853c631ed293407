"""`merganser evaluate` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from evaluate.scored_models import make, sentences, write_rows, write_suite
from evaluate.test_lm_eval_logs import write_new

from merganser.cli import run as in_process
from merganser.evaluate import read_results

pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    for seed, name in enumerate(("base", "one", "two")):
        make("classifier", folder / name, seed=seed, num_labels=2)
    write_rows(folder / "data.jsonl", [{"text": text, "label": k % 2} for k, text in enumerate(sentences(9))])
    write_suite(folder / "suite.yaml", {"name": "words", "kind": "classification", "data": "data.jsonl"})
    (folder / "recipe.yaml").write_text(
        "method: linear\nmodels: [{model: one}, {model: two}]\ndtype: bfloat16\n"
    )
    return folder


def test_text_and_json_say_the_same_and_out_is_not_replaced(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    assert in_process(["evaluate", "one", "suite.yaml", "out", "--threads", "1"]) == 0
    said = capsys.readouterr()
    found = read_results("out")
    assert f"{found.metrics['words']['accuracy']:.4f}" in said.out
    assert f"± {found.metrics['words']['accuracy_stderr']:.4f}" in said.out
    assert "results: out" in said.out
    assert said.err == ""
    assert found.model["label"] == "one"
    assert in_process(["evaluate", "one", "suite.yaml", "out"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (
        in_process(["evaluate", "one", "suite.yaml", "out", "--threads", "1", "--overwrite", "--json"]) == 0
    )
    assert json.loads(capsys.readouterr().out) == found.as_json()
    assert [path.name for path in place.glob(".*")] == []


def test_a_recipe_is_scored_as_what_it_would_write(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    assert in_process(["evaluate", "recipe.yaml", "suite.yaml", "live", "--quiet"]) == 0
    assert in_process(["merge", "recipe.yaml", "merged", "--quiet"]) == 0
    assert in_process(["evaluate", "merged", "suite.yaml", "written", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    live, written = read_results("live"), read_results("written")
    assert live.tasks["words"].table.equals(written.tasks["words"].table), "rounded to bfloat16 in both"
    assert live.model["label"] == "recipe.yaml"
    assert live.model["identity"] != written.model["identity"]


def test_logs_of_lm_eval_are_taken_over(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_new(tmp_path / "log")
    assert in_process(["evaluate", "--from-lm-eval", str(tmp_path / "log"), str(tmp_path / "out")]) == 0
    assert "gsm,strict-match" in capsys.readouterr().out
    assert read_results(tmp_path / "out").model["identity"] == "abc"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("one", "suite.yaml"), "MODEL, SUITE and OUT; 2 given"),
        ((), "0 given"),
        (("one", "suite.yaml", "x", "--from-lm-eval", "log"), "with OUT alone"),
        (("onee", "suite.yaml", "x"), "onee"),
        (("one", "suit.yaml", "x"), "did you mean 'suite.yaml'"),
        (("one", "suite.yaml", "suite.yaml/x"), "a file is in the place of its folder"),
        (("recip.yaml", "suite.yaml", "x"), "did you mean 'recipe.yaml'"),
        (("recipe.yaml", "suite.yaml", "x", "--memory", "20MiB"), "too little"),
        (("--from-lm-eval", "one", "x"), "holds no results_"),
    ],
)
def test_wrong_requests(
    place: Path,
    arguments: tuple[str, ...],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    before = sorted(path.name for path in place.iterdir())
    assert in_process(["evaluate", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert sorted(path.name for path in place.iterdir()) == before


def test_ctrl_c_keeps_finished_tasks(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from merganser.evaluate import run as running

    monkeypatch.chdir(place)
    task = {"kind": "classification", "data": str(place / "data.jsonl")}
    suite = write_suite(tmp_path / "two.yaml", {"name": "a", **task}, {"name": "b", **task})
    made = running._result

    def stopped(task, *rest):
        if task.name == "b":
            raise KeyboardInterrupt
        return made(task, *rest)

    monkeypatch.setattr(running, "_result", stopped)
    out = tmp_path / "out"
    assert in_process(["evaluate", "one", str(suite), str(out)]) == 130
    assert "1 finished tasks are kept" in capsys.readouterr().err
    assert not out.exists()
    monkeypatch.setattr(running, "_result", made)
    assert in_process(["evaluate", "one", str(suite), str(out), "--quiet"]) == 0
    assert list(read_results(out).tasks) == ["a", "b"]
