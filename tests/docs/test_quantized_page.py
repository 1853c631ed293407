"""The ways out of quantized checkpoints that the page names: each writes plain weights that merganser computes with."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from makers import ROOT
from quantized_models import WRITERS

import merganser as mg
from merganser.errors import QuantizedError

pytestmark = pytest.mark.models
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "quantized.md").read_text(), re.DOTALL)
NEEDS = {"compressed_tensors": "compressed_tensors", "bitsandbytes": "bitsandbytes"}


def test_every_way_has_a_model_that_tries_it() -> None:
    assert {re.search(r'from_pretrained\("(\w+)"', text)[1] for text in SNIPPETS} == WRITERS.keys()


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.nightly] if n in NEEDS else []) for n in WRITERS]
)
def test_the_way_out_works(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    monkeypatch.chdir(tmp_path)
    WRITERS[name](tmp_path / name)
    with pytest.raises(QuantizedError):
        mg.open(name) * 1.0
    (text,) = (text for text in SNIPPETS if f'from_pretrained("{name}"' in text)
    exec(compile(text, "snippet", "exec"), {"__name__": "snippet"})
    plain = mg.open("plain")
    assert mg.open("plain").checkpoints[0].encoding is None
    (0.5 * plain + 0.5 * mg.open("plain")).save("merged")
    from transformers import AutoModelForCausalLM

    _, info = AutoModelForCausalLM.from_pretrained("merged", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
