"""How recipes that merganser writes name models, statistics and files: one rule, and what it is for: moving."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from makers import write_model
from toy_models import NAMES, arithmetic, near, toys, written

from merganser.recipe import build, load
from merganser.search.paths import beside, moved, path_from
from merganser.search.run import search_into
from merganser.search.soups import soup_into
from merganser.search.writer import write_recipe


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    return toys(tmp_path / "home")


def values(recipe: Path) -> list[float]:
    weights, _ = build(load(recipe))
    return [float(weights.compute(name)[0]) for name in NAMES]


def move(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Everything together to another place, and the working directory to a third one."""
    elsewhere = home.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return home.rename(home.parent / "moved")


@pytest.mark.parametrize("lies", [".", "recipes"])
def test_what_search_writes_moves_with_its_models(lies: str, home: Path, monkeypatch) -> None:
    """Found from the working directory, or from the recipe's."""
    document = arithmetic({"search": [0, 1]}, 0.5)
    (home / lies).mkdir(exist_ok=True)
    if lies != ".":
        document["base_model"] = (
            "../base"  # found from the recipe's folder, the others from the working directory
        )
    opened = written(home / lies, document)
    search_into(opened, near(0.25, 0.5), "runs/best.yaml", by="random", evaluations=3)
    told = yaml.safe_load((home / "runs" / "best.yaml").read_text())
    assert [told["base_model"], *(one["model"] for one in told["models"])] == ["../base", "../a", "../b"]
    before = values(home / "runs" / "best.yaml")
    assert values(move(home, monkeypatch) / "runs" / "best.yaml") == before


def test_what_soup_writes_moves_with_its_models(home: Path, monkeypatch) -> None:
    soup_into(["base", "a", "b"], near(0.5, 0.5), "runs/soup.yaml", kind="uniform")
    before = values(home / "runs" / "soup.yaml")
    assert values(move(home, monkeypatch) / "runs" / "soup.yaml") == before


def test_absolute_paths_stay_absolute(home: Path, monkeypatch) -> None:
    paths = [str(home / name) for name in ("a", "b")]
    soup_into(paths, near(0.5, 0.5), home / "runs" / "soup.yaml", kind="uniform")
    told = yaml.safe_load((home / "runs" / "soup.yaml").read_text())
    assert [one["model"] for one in told["models"]] == paths
    monkeypatch.setenv("HOME", str(home))
    assert path_from(home / "runs", "~/a") == "~/a"


def test_a_path_that_would_lead_elsewhere_from_here_is_absolute(home: Path) -> None:
    """runs/a would be `a` for a recipe in runs, and the working directory has an `a` of its own, which comes first."""
    write_model(home / "runs" / "a", {name: np.full(1, 7.0, np.float32) for name in NAMES})
    write_recipe(
        home / "runs" / "best.yaml",
        [arithmetic(1.0, 0.0) | {"models": [{"model": "runs/a"}]}],
        {},
        source=None,
        overwrite=False,
    )
    told = yaml.safe_load((home / "runs" / "best.yaml").read_text())
    assert told["models"] == [{"model": str(home / "runs" / "a")}]
    assert values(home / "runs" / "best.yaml") == [7.0, 7.0, 7.0]
    assert beside(home / "runs", home / "runs" / "mask") == "mask"
    (home / "mask").mkdir()
    assert beside(home / "runs", home / "runs" / "mask") == str(home / "runs" / "mask")
    assert beside(home, home / "mask") == "mask"


def test_only_paths_are_changed(home: Path) -> None:
    for name in ("union", "hello", "corpus.txt", "lora"):
        (home / name).write_text("x")
    documents = [
        {
            "name": "b",
            "merge_method": "linear",
            "models": [{"model": "a+lora"}, {"model": "org/name@main"}, {"model": {"path": "a", "lora": "lora"}}],
            "tokenizer": {"source": "base", "tokens": {"hello": {"source": "a"}, "a": {"source": "union"}}},
            "dtype": "float32",
        },
        {
            "model": "b",
            "steps": [
                {"align": "a"},
                {"transplant_tokenizer": {"donor": "a"}},
                {"union_tokenizers": {"others": ["a", "base"]}},
                {"trim_vocabulary": {"corpus": ["corpus.txt"], "tokens": ["hello"]}},
                {"extend_vocabulary": {"tokens": ["hello"]}},
                {"stack": [{"model": "a", "layers": "0-1"}, {"layers": "0"}]},
                "fold_norms",
            ],
        },
    ]  # fmt: skip
    first, second = moved(documents, None, home / "runs")
    assert [one["model"] for one in first["models"]] == [
        "../a+../lora",
        "org/name@main",
        {"path": "../a", "lora": "../lora"},
    ]
    assert first["tokenizer"] == {
        "source": "base",
        "tokens": {"hello": {"source": "../a"}, "a": {"source": "union"}},
    }
    assert second["model"] == "b"  # the other document, though a model of that name lies here
    assert second["steps"] == [
        {"align": "../a"},
        {"transplant_tokenizer": {"donor": "../a"}},
        {"union_tokenizers": {"others": ["../a", "../base"]}},
        {"trim_vocabulary": {"corpus": ["../corpus.txt"], "tokens": ["hello"]}},
        {"extend_vocabulary": {"tokens": ["hello"]}},
        {"stack": [{"model": "../a", "layers": "0-1"}, {"layers": "0"}]},
        "fold_norms",
    ]
    assert moved(documents, None, home) == documents
    assert os.listdir(home).count("runs") == 0
