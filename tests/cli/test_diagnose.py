"""`merganser diagnose` as a user meets it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from makers import write_model
from test_commands import run

import merganser as mg
from merganser.compare import diagnose


@pytest.fixture
def place(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    base = {f"layers.{k}.mlp.weight": random.standard_normal((40, 30)).astype(np.float32) for k in range(3)}
    write_model(tmp_path / "base", base)
    for name in ("one", "two"):
        change = {n: 0.1 * random.standard_normal(x.shape).astype(np.float32) for n, x in base.items()}
        write_model(tmp_path / name, {n: x + change[n] for n, x in base.items()})
    write_model(
        tmp_path / "stranger",
        {n: random.standard_normal(x.shape).astype(np.float32) for n, x in base.items()},
    )
    return tmp_path


def test_text_and_json_say_the_same(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = run("diagnose", "one", "two", "--base", "base", cwd=place).stdout
    found = json.loads(run("diagnose", "one", "two", "--base", "base", "--json", cwd=place).stdout)
    assert found["verdict"] == "shared base"
    assert "verdict: shared base" in said
    row = found["whole"]["pairs"][-1]
    assert f"{row['vector_cosine']:.4g}" in said
    assert all(one["advice"] in said for one in found["advice"])
    monkeypatch.chdir(place)
    models = [mg.open(name) for name in ("one", "two")]
    assert json.loads(json.dumps(diagnose(models, mg.open("base"))))["whole"] == found["whole"]


def test_independent_models_are_told_not_to_be_averaged(place: Path) -> None:
    said = run("diagnose", "one", "stranger", cwd=place).stdout
    assert "verdict: independent initialisation" in said
    assert "Do not average" in said


def test_a_page_is_written_whole_and_never_over_another_unasked(place: Path) -> None:
    done = run("diagnose", "one", "two", "--html", "page.html", cwd=place)
    assert "page: page.html" in done.stdout
    content = (place / "page.html").read_text()
    assert content.startswith("<!doctype html>")
    assert content.endswith("</html>\n")
    assert "already exists" in run("diagnose", "one", "two", "--html", "page.html", cwd=place, code=2).stderr
    assert (place / "page.html").read_text() == content
    run("diagnose", "one", "two", "--base", "base", "--html", "page.html", "--overwrite", cwd=place)
    assert (place / "page.html").read_text() != content
    assert sorted(p.name for p in place.glob(".page*")) == []
    assert os.stat(place / "page.html").st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("one",), "at least two"),
        ((), "--help"),
        (("one", "tow"), "did you mean 'two'"),
        (("one", "two", "--rank", "some"), "sample, all, none"),
        (("one", "two", "--memory", "20MiB"), "too little"),
        (("one", "two", "--html", "one/config.json/page.html"), "a file is in the place of its folder"),
        (("one", "two", "--html", "one"), "is a directory"),
    ],
)
def test_wrong_requests(place: Path, arguments: tuple[str, ...], words: str) -> None:
    done = run("diagnose", *arguments, cwd=place, code=2)
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(run("diagnose", *arguments, "--json", cwd=place, code=2).stdout)["error"]["message"]


def test_damaged_files_fail_with_status_1(place: Path) -> None:
    with (place / "two" / "model.safetensors").open("r+b") as file:
        file.truncate(500)
    assert "two" in run("diagnose", "one", "two", cwd=place, code=1).stderr


def test_control_characters_in_names_do_not_reach_the_terminal(place: Path) -> None:
    for name in ("x", "y"):
        write_model(
            place / name, {"w\u202e.weight": np.ones((3, 3), np.float32), f"{name}\u202e": np.ones(3)}
        )
    assert "\u202e" not in run("diagnose", "x", "y", cwd=place).stdout
