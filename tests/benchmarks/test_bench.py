"""The benchmark runs end to end at a tiny size, without mergekit, and writes its page and raw numbers."""

import fcntl
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[2]
METHODS = ["linear", "task_arithmetic", "slerp", "ties", "dare_linear", "dare_ties", "breadcrumbs"]


def run(*words):
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "run.py"), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    work = tmp_path_factory.mktemp("bench")
    done = run("--params", "tiny", "--work", work, "--generate-only", "--skip-twice")
    assert done.returncode == 0, done.stderr
    return work


@pytest.fixture(scope="module")
def models(work):
    (found,) = work.glob("set-*")
    return found


def bits(path):
    """Every tensor of a bfloat16 file, read by offsets from the header: shape and raw bits."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    return {
        name: np.frombuffer(data[8 + length :][slice(*entry["data_offsets"])], np.uint16).reshape(
            entry["shape"]
        )
        for name, entry in header.items()
    }


def values(array):
    return (array.astype(np.uint32) << 16).view(np.float32)


class TestGeneratedModels:
    def test_they_open_as_safetensors_with_a_llama_layout(self, models):
        config = json.loads((models / "base" / "config.json").read_text())
        with safe_open(models / "base" / "model.safetensors", "numpy") as file:
            names = set(file.keys())
            embedding = file.get_slice("model.embed_tokens.weight")
            assert embedding.get_shape() == [config["vocab_size"], config["hidden_size"]]
            assert embedding.get_dtype() == "BF16"
            key = file.get_slice("model.layers.1.self_attn.k_proj.weight").get_shape()
        assert len(names) == 3 + 9 * config["num_hidden_layers"]
        assert key == [config["num_key_value_heads"] * 16, 64]

    def test_fine_tunes_differ_from_the_base_on_the_share_they_say(self, models):
        name = "model.layers.0.mlp.up_proj.weight"
        base = bits(models / "base" / "model.safetensors")[name]
        changed = {
            model: np.mean(bits(models / model / "model.safetensors")[name] != base)
            for model in ("alpha", "beta", "gamma")
        }
        assert changed["alpha"] > 0.8
        assert 0.4 < changed["beta"] < 0.51
        assert 0.07 < changed["gamma"] < 0.12
        assert abs(np.std(values(base)) - 0.02) < 0.001

    def test_digests_are_those_of_the_files(self, models):
        record = json.loads((models / "set.json").read_text())
        for file, known in record["files"].items():
            assert hashlib.sha256((models / file).read_bytes()).hexdigest() == known["sha256"]

    def test_a_set_that_is_there_is_used_again(self, work, models):
        before = (models / "set.json").stat().st_mtime_ns
        assert run("--params", "tiny", "--work", work, "--generate-only", "--skip-twice").returncode == 0
        assert (models / "set.json").stat().st_mtime_ns == before

    def test_the_same_bytes_come_again(self, models, tmp_path):
        assert run("--params", "tiny", "--work", tmp_path, "--generate-only", "--skip-twice").returncode == 0
        (again,) = tmp_path.glob("set-*")
        assert (again / "set.json").read_text() == (models / "set.json").read_text()


@pytest.fixture(scope="module")
def measured(work, tmp_path_factory):
    """The page and the raw numbers of one short run."""
    page = tmp_path_factory.mktemp("page") / "benchmarks.md"
    done = run("--params=tiny", "--repeats=1", "--skip-mergekit", "--work", work, "--output", page)
    assert done.returncode == 0, done.stderr
    return page.read_text(), json.loads(page.with_suffix(".json").read_text())


class TestRun:
    def test_every_method_is_measured(self, measured):
        _, results = measured
        assert list(results["cases"]) == METHODS
        for record in results["cases"].values():
            assert not record["failed"]
            for name in ("floor", "merganser", "merganser_cold", "floor_sync", "merganser_sync"):
                (sample,) = record["samples"][name]
                assert sample["status"] == 0
                assert 0 < sample["seconds"] < 120
                assert 10**6 < sample["peak_bytes"] < 2**31
            assert record["twice"]["status"] == 0

    def test_the_floor_reads_what_the_method_reads(self, measured):
        _, results = measured
        output = results["cases"]["linear"]["output_bytes"]
        read = {method: record["input_bytes"] // output for method, record in results["cases"].items()}
        assert read.pop("linear") == 3
        assert read.pop("slerp") == 2
        assert set(read.values()) == {4}

    def test_the_page_has_its_tables_and_no_places(self, measured, work):
        text, results = measured
        for part in (
            "## Time",
            "## Memory",
            "## Cold kernel cache",
            "## On the disk for certain",
            "## Start",
        ):
            assert part in text
        for method in METHODS:
            assert f"| {method} |" in text
        both = text + json.dumps(results)
        assert str(work) not in both
        assert str(ROOT) not in both
        assert str(Path.home()) + "/" not in both

    def test_it_cleans_up_and_leaves_the_models(self, measured, work):
        assert not (work / "scratch").exists()
        assert len(list(work.glob("set-*"))) == 2

    def test_the_page_can_be_written_again(self, measured, tmp_path):
        text, results = measured
        (tmp_path / "again.json").write_text(json.dumps(results))
        assert run("--render", "--output", tmp_path / "again.md").returncode == 0
        assert (tmp_path / "again.md").read_text() == text


class TestRefusals:
    def test_an_unknown_method(self, tmp_path):
        done = run("--only", "linaer", "--work", tmp_path)
        assert done.returncode == 2
        assert "linaer" in done.stderr

    def test_two_runs_in_one_place(self, tmp_path):
        with (tmp_path / "lock").open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            done = run("--params=tiny", "--work", tmp_path, "--output", tmp_path / "page.md")
        assert done.returncode == 1
        assert "another benchmark is running" in done.stderr
        assert not list(tmp_path.glob("set-*"))

    def test_a_changed_model_file_is_noticed(self, tmp_path):
        words = ("--params=tiny", "--skip-mergekit", "--skip-twice", "--only=linear", "--repeats=1")
        assert run(*words, "--work", tmp_path, "--generate-only").returncode == 0
        (file,) = tmp_path.glob("set-*/beta/model.safetensors")
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        done = run(*words, "--work", tmp_path, "--output", tmp_path / "page.md")
        assert done.returncode == 1
        assert "has changed since it was generated" in done.stderr
        assert not (tmp_path / "page.md").exists()


class TestPage:
    """The words met and missed, from numbers made up by hand."""

    @pytest.fixture
    def made_up(self):
        def samples(*seconds, peak=200_000_000):
            return [{"seconds": second, "peak_bytes": peak, "status": 0} for second in seconds]

        case = {
            "recipe": "merge_method: linear\n",
            "input_bytes": 3,
            "output_bytes": 1,
            "failed": [],
            "samples": {
                "floor": samples(2.0, 1.0, 4.0),
                "merganser": samples(2.2, 2.3, 9.0),
                "merganser_cold": samples(2.9, 2.8, 2.7),
                "mergekit": samples(10.0, 11.5, 30.0, peak=4_000_000_000),
                "floor_sync": samples(3.0, 3.0, 3.0),
                "merganser_sync": samples(3.0, 3.0, 3.0),
            },
            "twice": samples(4.0)[0],
        }
        return {
            "date": "2026-01-02",
            "command": "python benchmarks/run.py",
            "params": "1.1B",
            "parameters": 1_100_000_000,
            "layout": dict.fromkeys(
                ("hidden", "intermediate", "layers", "heads", "kv_heads", "vocabulary"), 1
            ),
            "repeats": 3,
            "mergekit_repeats": {"linear": 3},
            "machine": dict.fromkeys(
                ("processor", "cores", "filesystem", "system", "architecture", "load_before"), "x"
            )
            | {"memory_bytes": 2**34},
            "versions": {"merganser": {"merganser": "0"}, "mergekit": {"mergekit": "0.1.5"}},
            "startup": {"merganser": samples(0.1), "mergekit": samples(0.7)},
            "cases": {"linear": case},
            "twice": {"parameters": 2_200_000_000},
        }

    def render(self, results, tmp_path):
        (tmp_path / "made.json").write_text(json.dumps(results))
        done = run("--render", "--output", tmp_path / "made.md")
        assert done.returncode == 0, done.stderr
        return (tmp_path / "made.md").read_text()

    def test_medians_ratios_and_verdicts(self, made_up, tmp_path):
        text = self.render(made_up, tmp_path)
        row = next(line for line in text.splitlines() if line.startswith("| linear |"))
        assert "2.00 (1.00-4.00)" in row
        assert "2.30 (2.20-9.00)" in row
        assert "| 1.15 | 1.2 | met |" in row
        assert "| 5.0 | 4.5 | met |" in row
        assert "| 7.0 | 8 | **missed** |" in text
        assert "4 of 5 goals met." in text

    def test_missed_is_said(self, made_up, tmp_path):
        made_up["cases"]["linear"]["samples"]["merganser"][1]["seconds"] = 3.0
        made_up["cases"]["linear"]["twice"]["peak_bytes"] = 300_000_000
        text = self.render(made_up, tmp_path)
        row = next(line for line in text.splitlines() if line.startswith("| linear |"))
        assert "| 1.50 | 1.2 | **missed** |" in row
        assert "linear at most 1.2 floors" in text
        assert "no more memory at twice the size" in text

    def test_a_failed_run_has_no_number(self, made_up, tmp_path):
        made_up["cases"]["linear"]["samples"]["mergekit"][0]["status"] = 1
        row = next(
            line for line in self.render(made_up, tmp_path).splitlines() if line.startswith("| linear |")
        )
        assert "failed" in row
        assert "| met |" in row

    def test_a_merge_that_failed_has_missed_its_goals(self, made_up, tmp_path):
        made_up["cases"]["linear"]["samples"]["merganser"][0]["status"] = 1
        made_up["cases"]["linear"]["failed"] = ["merganser"]
        text = self.render(made_up, tmp_path)
        assert "linear at most 1.2 floors" in text
        assert "linear 4.5 times mergekit" in text
        assert "linear at most 400 MB" in text
