"""Memory, adapters tile by tile, results that are not finite, the kernel cache, plans."""

from __future__ import annotations

import json
import os
import stat

import numpy as np
import pytest
from makers import BF16, normal, python, read_model, same_bytes, write_adapter, write_model

import merganser as mg
from merganser.errors import NonFiniteError, RequestError

# memory

PEAK = """
import json, sys
import merganser as mg
home, out, memory, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
base, a, b = (mg.open(f"{home}/{n}") for n in ("base", "a", "b"))
vectors = [mg.trim(m - base, 0.2) for m in (a, b)]
merged = base + mg.disjoint_mean(vectors, mg.elect_sign(vectors))
plan = mg.explain(merged, memory=memory, threads=threads)
merged.save(out, memory=memory, threads=threads, sync=False)
# Not ru_maxrss: it counts what the parent process held before the exec.
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:")) * 1024
print(json.dumps({"peak": peak, "needed": plan["memory"]["needed"], "read": plan["bytes_read"]}))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Three models of 70 MB each."""
    home = tmp_path_factory.mktemp("large")
    part = normal(1 << 20, dtype=BF16)
    for k, name in enumerate(("base", "a", "b")):
        tensors = {f"layers.{i}": np.roll(part, 7919 * (i + k * k)) * BF16.type(1 + k) for i in range(16)}
        write_model(home / name, tensors | {"embed": np.tile(np.roll(part, k), 19)})
    return home


@pytest.mark.parametrize("threads", [1, 2])
def test_the_memory_limit_is_kept(large, tmp_path, threads):
    done = python(PEAK, large, tmp_path / "out", 256 * 2**20, threads)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["peak"] <= 256 * 2**20
    assert told["needed"] <= 256 * 2**20 and told["read"] > 400e6


def test_too_little_memory_is_refused_with_the_need(large, tmp_path):
    model = mg.open(large / "base")
    with pytest.raises(
        RequestError, match=r"--memory 20 MiB is too little: this plan needs \d+ MiB.*raise it to \d+ MiB"
    ):
        (model * 1.0).save(tmp_path / "out", memory=20 * 2**20)
    assert not list(tmp_path.iterdir())


def test_the_memory_asked_for_is_enough(large, tmp_path):
    """What the refusal asks for is then accepted, in a process of its own, and kept."""
    refused = python(PEAK, large, tmp_path / "out", 40 * 2**20, 1)
    assert refused.returncode == 1
    need = int(refused.stderr.rsplit("raise it to ", 1)[1].split()[0])
    done = python(PEAK, large, tmp_path / "out", (need + 2) * 2**20, 1)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["peak"] <= (need + 2) * 2**20


# adapters


@pytest.mark.parametrize("threads", [1, 2])
def test_an_adapter_is_scale_times_left_times_right(tmp_path, threads):
    left, right = normal(1100, 8, seed=1), normal(8, 700, seed=2)
    small = normal(5, 8, seed=3), normal(8, 3, seed=4)
    adapter = mg.open(write_adapter(tmp_path / "lora", {"big": (left, right), "small": small}, alpha=4.0))
    adapter.save(tmp_path / "out", degree=0.0, threads=threads, tile=2**18, sync=False)
    found = read_model(tmp_path / "out")
    for name, (b, a) in {"big.weight": (left, right), "small.weight": small}.items():
        exact = 0.5 * b.astype(np.float64) @ a.astype(np.float64)
        size = 0.5 * np.abs(b).astype(np.float64) @ np.abs(a).astype(np.float64)
        assert np.all(np.abs(found[name] - exact) <= 9 * 2.0**-24 * size), name
    product = left[:, :1] * right[:1]
    for k in range(1, 8):
        product = product + left[:, k : k + 1] * right[k : k + 1]
    assert same_bytes(found["big.weight"], product * np.float32(0.5))


# not finite


def poisoned(opened, value, at=(2, 3), **dtype):
    base, tune = normal(4, 5, seed=1), normal(4, 5, seed=2)
    tune[at] = value
    return opened("base", w=base, v=base), opened("tune", w=tune, v=base)


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (np.inf, "Inf"), (-np.inf, "Inf")])
def test_a_value_that_is_not_finite_names_tensor_place_and_parent(opened, tmp_path, value, kind):
    base, tune = poisoned(opened, value)
    with pytest.raises(NonFiniteError, match=rf"'w' of parent 'tune' holds {kind} at \[2, 3\] \(1 of 20 "):
        (0.5 * base + 0.5 * tune).save(tmp_path / "out", sync=False)
    assert not (tmp_path / "out").exists()


def test_a_copied_tensor_is_checked_too(opened, tmp_path):
    _, tune = poisoned(opened, np.nan)
    with pytest.raises(NonFiniteError, match=r"'w' of parent 'tune' holds NaN at \[2, 3\]"):
        tune.save(tmp_path / "out", sync=False)
    assert not (tmp_path / "out").exists()


def test_overflow_is_said_to_be_the_formulas(opened, tmp_path):
    model = opened("m", w=np.array([1.0, 60000.0], np.float16))
    with pytest.raises(
        NonFiniteError, match=r"'w' would hold Inf at \[1\].*finite there, so the formula.*float16"
    ):
        (model * 2.0).save(tmp_path / "out", degree=2.0, sync=False)


def test_not_finite_values_pass_on_request_and_are_counted(opened, tmp_path):
    base, tune = poisoned(opened, np.nan)
    merged = 0.5 * base + 0.5 * tune
    report = merged.save(tmp_path / "out", allow_nonfinite=True, sync=False)
    assert dict(report.nonfinite) == {"w": 1}
    found = read_model(tmp_path / "out")["w"]
    assert np.isnan(found[2, 3]) and np.isfinite(found).sum() == 19


# the kernel cache


def merge(parents, out, cache):
    code = (
        "import sys, merganser as mg\n"
        "a, b = mg.open(sys.argv[1] + '/a'), mg.open(sys.argv[1] + '/b')\n"
        "(0.25 * a + 0.75 * b).save(sys.argv[2], sync=False)"
    )
    done = python(code, parents, out, env={"MERGANSER_CACHE": str(cache)})
    assert done.returncode == 0, done.stderr
    return read_model(out)["w"]


@pytest.fixture
def parents(tmp_path):
    for k, name in enumerate("ab"):
        write_model(tmp_path / "p" / name, {"w": normal(1000, seed=k)})
    return tmp_path / "p"


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-7] + b"\0" * 7,
        lambda raw: raw[: len(raw) // 2],
        lambda raw: b"",
        lambda raw: b"\x90" * 500,
    ],
    ids=["edited", "cut", "empty", "other"],
)
def test_a_damaged_cache_file_is_compiled_again(parents, tmp_path, damage):
    wanted = merge(parents, tmp_path / "one", tmp_path / "cache")
    kernels = {path: path.read_bytes() for path in (tmp_path / "cache/kernels").glob("*.o")}
    assert kernels
    for path, whole in kernels.items():
        path.write_bytes(damage(whole))
    assert same_bytes(merge(parents, tmp_path / "two", tmp_path / "cache"), wanted)
    assert {path: path.read_bytes() for path in kernels} == kernels


def test_a_cache_that_cannot_be_written_only_costs_time(parents, tmp_path):
    (tmp_path / "cache").write_text("a file, not a directory")
    found = merge(parents, tmp_path / "one", tmp_path / "cache")
    a, b = (read_model(parents / n)["w"] for n in "ab")
    assert same_bytes(found, np.float32(0.25) * a + np.float32(0.75) * b)


def test_the_cache_is_the_users_alone(parents, tmp_path):
    merge(parents, tmp_path / "one", tmp_path / "cache")
    mode = (tmp_path / "cache/kernels").stat().st_mode
    assert not mode & (stat.S_IRWXG | stat.S_IRWXO)


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="giving a file away needs root")
def test_a_kernel_of_another_user_is_not_run(parents, tmp_path):
    wanted = merge(parents, tmp_path / "one", tmp_path / "cache")
    kernels = list((tmp_path / "cache/kernels").glob("*.o"))
    assert kernels
    for kernel in kernels:
        os.chown(kernel, 12345, -1)
    assert same_bytes(merge(parents, tmp_path / "two", tmp_path / "cache"), wanted)
    assert {kernel.stat().st_uid for kernel in kernels} == {0}


# plans


def test_a_plan_reads_no_tensor_bytes(opened, monkeypatch):
    from merganser.checkpoint.tensor import StoredTensor

    base, tune = (
        opened("base", w=normal(100), v=normal(10)),
        opened("tune", w=normal(100, seed=2), v=normal(10)),
    )

    def refuse(*_):
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(StoredTensor, "read_into", refuse)
    plan = mg.explain(base + mg.trim(tune - base, 0.5))
    assert plan["tensors"] == 2 and plan["bytes_written"] == 440 and plan["passes"] == 2
    assert plan["bytes_read"] == 2 * 2 * 440
    assert json.loads(json.dumps(plan)) == plan


def test_layers_of_one_kind_share_a_kernel(opened):
    names = [f"layers.{k}.w" for k in range(20)]
    base, tune = (
        opened(n, {name: normal(8, seed=k) for name in names}) for k, n in enumerate(("base", "tune"))
    )
    weights = {name: 0.1 * k for k, name in enumerate(names)}
    plan = mg.explain(base + (tune - base) * weights)
    assert plan["kernels"] == 1


def test_shards_hold_what_they_may(opened, tmp_path):
    model = opened("m", {f"t{k}": normal(100, seed=k) for k in range(7)} | {"huge": normal(1000)})
    model.save(tmp_path / "out", shard_size=900, sync=False)
    sizes = {p.name: p.stat().st_size for p in (tmp_path / "out").glob("*.safetensors")}
    assert len(sizes) == 5
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(sizes) and index["metadata"]["total_size"] == 4 * 1700


def test_config_follows_the_dtype(tmp_path):
    model = mg.open(
        write_model(tmp_path / "m", {"w": normal(9)}, {"model_type": "toy", "torch_dtype": "float32"})
    )
    model.save(tmp_path / "out", dtype="bfloat16", sync=False)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["model_type"] == "toy" and set(config.values()) == {"toy", "bfloat16"}


def test_progress_ends_within_the_total(opened, tmp_path):
    seen = []
    opened("m", w=normal(10_000)).save(tmp_path / "out", sync=False, progress=lambda *pair: seen.append(pair))
    assert seen and all(0 <= done <= total for done, total in seen)
