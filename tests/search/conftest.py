"""The tiny models of these tests, built once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_classifiers import build

    return build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def tiny(built_once: Path, tmp_path: Path) -> Path:
    """A copy that a test may write into."""
    return Path(shutil.copytree(built_once, tmp_path / "tiny"))
