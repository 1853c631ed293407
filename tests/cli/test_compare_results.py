"""`merganser compare` as a user meets it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from test_commands import run

from merganser import cli
from merganser.compare import Samples, compare, read_run
from merganser.evaluate import Results, TaskResult

sys.path.insert(0, str(Path(__file__).parent.parent / "compare"))
from result_makers import classification

NAMES = ("base", "math", "code", "merged")


def save(place: Path, seed: int, skill: float, count: int = 200) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    tasks = {}
    for number, name in enumerate(("imdb", "r8")):
        tasks[name] = TaskResult.of("classification", classification(seed, skill, count, number))
    model = {"label": place.name, "identity": f"identity of {place.name}"}
    Results(model, {"name": "two", "digest": "abc"}, tasks).save(place)


Say = Callable[..., tuple[str, str]]


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """The command in this process: what it wrote to standard output and to standard error."""

    def call(*arguments: str, cwd: Path, code: int = 0) -> tuple[str, str]:
        monkeypatch.chdir(cwd)
        assert cli.run(arguments) == code
        return tuple(capsys.readouterr())  # type: ignore[return-value]

    return call


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    for seed, (name, skill) in enumerate(zip(NAMES, (0.4, 1.0, 1.0, 1.6), strict=True)):
        save(folder / name, seed, skill)
    save(folder / "seeds" / "0" / "merged", 10, 1.5)
    save(folder / "seeds" / "1" / "merged", 11, 1.5)
    save(folder / "short", 3, 1.6, 190)
    return folder


def test_the_table_the_json_and_the_page_say_the_same(place: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    asked = ("compare", *NAMES, "--base", "base", "--parents", "math,code", "--resamples", "500")
    said = run(*asked, "--html", str(page), cwd=place).stdout
    found = json.loads(run(*asked, "--json", cwd=place).stdout)
    assert max(map(len, said.splitlines())) <= 100
    assert found["merged"] == ["merged"]
    models = {name: read_run(place / name, name) for name in NAMES}
    direct = compare(models, base="base", parents=["math", "code"], resampled=500)
    assert json.loads(json.dumps(direct))["tasks"] == found["tasks"]
    row = found["tasks"][0]["measures"][0]["differences"][-1]
    assert f"{100 * row['difference']:+.2f}" in said
    assert f"{100 * row['low']:+.2f} to {100 * row['high']:+.2f}" in said
    only = found["after_merge"][0]["only_merged"]
    assert f"{only['count']} ({only['share']:.1%})" in said
    content = page.read_text()
    assert content.startswith("<!doctype html>")
    assert content.endswith("</html>\n")
    assert f"{100 * row['difference']:+.2f}" in content


def test_groups_are_models_with_several_runs(place: Path, say: Say) -> None:
    asked = (
        "compare",
        "base",
        "merged",
        "--group",
        "seeds=seeds/0/merged,seeds/1/merged",
        "--resamples",
        "200",
    )
    said = say(*asked, "--reference", "seeds", cwd=place)[0]
    assert "reference: seeds" in said
    assert "spread over seeds" in said
    assert max(map(len, said.splitlines())) <= 100


def test_results_of_one_name_are_told_apart_by_their_folders(place: Path, say: Say) -> None:
    said = say("compare", "seeds/0/merged", "seeds/1/merged", "--resamples", "200", "--json", cwd=place)[0]
    assert [model["name"] for model in json.loads(said)["models"]] == ["0/merged", "1/merged"]


def test_samples_that_lack_are_an_error_and_with_allow_missing_a_note(place: Path, say: Say) -> None:
    wrong = say("compare", "merged", "short", cwd=place, code=2)[1]
    assert "10 of the 200 samples of merged have no partner" in wrong
    assert "--allow-missing" in wrong
    said = say("compare", "merged", "short", "--allow-missing", "--resamples", "200", cwd=place)[0]
    assert "10 of the 200 samples of merged have no partner" in said
    assert "380 samples" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("base",), "at least two"),
        ((), "at least two"),
        (("base", "maths"), "no results at 'maths'"),
        (("base", "math", "--reference", "bas"), "did you mean 'base'"),
        (("base", "math", "--parents", "base,code"), "'code' is none of the models"),
        (("base", "math", "--group", "seeds"), "name=results,results"),
        (("base", "--group", "g=math", "--group", "g=code"), "given twice"),
        (("base", "--group", "g=math,math"), "a directory is given twice"),
        (("base", "math", "--resamples", "3"), "too few"),
        (("base", "math", "--html", "nowhere/page.html"), "folder does not exist"),
    ],
)
def test_wrong_requests(place: Path, arguments: tuple[str, ...], words: str, say: Say) -> None:
    assert words in say("compare", *arguments, cwd=place, code=2)[1]


def test_hostile_names_do_not_reach_the_terminal(tmp_path: Path, say: Say) -> None:
    for name in ("a", "b"):
        columns = classification(1, 1.0, 40)
        columns["prediction"] = ["\u202e\x1b[31m"] * 40
        tasks = {"t\u202e\x1b[2J": TaskResult.of("classification", columns)}
        Results({"label": name, "identity": None}, {"name": None, "digest": None}, tasks).save(
            tmp_path / name
        )
    said = say("compare", "a", "b", "--resamples", "100", cwd=tmp_path)[0]
    assert "\x1b" not in said
    assert "\u202e" not in said


def test_a_page_is_never_written_over_unasked(place: Path, tmp_path: Path, say: Say) -> None:
    page = tmp_path / "page.html"
    page.write_text("mine")
    asked = ("compare", "base", "math", "--resamples", "100", "--html", str(page))
    assert "already exists" in say(*asked, cwd=place, code=2)[1]
    assert page.read_text() == "mine"
    say(*asked, "--overwrite", cwd=place)
    assert page.read_text().startswith("<!doctype html>")


def test_what_is_read_is_what_was_saved(place: Path) -> None:
    read = read_run(place / "base").tasks["imdb"]
    made = Samples.of("classification", classification(0, 0.4, 200, 0))
    assert read.ids == made.ids
    assert read.texts == made.texts
    assert (read.numbers["loss"] == made.numbers["loss"]).all()
    assert (read.log_probabilities == made.log_probabilities).all()
