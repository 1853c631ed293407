"""Every command of the program, end to end in a process of its own: nothing that another one imported helps it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from evaluate.scored_models import make, sentences, write_rows, write_suite
from makers import environment, write_adapter

from merganser import cli

pytestmark = pytest.mark.models
COMMANDS = {
    "merge": ["recipe.yaml", "merged"],
    "reshape": ["a", "narrower", "narrow: {axis: neurons, share: 0.5}"],
    "explain": ["recipe.yaml"],
    "info": ["a"],
    "architecture": ["a"],
    "diff": ["a", "b"],
    "diagnose": ["a", "b", "--base", "base", "--html", "diagnosis.html"],
    "evaluate": ["a", "suite.yaml", "results/a"],
    "compare": ["results/a", "results/b"],
    "relate": ["a", "b", "suite.yaml", "--only", "line,cka", "--points", "3"],
    "observe": ["a", "rows.jsonl", "statistics"],
    "observe-pair": ["a", "b", "rows.jsonl", "moments"],
    "verify": ["merged"],
    "localize": ["base", "a", "rows.jsonl", "mask", "--share", "0.1"],
    "search": ["open.yaml", "suite.yaml", "best.yaml", "--evaluations", "2", "--by", "random"],
    "soup": ["a", "b", "soup.yaml", "--suite", "suite.yaml"],
    "learn": [
        "recipe.yaml",
        "suite.yaml",
        "learned.yaml",
        "--by",
        "atlas",
        "--objective",
        "labels",
        "--steps",
        "1",
    ],
    "rank-mixtures": ["a", "b", "--suite", "suite.yaml"],
    "methods": ["ties"],
    "steps": ["narrow"],
    "extract-lora": ["base", "a", "lora", "--rank", "2", "--embeddings"],
    "combine-lora": ["both", "adapter:0.5", "other:0.5"],
    "port": ["adapter", "base", "a"],
    "compress-patch": ["a", "signs", "--base", "base"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("every")
    for seed, name in enumerate(("base", "a", "b")):
        make("causal", home / name, seed)
    rows = [{"text": text} for text in sentences(6)]
    write_rows(home / "rows.jsonl", rows)
    write_suite(home / "suite.yaml", {"name": "t", "kind": "perplexity", "data": "rows.jsonl"})
    models = "models: [{model: a, parameters: {weight: 0.5}}, {model: b, parameters: {weight: 0.5}}]\n"
    (home / "recipe.yaml").write_text(f"method: task_arithmetic\nbase_model: base\n{models}")
    (home / "open.yaml").write_text(f"method: linear\n{models}".replace("0.5}}]", "{search: [0, 1]}}}]"))
    for seed, name in enumerate(("adapter", "other")):
        rng = np.random.default_rng(seed)
        factors = rng.standard_normal((32, 2)).astype("f4"), rng.standard_normal((2, 16)).astype("f4")
        write_adapter(home / name, {"model.layers.0.mlp.up_proj": factors})
    return home


def run(place: Path, command: str, words: list[str]) -> subprocess.CompletedProcess[str]:
    more = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "merganser", command, *words]
    return subprocess.run(line, cwd=place, capture_output=True, text=True, env=environment(more))


def test_none_is_left_out() -> None:
    assert COMMANDS.keys() == typer.main.get_command(cli.app).commands.keys()


@pytest.mark.parametrize("name", list(COMMANDS))
def test_it_runs(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    if name == "compare":  # what it reads
        for model in "ab":
            arguments = ["evaluate", model, "suite.yaml", f"results/{model}", "--quiet", "--overwrite"]
            assert cli.run(arguments) == 0
    if name == "verify":
        assert cli.run(["merge", "recipe.yaml", "merged", "--quiet", "--overwrite"]) == 0
    done = run(place, name, [*COMMANDS[name], *(["--overwrite"] if name in ("merge", "evaluate") else [])])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
