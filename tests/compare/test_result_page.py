"""The page of a comparison: well formed, sealed off, bounded, and safe with what models write."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest
from result_makers import classification, classified, judged, perplexity, run, similarity
from test_page import read

from merganser.compare import Run, Samples, compare, comparison_page
from merganser.compare.plots import ticks
from merganser.compare.result_plots import short

EVIL = "<script>alert(1)</script>\"'&\u202e"


def evil(seed: int) -> Samples:
    columns = classification(seed, 1.0, 60)
    for name in ("answer", "prediction"):
        columns[name] = [EVIL + value + "x" * 5000 for value in columns[name]]
    columns["choices"] = [[EVIL + c + "x" * 5000 for c in row] for row in columns["choices"]]
    columns["id"] = [f"{EVIL}{k}{'y' * 5000}" for k in range(60)]
    return Samples.of("generation", columns | {"text": [EVIL] * 60})


@pytest.fixture(params=["two", "merge", "one sample", "unpaired"])
def document(request: pytest.FixtureRequest) -> dict[str, Any]:
    if request.param == "one sample":
        return compare({"<a>": run("<a>", t=judged([1])), "b": run("b", t=judged([0]))}, resampled=100)
    if request.param == "unpaired":
        columns = classification(1, 1.0)
        columns["id"][0] = EVIL
        models = {
            "<a>": run("<a>", t=classified(0, 1.0)),
            "b": run("b", t=Samples.of("classification", columns)),
        }
        return compare(models, allow_missing=True, resampled=100)

    def made(name: str, seed: int, skill: float) -> Run:
        tasks = {"<b>imdb</b>": classified(seed, skill), "sotu": perplexity(seed, skill), EVIL: evil(seed)}
        return Run(name, tasks | {"sts": similarity(seed, skill), "r8": classified(seed, 2 - skill, data=2)})

    models = {"<a>": made("<a>", 0, 0.5), "b & c": made("b & c", 1, 1.5)}
    if request.param == "two":
        return compare(models, resampled=100)
    models |= {"m": [made("m1", 2, 0.9), made("m2", 3, 1.0)], "n" * 300: made("n", 4, 1.1)}
    models |= {"base": made("base", 5, 0.2)}
    return compare(models, base="base", parents=["<a>", "b & c"], resampled=100)


def test_the_page_is_sealed_off_and_what_models_write_is_text(document: dict[str, Any]) -> None:
    content = comparison_page(document)
    reader = read(content)
    assert not {"script", "link", "img", "iframe", "object", "form", "base"} & set(reader.tags)
    names = {name for name, _ in reader.attributes}
    assert not names & {"src", "href", "xlink:href", "srcset", "action"}
    assert not [name for name in names if name.startswith("on")]
    assert not re.search(r"url\(|@import|https?://", content)
    assert "<script>" not in content
    assert "\u202e" not in content
    assert "&lt;a&gt;" in content
    assert "prefers-color-scheme:dark" in content


def test_the_plots_are_well_formed(document: dict[str, Any]) -> None:
    content = comparison_page(document)
    drawings = re.findall(r"<svg.*?</svg>", content, re.DOTALL)
    assert drawings
    for drawing in drawings:
        root = ET.fromstring(drawing)
        assert root.get("aria-label")
        for node in root.iter():
            for value in node.attrib.values():
                assert not {"nan", "inf", "-inf", "None"} & set(re.split(r"[ ,]", value))


def test_the_page_is_bounded_whatever_models_write() -> None:
    tasks = {f"task {k}": evil(k) for k in range(3)}
    other = {f"task {k}": evil(k + 10) for k in range(3)}
    found = compare({"a": Run("a", tasks), "b": Run("b", other)}, resampled=100)
    assert len(comparison_page(found)) < 400_000
    many = {f"task {k}": judged([1, 0, 1] * 20) for k in range(300)}
    found = compare({"a": Run("a", many), "b": Run("b", many)}, resampled=100)
    content = comparison_page(found)
    assert len(content) < 400_000
    assert "more; --json has all" in content


def test_numbers_of_the_comparison_are_on_the_page() -> None:
    models = {
        "a": run("a", t=classified(1, 1.0), u=classified(3, 1.0)),
        "b": run("b", t=classified(2, 1.4), u=classified(4, 1.4)),
    }
    found = compare(models, resampled=200)
    words = " ".join(read(comparison_page(found)).words)
    row = found["tasks"][0]["measures"][0]["differences"][0]
    assert f"{100 * row['difference']:+.2f}" in words
    flips = found["tasks"][0]["flips"][0]
    assert f"{flips['negative']['count']} ({flips['negative']['share']:.1%})" in words
    assert f"{found['tasks'][0]['outputs'][0]['reference_to_model']['mean']:.4g}" in words
    assert flips["examples"]["negative"][0]["id"] in words


@pytest.mark.parametrize(
    ("low", "high"), [(-0.3, 0.12), (0.0, 1.0), (-1e-9, 2e-9), (5.0, 9000.0), (2.0, 2.0)]
)
def test_ticks_are_round_few_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 1 <= len(found) <= 9
    assert all(low - 1e-12 <= tick <= high * (1 + 1e-9) + 1e-12 for tick in found)


def test_long_names_keep_both_ends() -> None:
    assert short("abcdefghij", 5) == "ab…ij"
    assert short("abcde", 5) == "abcde"
