"""Detectors have a row for each label and one more, for no object: rows go by label, and the last stays the last."""

from __future__ import annotations

import numpy as np
import pytest

import merganser as mg
from merganser.errors import AlgebraError

pytestmark = pytest.mark.models
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LABELS = ["cat", "dog", "hen"]


def detector(place, seed, labels):
    torch.manual_seed(seed)
    config = transformers.YolosConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=[16, 16],
        patch_size=8, num_detection_tokens=4, id2label=dict(enumerate(labels)),
        label2id={name: k for k, name in enumerate(labels)},
    )  # fmt: skip
    model = transformers.YolosForObjectDetection(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    model.save_pretrained(place)
    return model


def scores(model):
    with torch.no_grad():
        return model(torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)).logits.numpy()


def test_rows_go_by_label_and_that_of_no_object_stays_the_last(tmp_path):
    order = [2, 0, 1]
    first = detector(tmp_path / "a", 0, LABELS)
    twin = detector(tmp_path / "b", 0, [LABELS[k] for k in order])
    last = twin.class_labels_classifier.layers[-1]
    with torch.no_grad():  # the same detector with its labels in another order
        for parameter in (last.weight, last.bias):
            parameter.copy_(parameter[[*order, 3]].clone())
    twin.save_pretrained(tmp_path / "b")
    assert np.allclose(scores(twin), scores(first)[..., [*order, 3]], atol=1e-5)
    merged = 0.5 * mg.open(tmp_path / "a") + 0.5 * mg.open(tmp_path / "b")
    merged.save(tmp_path / "out", sync=False)
    made = transformers.YolosForObjectDetection.from_pretrained(tmp_path / "out")
    assert np.allclose(scores(made), scores(first), atol=1e-5)
    assert [made.config.id2label[k] for k in range(3)] == LABELS


def test_other_labels_are_refused(tmp_path):
    detector(tmp_path / "a", 0, LABELS)
    detector(tmp_path / "b", 1, [*LABELS[:2], "cow"])
    a, b = mg.open(tmp_path / "a"), mg.open(tmp_path / "b")
    with pytest.raises(AlgebraError, match="write their names into id2label"):
        0.5 * a + 0.5 * b
