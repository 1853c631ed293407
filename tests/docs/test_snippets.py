"""Every Python and YAML snippet in the README and the pages runs as it is written."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from hand_statistics import write_statistics
from makers import ROOT, read_model, write_adapter, write_model

import merganser as mg
from merganser.architectures import parse_family
from merganser.architectures.loader import parse_loaders
from merganser.architectures.positions import parse_positions
from merganser.evaluate import Suite
from merganser.recipe import build, load

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


TRIED_APART = {"docs/quantized.md"}  # needs models of its own: test_quantized_page.py


def snippets(language: str) -> list[pytest.ParameterSet]:
    found = []
    for page in PAGES:
        if str(page.relative_to(ROOT)) in TRIED_APART:
            continue
        for number, text in enumerate(re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)):
            found.append(pytest.param(text, id=f"{page.relative_to(ROOT)}-{number}"))
    return found


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("base", "math", "code", "a", "b", "adapter"):
        write_small(tmp_path / name)
    for name in ("math", "code"):
        for kind in ("fisher", "gram", "mask"):
            write_observed(tmp_path / "stats" / name, kind, tmp_path / name)
    return tmp_path


def write_small(path: Path) -> None:
    random = np.random.default_rng(len(path.name))
    matrices = [f"self_attn.{side}_proj" for side in "qkvo"] + [
        f"mlp.{part}_proj" for part in ("gate", "up", "down")
    ]
    shapes = dict.fromkeys(matrices, (8, 8)) | dict.fromkeys(
        ("input_layernorm", "post_attention_layernorm"), (8,)
    )
    tensors = {
        f"model.layers.{k}.{name}.weight": random.standard_normal(shape).astype(np.float32)
        for k in range(LLAMA["num_hidden_layers"])
        for name, shape in shapes.items()
    }
    embedding = random.standard_normal((9, 8)).astype(np.float32)
    tensors |= {"model.norm.weight": embedding[0], "model.embed_tokens.weight": embedding}
    write_model(path, tensors | {"lm_head.weight": embedding + 1}, LLAMA)


def write_observed(home: Path, kind: str, model: Path) -> None:
    """Statistics of a model, in a directory for the kind."""
    found = read_model(model)
    if kind == "gram":
        found = {name: array.T @ array for name, array in found.items() if "proj" in name}
    elif kind == "mask":
        found = {name: (array > 1).astype(np.float32) for name, array in found.items()}
    else:
        found = {name: array**2 for name, array in found.items()}
    shutil.rmtree(home / kind, ignore_errors=True)
    write_statistics(home / kind, kind, found, model)


LLAMA = {
    "model_type": "llama",
    "vocab_size": 9,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 22,
    "num_attention_heads": 2,
}


@pytest.mark.parametrize("text", snippets("python"))
def test_python_runs(text: str, models: Path) -> None:
    exec(compile(text, "snippet", "exec"), {"__name__": "snippet"})


@pytest.mark.parametrize("text", snippets("yaml"))
def test_recipes_load_and_build(text: str, models: Path) -> None:
    if text.startswith("family:"):
        assert parse_family(text, "snippet").tensors
        return
    if text.startswith("positions:"):
        assert parse_positions(yaml.safe_load(text)["positions"], "snippet")
        return
    if text.startswith("loaders:"):
        told = yaml.safe_load(text)["loaders"]
        assert parse_loaders(told, list(told), "snippet").keys() == told.keys()
        return
    if re.search(r"^tasks:", text, re.MULTILINE):
        (models / "suite.yaml").write_text(text)
        assert Suite.open(models / "suite.yaml").tasks
        return
    recipe = load_recipe(text, models)
    documents = getattr(recipe, "documents", {})
    for model in recipe.models:
        lora = getattr(model.reference, "lora", None)
        if lora is not None:
            shutil.rmtree(models / lora.path, ignore_errors=True)
            factors = (np.ones((8, 2), np.float32), np.ones((2, 8), np.float32))
            write_adapter(models / lora.path, {"model.layers.0.mlp.up_proj": factors})
    for one in (recipe, *documents.values()):
        for model in one.models:
            path = model.reference.path
            if not Path(path).exists() and path not in documents:
                write_small(models / path)
        for source in (
            source for part in getattr(one, "parts", ()) for each in part.slices for source in each.sources
        ):
            if source.statistics is not None:
                model = models / one.models[source.model].reference.path
                write_observed(models / source.statistics, one.method.statistics, model)
    weights, fields = build(recipe)
    mg.explain(weights, **fields)


def load_recipe(text: str, place: Path):
    path = place / "recipe.yaml"
    path.write_text(text)
    return load(path)


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists() or target == "docs/benchmarks.md", f"{page.name}: {target}"


def test_every_method_has_a_page_and_a_line_in_the_list() -> None:
    from merganser.methods import all_methods

    listed = (ROOT / "docs" / "methods" / "README.md").read_text()
    for name, method in all_methods().items():
        if not method.function.__module__.startswith("merganser."):
            continue
        page = (ROOT / "docs" / "methods" / f"{name}.md").read_text()
        assert f"[{name}]({name}.md)" in listed, name
        assert method.summary.rstrip(".").replace("|", "\\|") in listed, f"{name}: {method.summary}"
        for part in ("```yaml", *(["## Parameters"] if method.parameters else [])):
            assert part in page, f"{name}: no {part}"
        assert re.search("Paper|Source|Formula|no paper", page), name


def test_every_paper_that_is_cited_by_its_id_is_listed() -> None:
    listed = set(re.findall(r"^\| (P\d{3}) \|", (ROOT / "docs" / "papers.md").read_text(), re.MULTILINE))
    places = [*PAGES, *(ROOT / "merganser").rglob("*.py"), *(ROOT / "merganser").rglob("*.yaml")]
    cited = {paper for place in places for paper in re.findall(r"\bP\d{3}\b", place.read_text())}
    assert cited - listed == {"P000"}, "P000 stands for any paper"
