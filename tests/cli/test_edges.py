"""Commands under less friendly conditions: adapters, hostile text, pipes that close, Ctrl-C, unexpected failures."""

from __future__ import annotations

import errno
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hand_statistics import write_statistics
from makers import ROOT, write_adapter, write_model

from merganser import cli
from merganser.cli import console
from merganser.errors import RequestError

RNG = np.random.default_rng(7)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def process(*arguments: str, cwd: Path, **more: object) -> subprocess.Popen[str]:
    settings: dict = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | more
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "MERGANSER_CACHE": str(cwd / "cache")}
    return subprocess.Popen(
        [sys.executable, "-m", "merganser", *arguments], cwd=cwd, env=variables, **settings
    )


def document(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict:
    """What a command prints with --json: exactly one document."""
    assert cli.run([*arguments, "--json"]) == code
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1GiB", 2**30),
        ("256MiB", 256 * 2**20),
        ("5GB", 5 * 10**9),
        ("1.5KiB", 1536),
        ("4096", 4096),
        (" 2 kb ", 2000),
        ("7B", 7),
    ],
)
def test_sizes(text: str, count: int) -> None:
    assert console.parse_size(text, "--memory") == count


@pytest.mark.parametrize(
    "text", ["", "lots", "-1", "0", "1e9", "5 apples", "GB", "1GiBs", "nan", "0x10", "1,5GB"]
)
def test_bad_sizes(text: str) -> None:
    with pytest.raises(RequestError, match="--memory"):
        console.parse_size(text, "--memory")


def test_info_of_an_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    factors = {f"layers.{i}.q": (normal(6, 2), normal(2, 5)) for i in range(3)}
    adapter = write_adapter(tmp_path / "adapter", factors, alpha=8.0)
    found = document(capsys, "info", str(adapter))
    assert found["format"] == "peft"
    assert found["deltas"][0] == {"tensor": "layers.0.q.weight", "rank": 2, "scale": 4.0, "shape": [6, 5]}
    assert len(found["deltas"]) == 3
    assert found["parameters"] == 3 * (6 * 2 + 2 * 5)
    assert cli.run(["info", str(adapter)]) == 0
    assert "layers.0.q.weight" in capsys.readouterr().out


def test_info_collapses_layers_and_tells_gaps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = {f"model.layers.{i}.experts.{j}.w": normal(2, 3) for i in (0, 1, 2, 5) for j in range(4)}
    model = write_model(
        tmp_path / "model", {**tensors, "head.w": normal(3)}, {"model_type": "moe", "vocab_size": 9}
    )
    found = document(capsys, "info", str(model))
    assert [(g["pattern"], g["covers"], g["count"], g["shape"]) for g in found["groups"]] == [
        ("model.layers.*.experts.*.w", "model.layers.{0-2,5}.experts.{0-3}.w", 16, [2, 3]),
        ("head.w", "head.w", 1, [3]),
    ]
    assert found["config"] == {"model_type": "moe", "vocab_size": 9}
    assert found["manifest"] is None and found["statistics"] is None


def test_info_of_statistics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model(tmp_path / "model", {"w": normal(3)}, {})
    write_statistics(tmp_path / "gram", "gram", {"w": normal(3)}, model)
    found = document(capsys, "info", str(tmp_path / "gram"))
    assert (found["statistics"]["kind"], found["statistics"]["rows"]) == ("gram", 10)
    assert cli.run(["info", str(tmp_path / "gram")]) == 0
    out = capsys.readouterr().out
    assert "sealed by merganser" in out and " from ;" not in out
    assert f"gram of {model} ({found['statistics']['identity']}) over 10 rows of rows.jsonl" in out


def test_text_from_files_cannot_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b]0;owned\x07\x9b31m\u202e"
    model = write_model(tmp_path / "model", {"w": normal(3)}, {"model_type": evil, "architectures": [evil]})
    assert cli.run(["info", str(model)]) == 0
    printed = capsys.readouterr().out
    assert not set(evil) & {"\x1b", "\x07", "\x9b", "\u202e"} & set(printed)
    assert "\\x1b" in printed
    assert document(capsys, "info", str(model))["config"]["model_type"] == evil
    assert cli.run(["info", "no\x1b[31mthing"]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_diff_of_adapters_is_that_of_their_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = (normal(6, 2), normal(2, 5)), (normal(6, 2), normal(2, 5))
    write_adapter(tmp_path / "one", {"q": one}, alpha=4.0)
    write_adapter(tmp_path / "two", {"q": two}, alpha=4.0)
    found = document(capsys, "diff", str(tmp_path / "one"), str(tmp_path / "two"))
    a, b = (2.0 * (left.astype(np.float64) @ right.astype(np.float64)) for left, right in (one, two))
    row = found["tensors"][0]
    assert row["norm"] == pytest.approx(np.linalg.norm(b - a), rel=1e-5)
    assert row["cosine"] == pytest.approx((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-4)
    assert row["sign_flips"] == int((a * b < 0).sum())
    write_model(tmp_path / "model", {"q.weight": normal(6, 5)})
    told = document(capsys, "diff", str(tmp_path / "one"), str(tmp_path / "model"), code=2)
    assert told["error"]["kind"] == "RequestError"
    assert "adapter" in told["error"]["message"]


def test_diff_of_odd_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """NaN in the same place is no change; integers count as a whole; zeros have no direction; JSON stays valid."""
    nan = np.array([1.0, np.nan, -2.0], np.float32)
    write_model(
        tmp_path / "a",
        {
            "nan": nan,
            "i": np.arange(5),
            "j": np.arange(5),
            "zero": np.zeros(4, np.float32),
            "none": normal(0, 3),
        },
    )
    write_model(
        tmp_path / "b",
        {
            "nan": nan,
            "i": np.arange(5),
            "j": np.arange(5)[::-1].copy(),
            "zero": normal(4),
            "none": normal(0, 3),
        },
    )
    rows = {
        t["name"]: t for t in document(capsys, "diff", str(tmp_path / "a"), str(tmp_path / "b"))["tensors"]
    }
    assert {name: row["equal"] for name, row in rows.items()} == {
        "nan": True,
        "i": True,
        "j": False,
        "zero": False,
        "none": True,
    }
    assert rows["zero"]["relative"] is None
    assert rows["zero"]["cosine"] is None
    assert rows["j"]["norm"] is None
    assert rows["nan"]["norm"] == "nan"
    assert cli.run(["diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "5 tensors in both: 3 equal, 2 changed" in capsys.readouterr().out


def test_bad_yaml_is_a_wrong_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("method: [linear\n")
    told = document(capsys, "merge", str(recipe), str(tmp_path / "out"), code=2)
    assert "recipe.yaml" in told["error"]["message"]
    assert not (tmp_path / "out").exists()


def test_a_damaged_parent_is_failed_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model(tmp_path / "model", {"w": normal(3)})
    with (model / "model.safetensors").open("r+b") as file:
        file.truncate(20)
    assert document(capsys, "info", str(model), code=1)["error"]["kind"] == "CheckpointError"


def test_a_pickled_parent_needs_to_be_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.pt").write_bytes(b"\x80\x02.")
    assert (
        "--allow-pickle" in document(capsys, "info", str(tmp_path / "model.pt"), code=2)["error"]["message"]
    )


def test_an_unexpected_failure_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr("merganser.checkpoint.open_checkpoint", broken)
    monkeypatch.delenv("MERGANSER_DEBUG", raising=False)
    assert cli.run(["info", str(tmp_path)]) == 1
    told = capsys.readouterr()
    assert "MERGANSER_DEBUG=1" in told.err
    assert len(told.err.splitlines()) == 1
    monkeypatch.setenv("MERGANSER_DEBUG", "1")
    assert cli.run(["info", str(tmp_path)]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_in_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("merganser.checkpoint.open_checkpoint", stopped)
    assert cli.run(["info", str(tmp_path)]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_ctrl_c_while_merging_leaves_nothing_and_resumes(tmp_path: Path) -> None:
    tensors = {f"w.{i}": normal(1000, 1000) for i in range(24)}
    for name in ("base", "one"):
        write_model(tmp_path / name, {n: t + (name == "one") for n, t in tensors.items()})
    (tmp_path / "recipe.yaml").write_text(
        "method: ties\nbase_model: base\nmodels: [{model: one}]\nparameters: {density: 0.3}\n"
    )
    merging = process("merge", "recipe.yaml", "out", "--threads", "1", cwd=tmp_path)
    until = time.monotonic() + 600  # only so that it ends
    begun = ".*partial*/journal.jsonl"
    while not list(tmp_path.glob(begun)) and merging.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    merging.send_signal(signal.SIGINT)
    _, told = merging.communicate(timeout=600)
    if merging.returncode != 0:  # else it was done before the signal came
        assert merging.returncode == 130, told
        assert "interrupted" in told
        assert "the same command goes on from there" in told
        assert "Traceback" not in told
        assert not (tmp_path / "out").exists()
    again = process("merge", "recipe.yaml", "out", "--overwrite", "--quiet", cwd=tmp_path)
    assert again.communicate(timeout=600) == ("", "")
    assert again.returncode == 0
    assert (tmp_path / "out" / "merganser.json").exists()


def test_a_reader_that_leaves_is_no_failure(tmp_path: Path) -> None:
    write_model(tmp_path / "model", {f"a{i}": normal(2) for i in range(3000)})
    for arguments in (("info", "model"), ("info", "model", "--json"), ("--help",)):
        reading, writing = os.pipe()
        os.close(reading)
        done = process(*arguments, cwd=tmp_path, stdout=writing)
        os.close(writing)
        _, told = done.communicate(timeout=600)
        assert (done.returncode, told) == (0, "")


def test_output_that_cannot_be_written_is_a_failure(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = process("methods", cwd=tmp_path, stdout=full)
        _, told = done.communicate(timeout=600)
    assert done.returncode == 1
    assert os.strerror(errno.ENOSPC) in told


def test_a_terminal_gets_a_bar_unless_quiet(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_model(tmp_path / name, {"w": normal(400, 400)})
    (tmp_path / "recipe.yaml").write_text("method: linear\nmodels: [{model: one}, {model: two}]\n")
    shown = {}
    for options in ((), ("--quiet",), ("--json",)):
        ours, theirs = pty.openpty()
        done = process("merge", "recipe.yaml", "out", "--overwrite", *options, cwd=tmp_path, stderr=theirs)
        out, _ = done.communicate(timeout=600)
        os.close(theirs)
        try:
            shown[options] = os.read(ours, 1 << 16)
        except OSError:  # nothing was written before the terminal closed
            shown[options] = b""
        os.close(ours)
        assert done.returncode == 0
        assert "\x1b" not in out
    assert b"merging" in shown[()]
    assert shown["--quiet",] == shown["--json",] == b""


def test_every_option_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("merge", "explain", "info", "diff", "verify", "methods"):
        assert cli.run([command, "--help"]) == 0
        text = capsys.readouterr().out
        assert f"Example: merganser {command}" in text
        assert "Usage: merganser " + command in text
    assert cli.run(["--help"]) == 0
    assert "Exit status: 0 done, 1 the work failed, 2 the request is wrong" in capsys.readouterr().out


def test_a_method_page_has_parameters_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    page = document(capsys, "methods", "ties")
    by_name = {p["name"]: p for p in page["parameters"]}
    assert by_name["density"]["default"] == 0.2
    assert by_name["density"]["per_model"]
    assert by_name["lambda"]["default"] == 1.0
    assert page["base"] == "required"
    assert cli.run(["methods", "ties"]) == 0
    assert "lambda" in capsys.readouterr().out


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    model = write_model(tmp_path / os.fsdecode(b"m\xff"), {"w": normal(3)})
    for options in ((), ("--json",)):
        done = process("info", str(model), *options, cwd=tmp_path)
        out, told = done.communicate(timeout=600)
        assert done.returncode == 0, told
        assert "\\xff" in out
