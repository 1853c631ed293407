"""The weights that a path names are those that run, whatever transformers would load from the directory."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from makers import read_file, write_file

from merganser.checkpoint import open_checkpoint
from merganser.running import open_model

pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with its weights twice: as they are, and halved as two shards behind an index of a variant."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    home = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=20, n_positions=8)
    transformers.GPT2LMHeadModel(config).save_pretrained(home)
    tensors = {name: array * np.float32(0.5) for name, array in read_file(home / "model.safetensors").items()}
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[:5], names[5:]), 1):
        file = f"model.half-0000{number}-of-00002.safetensors"
        write_file(home / file, {name: tensors[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    for index in ("model.safetensors.index.half.json", "model.half.safetensors.index.json"):
        (home / index).write_text(json.dumps({"weight_map": weight_map}))
    return home


@pytest.mark.parametrize("index", ["model.safetensors.index.half.json", "model.half.safetensors.index.json"])
def test_a_named_index_runs_its_own_weights(model: Path, index: str) -> None:
    plain, named = open_model(model), open_model(model / index)
    for key, value in named.module.state_dict().items():
        assert (value * 2 == plain.module.state_dict()[key]).all(), key
    assert plain.identity != named.identity
    opened = open_checkpoint(model / index)
    assert opened.loadable is None and open_checkpoint(model).loadable == model
    assert opened.belongings.left_out == ("model.safetensors",)


def test_weights_under_a_name_that_transformers_does_not_look_for(model: Path, tmp_path: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    (tmp_path / "weights.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    found, plain = open_model(tmp_path).module.state_dict(), open_model(model).module.state_dict()
    assert all((found[key] == value).all() for key, value in plain.items())
