"""Backbones for images give out the layers that they gave out before, whatever layers have moved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import merganser as mg
from merganser.algebra import axes
from merganser.errors import AlgebraError
from merganser.methods import get_step

pytestmark = pytest.mark.models
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from shaking import shake  # noqa: E402

SIZES = {
    "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 5, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
IMAGE = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
CLASSES = {
    "dinov2": "Dinov2Backbone",
    "dinov2_with_registers": "Dinov2WithRegistersBackbone",
    "dinov3_vit": "DINOv3ViTBackbone",
    "beit": "BeitBackbone",
}


def backbone(place: Path, kind: str, **config: Any) -> Path:
    made = transformers.AutoConfig.for_model(kind, **SIZES, **config)
    shake(getattr(transformers, CLASSES[kind])(made)).save_pretrained(place)
    return place


def config_of(place: Path) -> dict[str, Any]:
    return json.loads((place / "config.json").read_text())


def write_config(place: Path, config: dict[str, Any]) -> None:
    (place / "config.json").write_text(json.dumps(config))


def maps(place: Path, kind: str) -> list[np.ndarray]:
    model, told = getattr(transformers, CLASSES[kind]).from_pretrained(place, output_loading_info=True)
    assert not told["missing_keys"] and not told["mismatched_keys"]
    with torch.no_grad():
        return [one.numpy() for one in model.eval()(IMAGE).feature_maps]


@pytest.mark.parametrize("kind", CLASSES)
def test_a_stage_before_the_change_is_what_it_was(kind: str, tmp_path: Path) -> None:
    model = backbone(tmp_path / "m", kind, out_indices=[0, 2])
    get_step("drop_layers").function(mg.open(model), layers=[3]).save(tmp_path / "out", sync=False)
    assert len(config_of(tmp_path / "out")["stage_names"]) == 5
    for made, before in zip(maps(tmp_path / "out", kind), maps(model, kind), strict=True):
        assert np.allclose(made, before, atol=1e-5)


@pytest.mark.parametrize(
    ("order", "found"),
    [([0, 1, 3, 4], [1, 3]), ([0, 1, 2, 3], [1, 4]), ([0, 0, 1, 2, 3, 3, 4], [2, 6]), ([0, 3, 1, 4], [1, 2])],
)
def test_a_stage_goes_with_its_layer(order: list[int], found: list[int], tmp_path: Path) -> None:
    model = backbone(tmp_path / "m", "dinov2", out_indices=[1, 4])
    get_step("layers").function(mg.open(model), keep=order).save(tmp_path / "out", sync=False)
    config = config_of(tmp_path / "out")
    assert config["out_indices"] == found
    assert config["out_features"] == [f"stage{k}" for k in found]
    assert len(maps(tmp_path / "out", "dinov2")) == 2


@pytest.mark.parametrize("written", [{}, {"out_indices": [-1]}, {"out_features": ["stage5"]}])
def test_the_last_stage_stays_the_last(written: dict[str, Any], tmp_path: Path) -> None:
    model = backbone(tmp_path / "m", "dinov2", **written)
    get_step("layers").function(mg.open(model), keep=[0, 1, 2]).save(tmp_path / "out", sync=False)
    (made,) = maps(tmp_path / "out", "dinov2")
    write_config(model, config_of(model) | {"out_indices": [3], "out_features": ["stage3"]})
    assert np.allclose(made, maps(model, "dinov2")[0], atol=1e-5)


def test_keys_of_published_configs_follow(tmp_path: Path) -> None:
    model = backbone(tmp_path / "m", "beit", out_indices=[1, 4])
    plain = {
        k: v for k, v in config_of(model).items() if k not in ("out_features", "out_indices", "stage_names")
    }
    write_config(model, plain | {"segmentation_indices": [1, 4]})
    get_step("layers").function(mg.open(model), keep=[0, 1, 3, 4]).save(tmp_path / "out", sync=False)
    config = config_of(tmp_path / "out")
    assert config["segmentation_indices"] == [1, 3]
    assert "out_indices" not in config and "stage_names" not in config
    assert len(maps(tmp_path / "out", "beit")) == 2


@pytest.mark.parametrize("order", [[0, 2, 3, 4], [3, 0, 1, 2, 4]])
def test_stages_that_are_lost_or_change_places_are_refused_with_a_way_out(
    order: list[int], tmp_path: Path
) -> None:
    model = backbone(tmp_path / "m", "dinov2", out_indices=[2, 4])
    moved = get_step("layers").function(mg.open(model), keep=order)
    with pytest.raises(AlgebraError, match=r"take out_features and out_indices out of config\.json"):
        moved.save(tmp_path / "out", sync=False)
    left = {k: v for k, v in config_of(model).items() if k not in ("out_features", "out_indices")}
    write_config(model, left)
    get_step("layers").function(mg.open(model), keep=order).save(tmp_path / "out", sync=False)
    assert len(maps(tmp_path / "out", "dinov2")) == 1


def test_layers_of_two_models_have_no_stages_in_common(tmp_path: Path) -> None:
    first = backbone(tmp_path / "a", "dinov2", out_indices=[1, 3])
    second = backbone(tmp_path / "b", "dinov2", out_indices=[1, 3])
    a, b = mg.open(first), mg.open(second)
    axes.stack([(a, range(2)), (b, range(2, 5))]).save(tmp_path / "same", sync=False)  # by place
    assert config_of(tmp_path / "same")["out_indices"] == [1, 3]
    with pytest.raises(AlgebraError, match=r"out of config\.json"):
        axes.stack([(a, range(3)), (b, range(5))]).save(tmp_path / "out", sync=False)


def test_a_model_that_is_no_backbone_loses_layers_without_a_word_of_stages(tmp_path: Path) -> None:
    made = transformers.AutoConfig.for_model("dinov2", **SIZES)
    transformers.Dinov2ForImageClassification(made).save_pretrained(tmp_path / "m")
    get_step("drop_layers").function(mg.open(tmp_path / "m"), layers=[1, 4]).save(
        tmp_path / "out", sync=False
    )
    model = transformers.Dinov2ForImageClassification.from_pretrained(tmp_path / "out")
    assert model.config.num_hidden_layers == 3 and model.config.out_indices == [3]
