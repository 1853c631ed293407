"""Killed and run again, the same command goes on and gives the same bytes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from makers import environment, files_of
from small_models import TEXTS, make, write_texts

from merganser.errors import OutputError
from merganser.observe import observe

pytestmark = pytest.mark.models
KILLED = """
import json, os, signal, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
torch.set_num_threads(1)
from merganser.observe import observe
for case, (at, collect, layerwise) in json.loads(sys.argv[1]).items():
    child = os.fork()  # nothing was run yet, so a fork is as good as a new process
    if child == 0:
        os.chdir(case)
        def progress(done, total):
            if done >= at:
                os.kill(os.getpid(), signal.SIGKILL)
        observe("model", "data.jsonl", "out", collect=collect, batch=2, layerwise=layerwise, keep_every=0.0,
            progress=progress)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, case
"""
CASES = {
    "inputs": (8, "gram,mean", False),
    "fisher": (13, "fisher,absmax", False),
    "layers": (19, "gram,mean", True),
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A folder a case, each with what a killed run has left."""
    place = tmp_path_factory.mktemp("killed")
    for case in CASES:
        make("llama", place / case / "model")
        write_texts(place / case / "data.jsonl", TEXTS * 2, [0] * 14)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, json.dumps(CASES)],
        cwd=place,
        env=environment({"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture
def left(killed, tmp_path, monkeypatch):
    """Go to a copy of such a folder."""

    def enter(case):
        shutil.copytree(killed / case, tmp_path / case)
        monkeypatch.chdir(tmp_path / case)
        assert not (tmp_path / case / "out").exists()
        return tmp_path / case

    return enter


@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_goes_on_to_the_same_bytes(case, left):
    _, collect, layerwise = CASES[case]
    place = left(case)
    state = json.loads((place / ".out.merganser-observe/state.json").read_text())
    assert set(state) > {"fingerprint"}
    fields = {"collect": collect, "batch": 2, "layerwise": layerwise, "keep_every": 0.0}
    again = observe("model", "data.jsonl", "out", **fields)
    assert again.resumed
    assert not (place / ".out.merganser-observe").exists()
    fresh = observe("model", "data.jsonl", "fresh", **fields)
    assert not fresh.resumed
    assert files_of(place / "out") == files_of(place / "fresh")


def test_what_was_done_is_not_done_again(left, monkeypatch):
    from merganser.observe import forward

    left("inputs")
    rows = []
    run = forward.run
    monkeypatch.setattr(
        forward, "run", lambda model, batch: rows.append(len(batch.rows)) or run(model, batch)
    )
    assert observe("model", "data.jsonl", "out", collect="gram,mean", batch=2).resumed
    assert rows == [1, 2, 2, 2]  # the look at one row, then what was left: 8 of 14 rows had been kept


@pytest.mark.parametrize("what", ["model", "data", "options", "asked", "damaged"])
def test_another_request_starts_over(what, left):
    place = left("inputs")
    fields = {"collect": "gram,mean", "batch": 2}
    if what == "model":
        shutil.rmtree(place / "model")
        make("llama", place / "model", seed=1)
    elif what == "data":
        write_texts(place / "data.jsonl", TEXTS[::-1] * 2, [0] * 14)
    elif what == "options":
        fields["max_length"] = 5
    elif what == "asked":
        fields["resume"] = False
    else:
        path = place / ".out.merganser-observe/inputs.npz"
        raw = bytearray(path.read_bytes())
        raw[200] ^= 1
        path.write_bytes(raw)
    observe("model", "data.jsonl", "out", **fields)
    observe("model", "data.jsonl", "fresh", **fields)
    assert files_of(place / "out") == files_of(place / "fresh")


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
