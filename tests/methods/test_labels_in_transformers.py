"""transformers decides: classifiers whose rows were put in another order are the same classifiers, by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import merganser as mg
from merganser import recipe
from merganser.cli import run
from merganser.methods import get

pytestmark = pytest.mark.models

TAGS = ("O", "B-PER", "I-PER", "B-LOC")
ORDER = [3, 1, 0, 2]


def settings(names):
    return {"id2label": dict(enumerate(names)), "label2id": {n: k for k, n in enumerate(names)}}


def electra(names):
    import transformers

    config = transformers.ElectraConfig(
        vocab_size=31, embedding_size=8, hidden_size=12, intermediate_size=20, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=16, **settings(names),
    )  # fmt: skip
    return transformers.ElectraForTokenClassification(config), ["classifier"]


def spectrogram(names):
    import transformers

    config = transformers.ASTConfig(
        hidden_size=12, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2, patch_size=4, max_length=12,
        num_mel_bins=8, time_stride=4, frequency_stride=4, **settings(names),
    )  # fmt: skip
    return transformers.ASTForAudioClassification(config), ["classifier.dense"]


def distilled(names):
    import transformers

    config = transformers.DeiTConfig(
        hidden_size=12, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4,
        **settings(names),
    )  # fmt: skip
    heads = ["cls_classifier", "distillation_classifier"]
    return transformers.DeiTForImageClassificationWithTeacher(config), heads


def resnet(names):
    import transformers

    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic", **settings(names)
    )
    return transformers.ResNetForImageClassification(config), ["classifier.1"]


def mobilebert(names):
    import transformers

    config = transformers.MobileBertConfig(
        vocab_size=31, hidden_size=16, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2,
        embedding_size=8, intra_bottleneck_size=8, max_position_embeddings=16, **settings(names),
    )  # fmt: skip
    return transformers.MobileBertForSequenceClassification(config), ["classifier"]


MODELS = {f.__name__: f for f in (electra, spectrogram, distilled, resnet, mobilebert)}


def inputs(kind):
    import torch

    torch.manual_seed(7)
    if kind in ("electra", "mobilebert"):
        return {"input_ids": torch.arange(2, 12)[None]}
    if kind == "spectrogram":
        return {"input_values": torch.randn(1, 12, 8)}
    return {"pixel_values": torch.randn(1, 3, 8, 8) if kind == "distilled" else torch.randn(1, 3, 32, 32)}


def logits(folder, kind):
    """By label, what the model at a place says."""
    import torch

    built, _ = MODELS[kind](TAGS)
    model, report = type(built).from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    with torch.no_grad():
        found = model.eval()(**inputs(kind)).logits
    return {model.config.id2label[k]: found[..., k] for k in range(found.shape[-1])}


@pytest.fixture(scope="module", params=sorted(MODELS))
def twins(request, tmp_path_factory):
    """one, other: the same classifier with its rows in two orders, and `kind`."""
    import torch

    home = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    model, heads = MODELS[request.param](TAGS)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape))
    model.save_pretrained(home / "one")
    with torch.no_grad():
        for head in heads:
            part = model.get_submodule(head)
            part.weight.copy_(part.weight[ORDER])
            part.bias.copy_(part.bias[ORDER])
    for key, value in settings([TAGS[k] for k in ORDER]).items():
        setattr(model.config, key, value)
    model.save_pretrained(home / "other")
    return home, request.param


def assert_same(one, other):
    import torch

    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("first", ["one", "other"])
def test_an_average_of_a_classifier_with_itself_in_another_order_is_itself(twins, first, tmp_path):
    home, kind = twins
    second = {"one": "other", "other": "one"}[first]
    text = "method: linear\nmodels:\n" + "".join(
        f"- {{model: {home / m}, parameters: {{weight: 0.5}}}}\n" for m in (first, second)
    )
    (tmp_path / "r.yaml").write_text(text)
    assert run(["merge", str(tmp_path / "r.yaml"), str(tmp_path / "out")]) == 0
    assert_same(logits(tmp_path / "out", kind), logits(home / "one", kind))
    told = [
        json.loads((place / "config.json").read_text())["id2label"]
        for place in (tmp_path / "out", home / first)
    ]
    assert told[0] == told[1]


def test_a_task_vector_from_another_order(twins, tmp_path):
    home, kind = twins
    one, other = mg.open(home / "one"), mg.open(home / "other", name="other")
    merged = get("ties")(one, [other], density=0.5, weight=1.0)
    merged.save(tmp_path / "out")
    assert_same(logits(tmp_path / "out", kind), logits(home / "one", kind))


# Steps on the axis ------------------------------------------------------------------------------------------


def classifier(home: Path, **told):
    """A text classifier; `told` changes config.json to what older releases and people wrote."""
    import torch

    torch.manual_seed(0)
    model, _ = electra(TAGS)
    model.save_pretrained(home)
    config = json.loads((home / "config.json").read_text()) | told
    (home / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return home


@pytest.mark.parametrize(
    "step",
    [
        "permute: {axis: labels, order: [1, 3, 0, 2]}", "take: {axis: labels, keep: [3, 1]}",
        "drop: {axis: labels, elements: 0}", "narrow: {axis: labels, size: 2}", "take: {axis: labels, keep: [2]}",
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "told",
    [{}, {"num_labels": 4}, {"label2id": None}, {"label2id": {"O": 3}}],
    ids=["as transformers 5 writes it", "with num_labels", "id2label alone", "label2id contradicts"],
)
def test_names_stay_with_their_rows(step, told, tmp_path):
    import transformers

    before = logits(classifier(tmp_path / "model", **told), "electra")
    assert run(["reshape", str(tmp_path / "model"), str(tmp_path / "out"), step]) == 0
    after = logits(tmp_path / "out", "electra")
    assert len(after) < 4 or "permute" in step
    assert_same(after, {name: before[name] for name in after})
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert config.label2id == {name: k for k, name in config.id2label.items()}
    assert config.num_labels == len(after)


def test_a_number_that_contradicts_the_table_is_refused_with_a_way_out(tmp_path, capsys):
    folder = classifier(tmp_path / "model", num_labels=2)
    step = "permute: {axis: labels, order: [1, 3, 0, 2]}"
    assert run(["reshape", str(folder), str(tmp_path / "out"), step]) == 2
    assert "Correct id2label and num_labels" in capsys.readouterr().err
    config = json.loads((folder / "config.json").read_text()) | {"num_labels": 4}
    (folder / "config.json").write_text(json.dumps(config))
    assert run(["reshape", str(folder), str(tmp_path / "out"), step]) == 0
    assert_same(logits(tmp_path / "out", "electra"), logits(folder, "electra"))


def test_rows_without_names_keep_the_number_that_they_had(tmp_path):
    """LABEL_2 still is the row that was LABEL_2."""
    told = {"id2label": None, "label2id": None, "num_labels": 4}
    before = logits(classifier(tmp_path / "model", **told), "electra")
    assert list(before) == ["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"]
    assert (
        run(["reshape", str(tmp_path / "model"), str(tmp_path / "out"), "take: {axis: labels, keep: [2, 0]}"])
        == 0
    )
    assert_same(logits(tmp_path / "out", "electra"), {n: before[n] for n in ("LABEL_2", "LABEL_0")})


def test_classifiers_of_different_things_side_by_side(tmp_path):
    first = classifier(tmp_path / "first")
    second = classifier(tmp_path / "second", **settings(("B-ORG", "I-ORG", "B-DAY", "I-DAY")))
    mg.axes.concat([mg.open(first), mg.open(second)], "labels").save(tmp_path / "both")
    both = logits(tmp_path / "both", "electra")
    assert_same(both, logits(first, "electra") | logits(second, "electra"))
    with pytest.raises(mg.errors.AlgebraError, match="2 rows would have the label 'O'"):
        mg.axes.concat([mg.open(first), mg.open(first)], "labels")


def test_the_ways_out_of_other_labels(tmp_path):
    """A classifier of three of the four: rows are left out by the step that the message names, or kept by a policy."""
    whole = classifier(tmp_path / "whole")
    assert run(["reshape", str(whole), str(tmp_path / "part"), "take: {axis: labels, keep: [3, 0, 1]}"]) == 0
    models = [{"model": str(tmp_path / "part")}, {"model": str(whole)}]
    with pytest.raises(mg.errors.AlgebraError, match=r'"take: \{axis: labels, keep: (\[.*?\])\}"') as caught:
        recipe.build(recipe.load({"method": "linear", "models": models}))
    step = str(caught.value).partition('OUT "')[2].partition('"')[0]
    assert run(["reshape", str(whole), str(tmp_path / "less"), step]) == 0
    models[1] = {"model": str(tmp_path / "less")}
    merged, _ = recipe.build(recipe.load({"method": "linear", "models": models}))
    merged.save(tmp_path / "out")
    before = logits(whole, "electra")
    assert_same(logits(tmp_path / "out", "electra"), {n: before[n] for n in ("B-LOC", "O", "B-PER")})


@pytest.mark.parametrize("part", ["head", "body"])
def test_slices_of_classifiers(part, tmp_path):
    """The head is the last slice's, its rows in the base's order."""
    whole = classifier(tmp_path / "whole")
    assert (
        run(["reshape", str(whole), str(tmp_path / "turned"), "permute: {axis: labels, order: [1, 3, 0, 2]}"])
        == 0
    )
    turned = tmp_path / "turned"
    order = [whole, turned] if part == "head" else [turned, whole]
    slices = [{"sources": [{"model": str(m), "layer_range": [0, 1]}]} for m in order]
    built, _ = recipe.build(recipe.load({"merge_method": "passthrough", "slices": slices}))
    built.save(tmp_path / "out")
    other = [{"sources": [{"model": str(whole), "layer_range": [0, 1]}]} for _ in order]
    built, _ = recipe.build(recipe.load({"merge_method": "passthrough", "slices": other}))
    built.save(tmp_path / "same")
    assert_same(logits(tmp_path / "out", "electra"), logits(tmp_path / "same", "electra"))
    told = [json.loads((f / "config.json").read_text())["id2label"] for f in (tmp_path / "out", order[0])]
    assert told[0] == told[1]
