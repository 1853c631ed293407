"""Adapters name modules of the live model, checkpoints what their files hold: PEFT decides that both mean the same."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "architectures"))
from tiny_live import CASES, Case

import merganser as mg
from merganser.methods import adapters as ad

pytestmark = pytest.mark.models


def linear(model: Any, every: int = 1) -> list[str]:
    """The linear layers of a live model that PEFT changes, heads apart."""
    import torch
    from transformers.pytorch_utils import Conv1D

    heads = ("lm_head", "classifier")
    fit = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and not name.startswith(heads) and "mixer" not in name
    ]
    if not fit:  # Mamba, of whose layers PEFT takes these two
        fit = [name for name, _ in model.named_modules() if name.endswith(("in_proj", "x_proj"))]
    return fit[::every]


def state(model: Any) -> dict[str, np.ndarray]:
    return {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}


def same(
    left: dict[str, np.ndarray], right: dict[str, np.ndarray], heads: tuple[str, ...] = ("classifier",)
) -> None:
    assert left.keys() == right.keys()
    for name in left:
        if not name.startswith(heads):
            np.testing.assert_allclose(left[name], right[name], rtol=1e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("name", CASES)
def test_an_adapter_that_peft_saved_on_the_live_model(tmp_path, name):
    case = CASES[name]
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    base = case.write(tmp_path / "base", case.build())
    live = case.load(base)
    targets = linear(live)
    tuned = peft.get_peft_model(live, peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        wanted = state(tuned.merge_and_unload())
    (mg.open(base) + mg.open(tmp_path / "adapter")).save(tmp_path / "out")
    before, after = state(case.load(base)), state(case.load(tmp_path / "out"))
    same(after, wanted)
    changed = {name for name in after if not np.array_equal(before[name], after[name])}
    assert changed - {"classifier.weight", "classifier.bias"} >= {f"{module}.weight" for module in targets}


def fine_tune(case: Case, base: Path, out: Path) -> Any:
    """A live model with a change of rank 2 in every linear layer, and its files."""
    import torch

    torch.manual_seed(7)
    model = case.load(base)
    with torch.no_grad():
        for name in linear(model):
            weight = model.get_submodule(name).weight
            weight += 0.1 * torch.randn(weight.shape[0], 2) @ torch.randn(2, weight.shape[1])
    return model


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].live is None])
def test_an_extracted_adapter_makes_the_fine_tune_in_peft(tmp_path, name):
    case = CASES[name]
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    base = case.write(tmp_path / "base", case.build())
    tuned = fine_tune(case, base, tmp_path / "tuned")
    case.write(tmp_path / "tuned", tuned)
    with torch.no_grad():
        ad.extract(mg.open(tmp_path / "tuned") - mg.open(base), rank=2).save(tmp_path / "lora", degree=0)
        loaded = peft.PeftModel.from_pretrained(case.load(base), tmp_path / "lora").merge_and_unload()
        same(state(loaded), state(tuned))
    (mg.open(base) + mg.open(tmp_path / "lora")).save(tmp_path / "out")
    same(state(case.load(tmp_path / "out")), state(tuned))
