"""Killed and run again, the same command goes on and gives the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from makers import environment, files_of
from small_models import TEXTS, make, write_texts

from merganser.errors import OutputError
from merganser.observe import observe

pytestmark = pytest.mark.models
KILLED = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from merganser.observe import observe
at, collect, layerwise = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "1"
def progress(done, total):
    if done >= at:
        os.kill(os.getpid(), signal.SIGKILL)
observe("model", "data.jsonl", "out", collect=collect, batch=2, layerwise=layerwise, keep_every=0.0, progress=progress)
"""
CASES = {
    "inputs": (4, "gram,mean", False),
    "fisher": (13, "fisher,absmax", False),
    "layers": (19, "gram,mean", True),
}


def killed(place, at, collect, layerwise):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(at), collect, str(int(layerwise))],
        cwd=place,
        env=environment({"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == -9, done.stderr
    assert not (place / "out").exists()
    return place / ".out.merganser-observe"


@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_goes_on_to_the_same_bytes(case, tmp_path, monkeypatch):
    at, collect, layerwise = CASES[case]
    make("llama", tmp_path / "model")
    write_texts(tmp_path / "data.jsonl", TEXTS * 2, [0] * 14)
    state = json.loads((killed(tmp_path, at, collect, layerwise) / "state.json").read_text())
    assert set(state) > {"fingerprint"}
    monkeypatch.chdir(tmp_path)
    fields = {"collect": collect, "batch": 2, "layerwise": layerwise, "keep_every": 0.0}
    again = observe("model", "data.jsonl", "out", **fields)
    assert again.resumed
    assert not (tmp_path / ".out.merganser-observe").exists()
    fresh = observe("model", "data.jsonl", "fresh", **fields)
    assert not fresh.resumed
    assert files_of(tmp_path / "out") == files_of(tmp_path / "fresh")


def test_what_was_done_is_not_done_again(tmp_path, monkeypatch):
    from merganser.observe import forward

    make("llama", tmp_path / "model")
    write_texts(tmp_path / "data.jsonl", TEXTS * 2, [0] * 14)
    killed(tmp_path, 8, "mean", False)
    monkeypatch.chdir(tmp_path)
    rows = []
    run = forward.run
    monkeypatch.setattr(
        forward, "run", lambda model, batch: rows.append(len(batch.rows)) or run(model, batch)
    )
    assert observe("model", "data.jsonl", "out", collect="mean", batch=2).resumed
    assert rows == [1, 2, 2, 2]  # the look at one row, then what was left: 8 of 14 rows had been kept


@pytest.mark.parametrize("what", ["model", "data", "options", "asked", "damaged"])
def test_another_request_starts_over(what, tmp_path, monkeypatch):
    make("llama", tmp_path / "model")
    write_texts(tmp_path / "data.jsonl", TEXTS * 2, [0] * 14)
    home = killed(tmp_path, 8, "mean", False)
    monkeypatch.chdir(tmp_path)
    fields = {"collect": "mean", "batch": 2}
    if what == "model":
        make("llama", tmp_path / "model", seed=1)
    elif what == "data":
        write_texts(tmp_path / "data.jsonl", TEXTS[::-1] * 2, [0] * 14)
    elif what == "options":
        fields["max_length"] = 5
    elif what == "asked":
        fields["resume"] = False
    else:
        raw = bytearray((home / "inputs.npz").read_bytes())
        raw[200] ^= 1
        (home / "inputs.npz").write_bytes(raw)
    observe("model", "data.jsonl", "out", **fields)
    observe("model", "data.jsonl", "fresh", **fields)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "fresh")


def test_two_at_once_are_refused(tmp_path):
    import fcntl

    make("bert", tmp_path / "model")
    data = write_texts(tmp_path / "data.jsonl")
    (tmp_path / ".out.merganser-observe").mkdir()
    with (tmp_path / ".out.merganser-observe/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="another process is writing it"):
            observe(tmp_path / "model", data, tmp_path / "out")
        assert (tmp_path / ".out.merganser-observe/lock").exists()
    observe(tmp_path / "model", data, tmp_path / "out")
