"""Licences of model cards, written by huggingface_hub."""

from __future__ import annotations

from pathlib import Path

import pytest
from makers import normal, write_model

import merganser as mg
from merganser.checkpoint.card import licence_in
from merganser.cli import run


def card(text: str = "# A model\n\nlicense: of no head\n", **head: object) -> str:
    from huggingface_hub import ModelCard, ModelCardData

    return str(ModelCard(f"---\n{ModelCardData(**head).to_yaml()}\n---\n{text}"))


@pytest.mark.parametrize(
    ("head", "licence"),
    [
        ({"license": "apache-2.0", "tags": ["merge"]}, "apache-2.0"),
        ({"license": "other", "license_name": "gemma", "license_link": "LICENSE"}, "gemma"),
        ({"license": "other"}, "other"),
        ({"license": "yes"}, "yes"),
        ({"language": "en"}, None),
    ],
)
def test_the_licence_of_a_card(head: dict[str, object], licence: str | None) -> None:
    assert licence_in(card(**head)) == licence


@pytest.mark.parametrize(
    "text", ["", "# Title\n\nlicense: mit\n", "---\nlicense: mit\n", "---\nlicense: [mit, gpl]\n---\n"]
)
def test_no_licence(text: str) -> None:
    assert licence_in(text) is None


def test_a_merge_of_models_under_other_licences_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for k, licence in enumerate(("mit", "llama3", "mit")):
        write_model(tmp_path / f"m{k}", {"w": normal(3, 4, seed=k)})
        (tmp_path / f"m{k}" / "README.md").write_text(card(license=licence))
    a, b, c = (mg.open(tmp_path / f"m{k}") for k in range(3))
    (note,) = (0.5 * a + 0.5 * b).save(tmp_path / "out").notes
    assert note["stated"] == {"m0": "mit", "m1": "llama3"}
    assert not (0.5 * a + 0.5 * c).save(tmp_path / "same").notes
    assert not mg.open(tmp_path / "m1").save(tmp_path / "alone").notes
    (tmp_path / "r.yaml").write_text(
        f"method: linear\nmodels: [{{model: {tmp_path / 'm0'}}}, {{model: {tmp_path / 'm1'}}}]\n"
    )
    assert run(["merge", str(tmp_path / "r.yaml"), str(tmp_path / "by")]) == 0
    told = capsys.readouterr()
    assert "licences: stated m0 mit, m1 llama3" in told.out + told.err
