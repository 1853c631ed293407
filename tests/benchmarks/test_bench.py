"""The benchmark runs end to end at a tiny size, without mergekit, and writes its page and raw numbers."""

import fcntl
import hashlib
import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import merganser

ROOT = Path(__file__).resolve().parents[2]
CASES = [
    "linear",
    "task_arithmetic",
    "slerp",
    "slices",
    "slerp_gradient",
    "nearswap",
    "nuslerp",
    "multislerp",
    "model_stock",
    "karcher",
    "ram",
    "arcee_fusion",
    "lora_into_base",
    "dare_linear",
    "dare_ties",
    "sce",
    "ties",
    "breadcrumbs",
    "breadcrumbs_ties",
    "della",
    "extract_lora",
]
MEASURED = ["linear", "slices", "slerp_gradient", "lora_into_base", "della", "extract_lora"]
"""One of each kind; the recipes of all are checked without running them."""


def run(*words):
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "run.py"), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    work = tmp_path_factory.mktemp("bench")
    done = run("--params", "tiny", "--work", work, "--generate-only", "--skip-twice")
    assert done.returncode == 0, done.stderr
    return work


@pytest.fixture(scope="module")
def models(work):
    """The set itself, and not the one twice as large that a run makes beside it."""
    return min(work.glob("set-*"), key=lambda found: (found / "base/model.safetensors").stat().st_size)


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

    def test_the_adapter_changes_every_linear_layer_of_the_blocks(self, models):
        weights = merganser.open(models / "base") + merganser.open(models / "adapter")
        base = bits(models / "base" / "model.safetensors")
        factors = bits(models / "adapter" / "adapter_model.safetensors")
        for name in ("self_attn.k_proj", "mlp.down_proj"):
            name = f"model.layers.3.{name}"
            a, b = (values(factors[f"base_model.model.{name}.lora_{letter}.weight"]) for letter in "AB")
            assert a.shape[0] == b.shape[1] == 16
            change = 2.0 * (b @ a)
            assert abs(np.std(change) - 1e-3) < 2e-4
            expected = values(base[f"{name}.weight"]) + change
            assert np.allclose(merganser.compute(weights, f"{name}.weight"), expected, rtol=0, atol=1e-3)
        assert len(factors) == 2 * 7 * 4

    def test_a_set_that_is_there_is_used_again(self, work, models):
        before = (models / "set.json").stat().st_mtime_ns
        assert run("--params", "tiny", "--work", work, "--generate-only", "--skip-twice").returncode == 0
        assert (models / "set.json").stat().st_mtime_ns == before

    def test_the_same_bytes_come_again(self, models, tmp_path):
        assert run("--params", "tiny", "--work", tmp_path, "--generate-only", "--skip-twice").returncode == 0
        (again,) = tmp_path.glob("set-*")
        for record in ("set.json", "adapter/set.json"):
            assert (again / record).read_text() == (models / record).read_text()

    def test_an_adapter_that_is_missing_is_made_beside_the_models(self, work, models):
        before, made = (models / "set.json").stat().st_mtime_ns, (models / "adapter/set.json").read_text()
        shutil.rmtree(models / "adapter")
        assert run("--params", "tiny", "--work", work, "--generate-only", "--skip-twice").returncode == 0
        assert (models / "set.json").stat().st_mtime_ns == before
        assert (models / "adapter/set.json").read_text() == made


@pytest.fixture(scope="module")
def harness():
    """The harness's own modules, which are programs beside each other and no package."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield importlib.import_module
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def dataset(models, harness):
    return harness("dataset").Dataset(models, harness("layouts").LAYOUTS["tiny"])


class TestCases:
    def test_all_are_there(self, harness):
        assert list(harness("cases").CASES) == CASES

    @pytest.mark.parametrize("name", [name for name in CASES if name != "extract_lora"])
    def test_the_recipe_is_accepted_and_reads_what_the_floor_reads(self, name, harness, dataset, tmp_path):
        case = harness("cases").CASES[name]
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(case.recipe(dataset, dataset.model))
        done = subprocess.run(
            [sys.executable, "-m", "merganser", "explain", str(recipe), "--memory", case.memory, "--json"],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert done.returncode == 0, done.stderr
        plan = json.loads(done.stdout)
        assert plan["tensors"] == 3 + 9 * 4
        read = sum(
            path.stat().st_size if count is None else count for path, count in case.reads(dataset).items()
        )
        # headers aside; of slices and adapters the parents do not tell what is read
        held = (
            plan["bytes_read"]
            if case.slices or case.peft
            else sum(parent["bytes"] for parent in plan["parents"])
        )
        assert 0 <= read - held < 0.06 * read
        assert plan["bytes_read"] >= held
        assert plan["memory"]["needed"] < 256 * 2**20

    def test_the_slices_cover_all_layers_once(self, harness, dataset):
        layouts, cases = harness("layouts"), harness("cases")
        for layout in (*layouts.LAYOUTS.values(), *(layout.twice() for layout in layouts.LAYOUTS.values())):
            set_ = harness("dataset").Dataset(dataset.directory, layout)
            taken = [layer for part in cases.CASES["slices"].slices for layer in part.layers(set_)]
            assert taken == list(range(layout.layers))


@pytest.fixture(scope="module")
def measured(work, tmp_path_factory):
    """The page and the raw numbers of one short run."""
    page = tmp_path_factory.mktemp("page") / "benchmarks.md"
    words = ("--params=tiny", "--repeats=1", "--skip-mergekit", "--work", work, "--output", page)
    done = run(*words, "--only", ",".join(["startup", "restack", *MEASURED]))
    assert done.returncode == 0, done.stderr
    return page.read_text(), json.loads(page.with_suffix(".json").read_text())


class TestRun:
    def test_every_case_is_measured(self, measured):
        _, results = measured
        assert list(results["cases"]) == MEASURED
        for record in results["cases"].values():
            assert not record["failed"]
            for name in ("floor", "merganser", "merganser_cold", "floor_sync", "merganser_sync"):
                (sample,) = record["samples"][name]
                assert sample["status"] == 0
                assert sample["seconds"] > 0
                assert 10**6 < sample["peak_bytes"] < 2**31
            assert record["twice"]["status"] == 0
            assert 10**8 < record["planned_bytes"] < 2**28
            assert record["measured"]["repeats"] == 1
            assert record["measured"]["load"] >= 0
        assert list(results["reshapes"]) == ["restack"]

    def test_the_floor_reads_what_the_case_reads_and_writes_as_much(self, measured):
        _, results = measured
        cases = results["cases"]
        output = cases["linear"]["output_bytes"]
        shares = {name: round(record["input_bytes"] / output, 1) for name, record in cases.items()}
        assert shares["linear"] == 3
        assert shares["slices"] == 1.4  # three quarters of the layers of two models, one embedding, one head
        assert shares["slerp_gradient"] == 2
        assert 1 < shares["lora_into_base"] < 1.5
        assert shares["della"] == 4
        assert cases["extract_lora"]["output_bytes"] < output
        assert cases["lora_into_base"]["output_bytes"] == output

    def test_the_page_has_its_tables_and_no_places(self, measured, work):
        text, results = measured
        for part in (
            "## Time",
            "## Beside PEFT",
            "## Memory",
            "## Taken apart and put together",
            "## Cold kernel cache",
            "## On the disk for certain",
            "## Start",
            "## When",
            "## Recipes",
        ):
            assert part in text
        for name in MEASURED:
            assert text.count(f"| {name} |") >= 5
            assert f"### {name}" in text
        assert "Not measured: task_arithmetic, slerp, nearswap" in text
        both = text + json.dumps(results)
        assert str(work) not in both
        assert str(ROOT) not in both
        assert str(Path.home()) + "/" not in both

    def test_it_cleans_up_and_leaves_the_models(self, measured, work):
        assert not (work / "scratch").exists()
        assert len(list(work.glob("set-*"))) == 2

    def test_keep_measures_what_is_chosen_and_keeps_the_rest(self, measured, work, tmp_path):
        _, results = measured
        held = json.loads(json.dumps(results))
        held["cases"]["linear"]["measured"] = {
            "date": "2026-01-02",
            "commit": "old",
            "load": 0.5,
            "repeats": 9,
        }
        page = tmp_path / "page.md"
        page.with_suffix(".json").write_text(json.dumps(held))
        words = ("--params=tiny", "--repeats=1", "--skip-mergekit", "--skip-twice", "--work", work)
        done = run(*words, "--output", page, "--keep", "--only=ram,slices")
        assert done.returncode == 0, done.stderr
        after = json.loads(page.with_suffix(".json").read_text())
        assert set(after["cases"]) == {*MEASURED, "ram"}
        for name in set(MEASURED) - {"slices"}:
            assert after["cases"][name] == held["cases"][name]
        assert after["cases"]["slices"]["samples"] != held["cases"]["slices"]["samples"]
        assert after["startup"] == held["startup"]
        assert after["reshapes"] == held["reshapes"]
        text = page.read_text()
        assert "| linear | 2026-01-02 | old | 0.50 | 9 | - |" in text
        assert text.index("| slices |") < text.index("| ram |") < text.index("| lora_into_base |")

    def test_keep_refuses_numbers_of_another_machine(self, measured, work, tmp_path):
        _, results = measured
        held = json.loads(json.dumps(results))
        held["machine"]["cores"] += 1
        page = tmp_path / "page.md"
        page.with_suffix(".json").write_text(json.dumps(held))
        words = ("--params=tiny", "--skip-mergekit", "--work", work, "--output", page)
        done = run(*words, "--keep", "--only=linear")
        assert done.returncode == 1
        assert "measured with other cores" in done.stderr
        assert not page.exists()
        page.with_suffix(".json").unlink()
        assert "there is no page.json yet" in run(*words, "--keep", "--only=linear").stderr

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
            "measured": {"date": "2026-01-02", "commit": "abc", "load": 0.25, "repeats": 3},
            "recipe": "merge_method: linear\n",
            "planned_bytes": 150_000_000,
            "agreement": {"mergekit": {"same": 0.5, "within_one_step": 0.75}},
            "other_repeats": {"mergekit": 3},
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
            "command": "python benchmarks/run.py",
            "params": "1.1B",
            "parameters": 1_100_000_000,
            "layout": dict.fromkeys(
                ("hidden", "intermediate", "layers", "heads", "kv_heads", "vocabulary"), 1
            ),
            "machine": dict.fromkeys(("processor", "cores", "filesystem", "system", "architecture"), "x")
            | {"memory_bytes": 2**34},
            "versions": {"merganser": {"merganser": "0"}, "mergekit": {"mergekit": "0.1.5"}},
            "startup": {
                "measured": case["measured"] | {"repeats": 1},
                "samples": {"merganser": samples(0.1), "mergekit": samples(0.7)},
            },
            "reshapes": {},
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

    def test_a_merge_that_failed_once_has_missed_its_goals(self, made_up, tmp_path):
        made_up["cases"]["linear"]["failed"] = ["merganser"]
        row = next(
            line for line in self.render(made_up, tmp_path).splitlines() if line.startswith("| linear |")
        )
        assert "failed" in row
        assert "| met |" not in row

    def test_no_larger_compares_the_warm_runs_without_fsync(self, made_up, tmp_path):
        record = made_up["cases"]["linear"]
        for sample, peak in zip(record["samples"]["merganser"], (100e6, 110e6, 150e6), strict=True):
            sample["peak_bytes"] = peak
        record["twice"]["peak_bytes"] = 112_000_000
        assert "| 200 | 400 | met | 110.0 | 112.0 | met | 4000 |" in self.render(made_up, tmp_path)
        record["twice"]["peak_bytes"] = 113_000_000
        assert "| 110.0 | 113.0 | **missed** |" in self.render(made_up, tmp_path)

    def test_goals_of_the_other_cases(self, made_up, tmp_path):
        linear = made_up["cases"]["linear"]
        lora = json.loads(json.dumps(linear))
        lora["samples"]["peft"] = [{"seconds": 6.9, "peak_bytes": 10**9, "status": 0}]
        lora["other_repeats"] = {"mergekit": 3, "peft": 1}
        same = lora["agreement"]["mergekit"]
        lora["agreement"]["peft"] = same | {"same": 0.125}
        adapter = json.loads(json.dumps(linear)) | {"agreement": {}, "planned_bytes": 199_000_000}
        della = json.loads(json.dumps(linear))
        della["agreement"] = {"mergekit": {"changed": 0.5, "changed_other": 0.25, "norm_ratio": 1.5}}
        made_up["cases"] = {"extract_lora": adapter, "linear": linear, "lora_into_base": lora, "della": della}
        text = self.render(made_up, tmp_path)
        rows = [line for line in text.splitlines() if line.startswith("| ")]
        time = {row.split(" |")[0][2:]: row for row in rows if "(2.20-9.00) | 1.15 |" in row}
        assert list(time) == ["linear", "lora_into_base", "della", "extract_lora"]
        assert "| - | - | 11.5 (10.0-30.0) | 5.0 | 35 | **missed** |" in time["della"]
        assert "| - | - | 11.5 (10.0-30.0) | 5.0 | 3 | met |" in time["extract_lora"]
        assert "| lora_into_base | 2.30 (2.20-9.00) | 6.90 (one run) | 3.0 | 4 | **missed** | 1000 |" in rows
        assert "lora_into_base 4 times PEFT" in text
        assert "| extract_lora | 1GiB | 199 | 200 | 199 | **missed** |" in text
        assert "extract_lora within its plan" in text
        assert "| lora_into_base (PEFT) | 12.50% | 75.00% |" in rows
        assert "| della | 50.00% | 25.00% | 1.5000 |" in rows
        assert "| lora_into_base | 2026-01-02 | abc | 0.25 | 3 | 3, 1 |" in rows


class TestAgreement:
    """How outputs of the two tools are compared, on tensors made up by hand."""

    @pytest.fixture
    def agree(self, harness):
        return harness("agree")

    @staticmethod
    def model(directory, **tensors):
        directory.mkdir()
        save_file({name: np.asarray(array) for name, array in tensors.items()}, directory / "x.safetensors")
        return directory

    def test_bits_and_neighbours(self, agree, tmp_path):
        bf16 = ml_dtypes.bfloat16
        one = self.model(tmp_path / "one", w=np.array([1.0, -1.0, 2.0, 0.0], bf16))
        other = self.model(tmp_path / "two", w=np.array([1.0, -1.0078125, 2.5, -0.0], bf16))
        assert agree.agreement(one, other) == {"same": 0.5, "within_one_step": 0.75}
        wide = np.array([1.0, -1.0078125, 2.5, 1.00390625 * 2**-133], np.float32)
        assert agree.agreement(other, self.model(tmp_path / "wide", w=wide))["same"] == 0.75
        third = self.model(tmp_path / "three", v=np.array([1.0], bf16))
        with pytest.raises(SystemExit, match="different tensors"):
            agree.agreement(one, third)

    def test_changes_to_a_base(self, agree, tmp_path):
        bf16 = ml_dtypes.bfloat16
        base = self.model(tmp_path / "base", w=np.zeros(4, bf16))
        one = self.model(tmp_path / "one", w=np.array([3.0, 4.0, 0.0, 0.0], bf16))
        other = self.model(tmp_path / "two", w=np.array([0.0, 0.0, 0.0, 2.0], bf16))
        found = agree.changes(one, other, base)
        assert found == {"changed": 0.5, "changed_other": 0.25, "norm_ratio": 2.5}

    def test_what_adapters_hold(self, agree, tmp_path):
        zero, change = np.zeros((2, 2), np.float32), np.diag([2.0, 1.0]).astype(np.float32)
        base, tuned = (
            self.model(tmp_path / name, **{"a.weight": array})
            for name, array in (("base", zero), ("tuned", change))
        )
        adapters = []
        for row in (0, 1):
            vector = np.eye(2, dtype=np.float32)[row]
            prefix = "base_model.model.a.lora_"
            factors = {f"{prefix}A.weight": vector[None], f"{prefix}B.weight": (change @ vector)[:, None]}
            adapters.append(self.model(tmp_path / f"adapter{row}", **factors))
            (adapters[-1] / "adapter_config.json").write_text('{"r": 1, "lora_alpha": 1}')
        assert agree.extracted(*adapters, base, tuned) == pytest.approx({"held": 0.8, "held_other": 0.2})
        (adapters[0] / "adapter_config.json").write_text('{"r": 1, "lora_alpha": 2}')
        with pytest.raises(SystemExit, match="scale"):
            agree.extracted(*adapters, base, tuned)


class TestSlowTools:
    """A stand-in for mergekit: how often it is run."""

    @pytest.mark.parametrize(("limit", "runs"), [(0.0, 1), (600.0, 2)])
    def test_a_tool_that_is_slow_is_not_run_again(self, limit, runs, harness, dataset, tmp_path):
        (tmp_path / "mergekit-yaml").write_text(f'#!/bin/sh\ncp -r {dataset.model("alpha")} "$2"\n')
        (tmp_path / "mergekit-yaml").chmod(0o755)
        kit = harness("tools").Mergekit(tmp_path / "python")
        bench = harness("bench").Bench(tmp_path / "work", "ext4", kit)
        found = bench.case(harness("cases").CASES["linear"], dataset, 2, 2, slow=limit)
        assert not bench.failures
        assert len(found["samples"]["merganser"]) == 2
        assert len(found["samples"]["mergekit"]) == found["other_repeats"]["mergekit"] == runs
        assert 0 < found["agreement"]["mergekit"]["same"] < 1
