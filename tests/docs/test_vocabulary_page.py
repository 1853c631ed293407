"""The page on vocabularies: its commands and its session run as they are written."""

from __future__ import annotations

import doctest
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from makers import ROOT

pytest.importorskip("torch")
pytest.importorskip("transformers")

sys.path.insert(0, str(ROOT / "tests" / "methods"))
import vocabulary_models
from tiny_tokenizers import ENGLISH, write_corpus

from merganser.cli import run

pytestmark = pytest.mark.models
PAGE = (ROOT / "docs" / "vocabulary.md").read_text()


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(vocabulary_models.make("byte_level"), "model")
    for name, texts in (("a", "en"), ("b", "ru")):
        shutil.copytree(vocabulary_models.make("byte_level", texts=texts, seed=ord(name)), name)
    write_corpus(tmp_path / "corpus.txt", ENGLISH)
    yield tmp_path
    vocabulary_models.clean()


def test_the_commands(models: Path, capfd: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    lines = [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    assert len(lines) == 6
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "merganser" and run(arguments) == 0, line
    told = capfd.readouterr().out
    for step in re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE):
        assert f"{step}: " in told


def test_the_session(models: Path) -> None:
    (text,) = re.findall(r"```pycon\n(.*?)```", PAGE, re.DOTALL)
    found = doctest.DocTestParser().get_doctest(text, {}, "vocabulary.md", None, 0)
    assert len(found.examples) > 8
    assert doctest.DocTestRunner(verbose=False).run(found).failed == 0
