"""`merganser compare` as a user meets it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from test_commands import run

from merganser import cli
from merganser.compare import Samples, compare, read_run
from merganser.evaluate import Results, Suite, TaskResult

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
        (("base", "math", "--html", "base/results.json/page.html"), "a file is in the place"),
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


def suited(folder: Path, change: Callable[[list[dict[str, object]]], object] = lambda rows: None) -> Path:
    """A suite of sentences, and the results of three models on it as it is before `change`."""
    rows: list[dict[str, object]] = [
        {"id": f"s{k}", "text": f"sentence <b>{k}</b>\x1b[2J\u202e " + "word " * 100, "label": k % 2}
        for k in range(40)
    ]
    (folder / "data.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    suite = folder / "suite.yaml"
    suite.write_text(
        "tasks:\n- {name: mood, kind: classification, data: data.jsonl, id: id, labels: [bad, good]}\n"
    )
    (task,) = Suite.open(suite).tasks
    for name, wrong in (("a", 0), ("b", 3), ("m", 5)):
        answer = [("bad", "good")[k % 2] for k in range(40)]
        said = [("bad", "good")[(k + (k % 7 == wrong)) % 2] for k in range(40)]
        right = [x == y for x, y in zip(answer, said, strict=True)]
        columns = {"id": task.ids, "input_digest": task.digests(), "answer": answer, "prediction": said}
        result = TaskResult.of("classification", {**columns, "right": right})
        Results({"label": name, "identity": name}, {"name": "s", "digest": "d"}, {"mood": result}).save(
            folder / name
        )
    change(rows)
    (folder / "data.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return suite


def test_with_the_suite_examples_show_what_the_models_were_given(tmp_path: Path, say: Say) -> None:
    suited(tmp_path, lambda rows: rows.reverse())
    asked = ("compare", "a", "b", "m", "--parents", "a,b", "--resamples", "100", "--suite", "suite.yaml")
    found = json.loads(say(*asked, "--json", "--html", "new/page.html", cwd=tmp_path)[0])
    lost = found["tasks"][0]["flips"][0]["examples"]["negative"]
    assert [one["id"] for one in lost] == sorted(f"s{k}" for k in range(3, 40, 7))
    merged = found["after_merge"][0]["lost_by_all"]["examples"]
    assert [one["id"] for one in merged] == sorted(f"s{k}" for k in range(5, 40, 7))
    for one in (*lost, *merged):
        assert one["given"].startswith(f"sentence <b>{one['id'][1:]}</b>\\x1b[2J\\u202e word word")
        assert len(one["given"]) == 300
        assert one["answer"] == ("bad", "good")[int(one["id"][1:]) % 2]
    page = (tmp_path / "new" / "page.html").read_text()
    assert page.count("sentence &lt;b&gt;3&lt;/b&gt;\\x1b[2J\\u202e word") == 1
    assert (
        page.count("sentence &lt;b&gt;5&lt;/b&gt;\\x1b[2J\\u202e word") == 2
    )  # lost, and by all parents' merge
    assert "<b>3</b>" not in page
    assert "--suite" not in page


def test_without_the_suite_the_page_says_how_to_get_the_texts(tmp_path: Path, say: Say) -> None:
    suited(tmp_path)
    said = say("compare", "a", "m", "--resamples", "100", "--json", "--html", "page.html", cwd=tmp_path)[0]
    assert '"given"' not in said
    assert (tmp_path / "page.html").read_text().count("--suite, with the suite that was evaluated") == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows.pop(7), "task 'mood': .*data.jsonl has no sample 's7'"),
        (
            lambda rows: rows[7].update(text="other"),
            "task 'mood': sample 's7' has another input or right answer",
        ),
        (lambda rows: rows[7].update(label=0), "task 'mood': sample 's7' has another input or right answer"),
    ],
    ids=["sample", "text", "label"],
)
def test_a_suite_of_other_data_is_refused(tmp_path: Path, say: Say, change: object, words: str) -> None:
    suited(tmp_path, change)  # type: ignore[arg-type]
    wrong = say("compare", "a", "b", "--suite", "suite.yaml", cwd=tmp_path, code=2)[1]
    assert re.search(words, wrong)


def test_a_suite_of_other_tasks_is_refused(place: Path, tmp_path: Path, say: Say) -> None:
    suite = suited(tmp_path)
    suite.write_text(suite.read_text().replace("name: mood", "name: imbd"))
    wrong = say("compare", "base", "math", "--suite", str(suite), cwd=place, code=2)[1]
    assert "has no task 'imdb'" in wrong
    assert "did you mean 'imbd'" in wrong
    assert "no suite at" in say("compare", "base", "math", "--suite", "no.yaml", cwd=place, code=2)[1]
