"""The commands as a user meets them: output, JSON, exit status, and nothing heavy at start."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from makers import BF16, ROOT, write_model


def run(*arguments: str, cwd: Path, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "merganser", *arguments],
        cwd=cwd,
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "MERGANSER_CACHE": str(cwd / "cache"),
            "HOME": str(cwd),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == code, done.stderr + done.stdout
    assert "\x1b" not in done.stdout + done.stderr, "no colours or bars when piped"
    return done


@pytest.fixture
def place(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    base = {"layer.0.w": random.standard_normal((30, 40)).astype(np.float32), "n": np.arange(7)}
    for name in ("base", "one", "two"):
        tensors = dict(base)
        if name != "base":
            tensors["layer.0.w"] = base["layer.0.w"] + random.standard_normal((30, 40)).astype(np.float32) / 8
        write_model(tmp_path / name, tensors)
    (tmp_path / "recipe.yaml").write_text(
        "method: task_arithmetic\nbase_model: base\nmodels:\n"
        "  - {model: one, parameters: {weight: 0.5}}\n  - {model: two, parameters: {weight: 0.25}}\n"
    )
    return tmp_path


def read(path: Path, name: str) -> np.ndarray:
    """By the safetensors package, not by us."""
    from safetensors.numpy import load_file

    return load_file(path / "model.safetensors")[name]


def test_merge_writes_what_the_recipe_says(place: Path) -> None:
    report = json.loads(run("merge", "recipe.yaml", "out", "--json", cwd=place).stdout)
    base, one, two = (read(place / n, "layer.0.w").astype(np.float64) for n in ("base", "one", "two"))
    expected = base + 0.5 * (one - base) + 0.25 * (two - base)
    np.testing.assert_allclose(read(place / "out", "layer.0.w"), expected, rtol=1e-6, atol=1e-7)
    assert report["tensors"] == 2
    assert report["unused"] == {"one": ["n"], "two": ["n"]}
    assert json.loads(run("verify", "out", "--json", cwd=place).stdout)["digest"] == report["digest"]


def test_existing_output_is_refused_and_replaced_only_when_asked(place: Path) -> None:
    run("merge", "recipe.yaml", "out", "--quiet", cwd=place)
    before = (place / "out" / "merganser.json").read_bytes()
    assert "already exists" in run("merge", "recipe.yaml", "out", cwd=place, code=2).stderr
    assert (place / "out" / "merganser.json").read_bytes() == before
    assert run("merge", "recipe.yaml", "out", "--overwrite", "--quiet", cwd=place).stdout == ""


def test_explain_writes_nothing(place: Path) -> None:
    """A plan leaves nothing on disk."""
    plan = json.loads(run("explain", "recipe.yaml", "--json", cwd=place).stdout)
    assert plan["tensors"] == 2
    assert plan["bytes_written"] == 30 * 40 * 4 + 7 * 8
    assert not list(place.glob(".*partial"))
    text = run("explain", "recipe.yaml", cwd=place).stdout
    assert "memory" in text
    assert "0.5" in text


def test_diff_numbers_are_those_of_numpy(place: Path) -> None:
    found = json.loads(run("diff", "base", "one", "--json", cwd=place).stdout)
    row = next(t for t in found["tensors"] if t["name"] == "layer.0.w")
    a, b = (read(place / n, "layer.0.w").astype(np.float64) for n in ("base", "one"))
    assert row["norm"] == pytest.approx(np.linalg.norm(b - a), rel=1e-6)
    assert row["relative"] == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a), rel=1e-6)
    assert row["cosine"] == pytest.approx((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-6)
    assert row["sign_flips"] == int((np.sign(a) * np.sign(b) < 0).sum())
    assert row["max"] == pytest.approx(np.abs(b - a).max(), rel=1e-6)
    assert not row["equal"]
    assert next(t for t in found["tensors"] if t["name"] == "n")["equal"]
    same = json.loads(run("diff", "base", "base", "--json", cwd=place).stdout)
    assert same["summary"]["equal"] == 2


def test_diff_tells_names_shapes_and_dtypes_apart(place: Path) -> None:
    write_model(
        place / "other", {"layer.0.w": np.zeros((30, 41), np.float32), "extra": np.zeros(3, np.float32)}
    )
    found = json.loads(run("diff", "base", "other", "--json", cwd=place).stdout)
    assert found["only_a"] == ["n"]
    assert found["only_b"] == ["extra"]
    assert found["summary"]["different_shape"] == 1
    write_model(
        place / "half", {"layer.0.w": read(place / "base", "layer.0.w").astype(BF16), "n": np.arange(7)}
    )
    found = json.loads(run("diff", "base", "half", "--json", cwd=place).stdout)
    assert found["tensors"][0]["note"] == "F32 to BF16"


def test_info_groups_layers(place: Path) -> None:
    found = json.loads(run("info", "base", "--json", cwd=place).stdout)
    assert {g["pattern"] for g in found["groups"]} == {"layer.*.w", "n"}
    assert found["parameters"] == 30 * 40 + 7


def test_methods_list_and_page(place: Path) -> None:
    names = {m["name"] for m in json.loads(run("methods", "--json", cwd=place).stdout)["methods"]}
    assert {"linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties", "breadcrumbs"} <= names
    assert "elect" in run("methods", "ties", cwd=place).stdout
    assert "did you mean 'ties'" in run("methods", "tis", cwd=place, code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("merge", "nothing.yaml", "out"), 2, "no recipe"),
        (("merge", "recipe.yaml"), 2, "--help"),
        (("merge", "recipe.yaml", "out", "--memori", "1GB"), 2, "--memory"),
        (("merge", "recipe.yaml", "out", "--memory", "lots"), 2, "not a size"),
        (("merge", "recipe.yaml", "out", "--memory", "20MiB"), 2, "too little"),
        (("merge", "recipe.yaml", "out", "--threads", "-1"), 2, "threads"),
        (("verify", "base"), 1, "not sealed by merganser"),
        (("info", "bas"), 2, "did you mean 'base'"),
        (("frobnicate",), 2, "frobnicate"),
    ],
)
def test_wrong_requests_are_one_clear_message(
    place: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    done = run(*arguments, cwd=place, code=code)
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (place / "out").exists()
    document = json.loads(run(*arguments, "--json", cwd=place, code=code).stdout)
    assert document["error"]["message"]


@pytest.mark.parametrize("command", [("merge", "recipe.yaml", "out"), ("explain", "recipe.yaml")])
def test_the_default_of_memory_can_be_set(place: Path, command: tuple[str, ...]) -> None:
    done = run(*command, cwd=place, code=2, MERGANSER_MEMORY="20MiB")
    assert "--memory 20 MiB is too little" in done.stderr
    run(*command, "--memory", "1GiB", cwd=place, MERGANSER_MEMORY="20MiB")


def test_a_damaged_checkpoint_fails_verification(place: Path) -> None:
    run("merge", "recipe.yaml", "out", "--quiet", cwd=place)
    with (place / "out" / "model.safetensors").open("r+b") as file:
        file.seek(-5, 2)
        file.write(b"\x01")
    assert "has changed" in run("verify", "out", cwd=place, code=1).stderr


def test_help_and_version_import_nothing_heavy(tmp_path: Path) -> None:
    for option in ("--help", "--version"):
        code = (
            f"import sys; sys.argv = ['merganser', {option!r}]\n"
            "import merganser.cli\n"
            "try: merganser.cli.main()\n"
            "except SystemExit: pass\n"
            "names = {'numpy', 'llvmlite', 'torch', 'transformers', 'pydantic', 'yaml', 'rich.progress'}\n"
            "heavy = names & set(sys.modules)\n"
            "assert not heavy, heavy"
        )
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, timeout=600)


def test_merging_works_where_torch_is_not_installed(place: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'safetensors', 'numba', 'peft'): sys.modules[name] = None\n"
        "sys.argv = ['merganser', 'merge', 'recipe.yaml', 'out', '--quiet']\n"
        "import merganser.cli; merganser.cli.main()"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=place,
        timeout=600,
        env={"PYTHONPATH": str(ROOT), "HOME": str(place)},
    )
    assert (place / "out" / "model.safetensors").exists()
