"""Text models inside models of images: the way out that the refusal names is followed, there and back."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tiny_live import CASES

from merganser.cli import run

pytestmark = pytest.mark.models
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PAGE = (Path(__file__).parents[2] / "docs" / "named-axes.md").read_text()
((OUT, BACK),) = (
    text.split('# merganser reshape TEXT RESULT "drop_layers: 2"\n')
    for text in re.findall(r"```py\n(.*?)```", PAGE, re.DOTALL)
)
IDS = torch.tensor([[5, 7, 11, 13, 17, 19]])


def flat(config: dict[str, Any]) -> dict[str, Any]:
    """A config of Qwen2-VL as published: keys of the text model among those of the whole."""
    text = {k: v for k, v in config["text_config"].items() if k != "model_type"}
    scaling = text.pop("rope_parameters")
    whole = {k: v for k, v in config.items() if k != "text_config"}
    rope = {"type": "mrope", "mrope_section": scaling["mrope_section"]}
    return text | whole | {"rope_theta": scaling["rope_theta"], "rope_scaling": rope}


def opened(place: Path) -> Any:
    model, told = transformers.AutoModelForImageTextToText.from_pretrained(place, output_loading_info=True)
    assert not told["missing_keys"] and not told["mismatched_keys"]
    return model.eval()


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Gemma 3", "gemma3_text"),
        ("LLaVA", "llama"),
        ("Qwen2-VL", "qwen2_vl_text"),
        ("flat", "qwen2_vl_text"),
    ],
)
def test_the_text_part_comes_out_and_goes_back(
    name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    case = CASES["Qwen2-VL" if name == "flat" else name]
    model = case.build()
    case.write(Path("MODEL"), model)
    if name == "flat":
        config = Path("MODEL/config.json")
        config.write_text(json.dumps(flat(json.loads(config.read_text()))))
    command = ["reshape", "MODEL", "RESULT", "layers: {keep: '1'}"]
    assert run(command) == 2
    told = capsys.readouterr().err
    assert f"({text})" in told and "get_decoder().save_pretrained(TEXT)" in told and "set_decoder" in told
    names: dict[str, Any] = {}
    exec(OUT, names)
    assert run(["reshape", "TEXT", *command[2:]]) == 0
    exec(BACK, names)

    body = model.get_decoder()
    body.layers = torch.nn.ModuleList([body.layers[1]])
    body.layers[0].self_attn.layer_idx = 0
    body.config.num_hidden_layers = 1
    if kinds := getattr(body.config, "layer_types", None):
        body.config.layer_types = kinds[1:]
    assert torch.allclose(logits(opened(Path("WHOLE"))), logits(model), atol=1e-5)
