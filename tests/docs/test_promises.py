"""Each promise on the page names tests, and these tests exist; each promise of the README is on the page."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from makers import ROOT

PAGE = (ROOT / "docs" / "promises.md").read_text()
ROWS = [
    line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| ") and "tests/" in line
]


@cache
def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


@pytest.mark.parametrize("row", [pytest.param(row, id=row[0][:60]) for row in ROWS])
def test_a_promise_is_held_by_tests_that_exist(row: list[str]) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(test_\w+))?`", row[-1])
    assert named
    for file, function in named:
        path = ROOT / file
        assert path.exists(), file
        assert functions(path) if not function else function in functions(path), f"{file}::{function}"


def test_no_cell_is_left_without_a_test() -> None:
    rows = [
        line
        for line in PAGE.splitlines()
        if line.startswith("| ") and not line.startswith(("| promise", "|--"))
    ]
    assert len(rows) == len(ROWS) > 40


def test_what_the_readme_promises_is_on_the_page() -> None:
    readme = (ROOT / "README.md").read_text().partition("## What it promises")[2].partition("\n## ")[0]
    promised = re.findall(r"^- \*\*(.+?)\*\*", readme, re.MULTILINE)
    assert len(promised) >= 6
    headings = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    for promise in promised:
        assert promise in headings, promise
