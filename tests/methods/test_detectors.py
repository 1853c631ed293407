"""Detectors have a row for each label and one more, for no object: rows go by label, and the last stays the last."""

from __future__ import annotations

import re

import numpy as np
import pytest
import yaml

import merganser as mg
from merganser.errors import AlgebraError
from merganser.recipe import build, load

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


def remedied(tmp_path, first, second):
    """The merge of two detectors by the policy that the refusal of one without names, and that policy."""
    recipe = {"method": "linear", "models": [{"model": str(tmp_path / name)} for name in (first, second)]}
    with pytest.raises(AlgebraError) as refusal:
        build(load(recipe))[0].save(tmp_path / "out", sync=False)
    policy = yaml.safe_load(re.search(r"mismatch: (\{.*?\})", str(refusal.value))[1])
    build(load(recipe | {"mismatch": policy}))[0].save(tmp_path / "out", sync=False)
    made, told = transformers.YolosForObjectDetection.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not told["missing_keys"] and not told["mismatched_keys"]
    return made.class_labels_classifier.layers[-1].weight.detach().numpy(), next(iter(policy.values()))


def last_of(model):
    return model.class_labels_classifier.layers[-1].weight.detach().numpy()


def test_a_label_too_many_goes_by_the_policy_that_the_refusal_names(tmp_path):
    less, more = detector(tmp_path / "less", 0, ["hen", "cat"]), detector(tmp_path / "more", 1, LABELS)
    rows, word = remedied(tmp_path, "less", "more")
    assert word == "crop"
    assert np.allclose(rows, (last_of(less) + last_of(more)[[2, 0, 3]]) / 2, atol=1e-6)


def test_labels_of_other_things_go_by_the_policy_that_the_refusal_names(tmp_path):
    first = detector(tmp_path / "a", 0, LABELS)
    detector(tmp_path / "b", 1, ["cat", "cow", "dog"])
    rows, word = remedied(tmp_path, "a", "b")
    assert word == "base" and np.array_equal(rows, last_of(first))


def test_a_label_too_few_is_filled_up_beside_the_row_of_no_object(tmp_path):
    more, less = detector(tmp_path / "more", 0, LABELS), detector(tmp_path / "less", 1, ["hen", "cat"])
    recipe = {"method": "linear", "mismatch": {"class_labels_classifier.*": "pad"}}
    models = [{"model": str(tmp_path / name)} for name in ("more", "less")]
    build(load(recipe | {"models": models}))[0].save(tmp_path / "out", sync=False)
    made = last_of(transformers.YolosForObjectDetection.from_pretrained(tmp_path / "out"))
    wanted = (last_of(more) + np.stack([last_of(less)[1], last_of(more)[1], *last_of(less)[[0, 2]]])) / 2
    assert np.allclose(made, wanted, atol=1e-6)
