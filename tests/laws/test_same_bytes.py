"""Law: the same formulas and parents give the same bytes, however the work is cut up and wherever it is done."""

from __future__ import annotations

import hashlib
import json

import pytest
from makers import BF16, files_of, normal, python, write_model

import merganser as mg

LARGE = 1_300_001
"""More elements than the largest tile, and a multiple of nothing."""

MERGE = """
import sys, json
import merganser as mg
home, out, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
base, a, b = (mg.open(f"{home}/{n}") for n in ("base", "a", "b"))
vectors = [mg.trim(m - base, 0.3) for m in (a, b)]
ties = mg.disjoint_mean(vectors, mg.elect_sign(vectors))
dare = mg.random_drop(b - base, 0.4, seed=7, rescale="l1")
whole = mg.trim(a - base, 0.1, scope="model")
spin = mg.slerp(a, b, 0.3) - base
(base + 0.5 * ties + 0.25 * dare + 0.3 * whole + 0.2 * spin).save(out, **options)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    directory = tmp_path_factory.mktemp("same")
    for k, name in enumerate(("base", "a", "b")):
        tensors = {
            "large": normal(LARGE, seed=10 + k, dtype=BF16),
            "small": normal(31, 17, seed=20 + k),
            "half": normal(70_000, seed=30 + k).astype("float16"),
            "wide": normal(90_001, seed=40 + k, dtype="float64"),
        }
        write_model(directory / name, tensors)
    return directory


def merged(home, out, env=None, **options):
    done = python(MERGE, home, out, json.dumps({"sync": False, "threads": 1} | options), env=env)
    assert done.returncode == 0, done.stderr
    return {name: hashlib.sha256(raw).hexdigest() for name, raw in files_of(out).items()}


@pytest.fixture(scope="module")
def reference(home):
    return merged(home, home / "reference")


@pytest.mark.parametrize(
    ("options", "env"),
    [
        ({"threads": 2}, {}),
        ({"threads": 3, "tile": 2**19}, {}),
        ({"tile": 2**18}, {}),
        ({"tile": 2**20, "threads": 2}, {}),
        ({}, {"PYTHONHASHSEED": "0"}),
        ({"threads": 2}, {"PYTHONHASHSEED": "12345"}),
        ({"memory": 130 * 2**20, "threads": 1}, {}),
        ({"memory": 2**31, "threads": 2}, {}),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) or "plain",
)
def test_threads_tiles_memory_and_hash_seed_do_not_change_a_byte(home, reference, tmp_path, options, env):
    """merganser.json too is equal, but for its `run`."""
    assert merged(home, tmp_path / "out", env, **options) == reference


def test_a_fresh_kernel_cache_does_not_change_a_byte(home, reference, tmp_path):
    assert merged(home, tmp_path / "out", {"MERGANSER_CACHE": str(tmp_path / "cache")}) == reference
    assert list((tmp_path / "cache/kernels").glob("*.o"))


def test_being_stopped_and_resumed_does_not_change_a_byte(home, reference, tmp_path):
    """Stopped by an exception in the progress callback once a tensor is finished, then run again."""
    base, a, b = (mg.open(home / n) for n in ("base", "a", "b"))
    vectors = [mg.trim(m - base, 0.3) for m in (a, b)]
    ties = mg.disjoint_mean(vectors, mg.elect_sign(vectors))
    dare = mg.random_drop(b - base, 0.4, seed=7, rescale="l1")
    whole = mg.trim(a - base, 0.1, scope="model")
    spin = mg.slerp(a, b, 0.3) - base
    out = base + 0.5 * ties + 0.25 * dare + 0.3 * whole + 0.2 * spin
    journal = tmp_path / ".out.merganser-partial/journal.jsonl"

    class Stop(Exception):
        pass

    def stop(done, total):
        if journal.exists() and sum('"tensor": "' in line for line in journal.read_text().splitlines()) > 0:
            raise Stop

    with pytest.raises(Stop):
        out.save(tmp_path / "out", threads=1, sync=False, tile=2**18, progress=stop)
    assert not (tmp_path / "out").exists()
    assert out.save(tmp_path / "out", threads=2, sync=False).resumed > 0
    found = {n: hashlib.sha256(raw).hexdigest() for n, raw in files_of(tmp_path / "out").items()}
    assert found == reference
