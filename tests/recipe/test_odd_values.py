"""Values that no recipe has: each is refused with the place and a reason, and what the reason tells works."""

from __future__ import annotations

from pathlib import Path

import pytest
from makers import normal, read_model, write_model

import merganser as mg
from merganser.cli import run
from merganser.errors import RequestError
from merganser.methods.steps import get_step
from merganser.recipe import load

MODELS = "models: [{model: a}, {model: b}]\n"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for k, name in enumerate("ab"):
        write_model(tmp_path / name, {"w": normal(3, 4, seed=k)})
    return tmp_path


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("seed: !!int seven\n", "line 1: 'seven' is no value of the kind int"),
        ("seed: !!int '0x'\n", "no value of the kind int"),
        ("dtype: !!bool maybe-not\n", "no value of the kind bool"),
        ("parameters: {weight: !!float ''}\n", "no value of the kind float"),
        ("parameters: {weight: !!float one}\n", "no value of the kind float"),
        ("seed: !!timestamp never\n", "seed"),
        ("seed: " + "7" * 400 + "\n", "a whole number of 400 characters is too long"),
        ("parameters: {weight: 0b" + "1" * 5000 + "}\n", "too long"),
        ("parameters: {weight: -0x" + "a" * 9000 + "}\n", "too long"),
        ("dtype: 2001-02-30\n", "dtype"),
        ("seed: 12:30:45\n", ""),
    ],
    ids=range(11),
)
def test_scalars(place: Path, capsys: pytest.CaptureFixture[str], text: str, told: str) -> None:
    (place / "r.yaml").write_text(text + "method: linear\n" + MODELS)
    status = run(["explain", "r.yaml"])
    error = capsys.readouterr().err
    assert status == (2 if told else 0), error
    assert told in error and "unexpected" not in error


def test_a_user_that_is_not_there_is_the_name_of_a_directory(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "r.yaml").write_text("method: linear\nmodels: [{model: '~who-is-this/a'}, {model: b}]\n")
    assert run(["explain", "r.yaml"]) == 2
    assert "there is no checkpoint at '~who-is-this/a'" in capsys.readouterr().err
    assert run(["explain", "~who-is-this/r.yaml"]) == 2
    assert "there is no recipe at" in capsys.readouterr().err
    write_model(place / "~who-is-this" / "a", {"w": normal(3, 4)})
    assert run(["explain", "r.yaml"]) == 0
    assert list(mg.open("./~who-is-this/a")) == ["w"]


def test_a_path_that_no_file_can_have_is_not_there(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in ("x" * 3000, "/".join(["deep"] * 2000), "a/" + "y" * 400):
        (place / "r.yaml").write_text(f"method: linear\nmodels: [{{model: a}}, {{model: {path}}}]\n")
        assert run(["explain", "r.yaml"]) == 2
        error = capsys.readouterr().err
        assert "there is no" in error and "unexpected" not in error


def test_a_chain_of_documents_is_bounded_and_may_be_cut(place: Path) -> None:
    def chain(count: int, first: str) -> str:
        parts = [
            f"name: m{k}\nmethod: linear\nmodels: [{{model: {f'm{k - 1}' if k else first}}}]\n"
            for k in range(count)
        ]
        return "---\n".join([*parts, f"method: linear\nmodels: [{{model: m{count - 1}}}]\n"])

    with pytest.raises(
        RequestError, match="more than 50 documents use one another in a chain; merge the first"
    ):
        load(chain(300, "a"))
    for text in (chain(40, "a"), chain(40, "b")):
        assert load(text) is not None


def test_numbers_of_steps_and_of_options_are_bounded(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for factor in (2**40, 100_001):
        with pytest.raises(RequestError, match="at most 100,000"):
            get_step("interleave").function(mg.open("a"), factor=factor)
    (place / "r.yaml").write_text(f"model: a\nsteps: [{{g_stack: {2**90}}}]\n")
    assert run(["explain", "r.yaml"]) == 2
    assert "64 bits" in capsys.readouterr().err
    (place / "r.yaml").write_text("method: linear\n" + MODELS)
    for size in ("1" * 350, "8" * 30 + "TiB", "0.1"):
        assert run(["merge", "r.yaml", "out", "--memory", size]) == 2
        assert "less than 8 EiB" in capsys.readouterr().err
    assert run(["merge", "r.yaml", "out", "--quiet"]) == 0
    assert list(read_model(place / "out")) == ["w"]
