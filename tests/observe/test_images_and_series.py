"""Images (files, bytes in Parquet) and series through both commands, against plain hooks, autograd, forward passes."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from small_models import inputs_by_hand, make, stored_name
from test_fisher_diagonal import added, same, squared
from test_observed_inputs import by_hand, close

import merganser as mg
from merganser.cli import run
from merganser.evaluate import read_results
from merganser.observe import observe

pytestmark = pytest.mark.models
KINDS = "gram,fisher,absmax,second_moment,mean"
LABELS = [0, 2, 1]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A ViT with its processor; three PNG files named in JSONL, as bytes, and as the datasets library has them."""
    import pyarrow as pa
    import pyarrow.parquet as parquet
    import transformers as t
    from PIL import Image

    home = tmp_path_factory.mktemp("pictures")
    make("vit", home / "vit")
    t.ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(home / "vit")
    (home / "png").mkdir()
    random = np.random.default_rng(0)
    held = []
    for k in range(len(LABELS)):
        image = Image.fromarray(random.integers(0, 256, (11, 9, 3), dtype=np.uint8))
        image.save(home / f"png/{k}.png")
        held.append((home / f"png/{k}.png").read_bytes())
    write_jsonl(home / "files.jsonl", [{"image": f"png/{k}.png", "label": n} for k, n in enumerate(LABELS)])
    parquet.write_table(pa.table({"image": held, "label": LABELS}), home / "bytes.parquet")
    both = [{"bytes": one, "path": None} for one in held]
    both[0] = {"bytes": None, "path": "png/0.png"}
    parquet.write_table(pa.table({"image": both, "label": LABELS}), home / "both.parquet")
    return home


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """A PatchTST and a PatchTSMixer; three series [12][2] as lists in JSONL and in Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    home = tmp_path_factory.mktemp("series")
    make("series", home / "patchtst")
    make("mixer", home / "mixer")
    values = np.random.default_rng(0).standard_normal((len(LABELS), 12, 2)).round(3).tolist()
    write_jsonl(home / "lists.jsonl", [{"x": x, "label": n} for x, n in zip(values, LABELS, strict=True)])
    parquet.write_table(pa.table({"x": values, "label": LABELS}), home / "lists.parquet")
    return home


def given_pictures(home):
    from PIL import Image
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(home / "vit")
    images = [Image.open(home / f"png/{k}.png").convert("RGB") for k in range(len(LABELS))]
    ready = [processor(images=image, return_tensors="pt")["pixel_values"] for image in images]
    return [{"pixel_values": one} for one in ready]


def given_series(home):
    import torch

    rows = [json.loads(line)["x"] for line in (home / "lists.jsonl").read_text().splitlines()]
    return [{"past_values": torch.tensor([row])} for row in rows]


def scores_of(model, row):
    found = model(**row)
    (name,) = {"logits", "prediction_logits", "prediction_outputs"} & set(found)
    return found[name][0]


PICTURES, LISTS = ["files.jsonl", "bytes.parquet", "both.parquet"], ["lists.jsonl", "lists.parquet"]
CASES = {
    "vit": ("pictures", "vit", given_pictures, [], {"image": "image"}, PICTURES),
    "series": ("series", "patchtst", given_series, ["--values", "x"], {"features": "x"}, LISTS),
    "mixer": ("series", "mixer", given_series, ["--values", "x"], {"features": "x"}, LISTS[:1]),
}


@pytest.mark.parametrize("family", CASES)
def test_both_commands(family, request, tmp_path, capsys):
    import torch
    import transformers as t

    fixture, folder, given, words, column, files = CASES[family]
    home = request.getfixturevalue(fixture)
    classes = {
        "vit": t.ViTForImageClassification,
        "series": t.PatchTSTForClassification,
        "mixer": t.PatchTSMixerForTimeSeriesClassification,
    }
    model = classes[family].from_pretrained(home / folder).eval()
    rows = given(home)

    told = []
    for data in files:
        out = tmp_path / data
        asked = ["observe", str(home / folder), str(home / data), str(out), "--collect", KINDS]
        assert run([*asked, "--batch", "2", *words, "--json"]) == 0
        told.append(json.loads(capsys.readouterr().out))
    asked = ["observe", str(home / folder), str(home / files[-1]), str(tmp_path / "labels")]
    assert run([*asked, "--collect", "fisher", "--fisher", "empirical", *words, "--quiet"]) == 0
    assert all(one["kinds"] == told[0]["kinds"] for one in told)  # the same digests from every kind of file

    # Statistics of inputs: plain hooks, one row at a time, f64.
    expected = {stored_name(family, place): x for place, x in inputs_by_hand(model, rows).items()}
    for kind in ("gram", "absmax", "second_moment", "mean"):
        found = mg.open(tmp_path / files[0] / kind)
        assert set(found) == set(expected)
        for name, x in expected.items():
            close(found.compute(name), by_hand(kind, x))

    # Fisher information: autograd, by the model's own predictions and by the data's labels.
    names = {place: place for place in dict(model.named_parameters())}
    if family == "vit":
        stems = {place: place.rpartition(".") for place in names}
        names = {
            p: stored_name("vit", stem).removesuffix("weight") + leaf for p, (stem, _, leaf) in stems.items()
        }
    model.requires_grad_(True)
    held = set(mg.open(home / folder))
    for mode, out in (("true", files[-1]), ("empirical", "labels")):
        parts = []
        for row, label in zip(rows, LABELS, strict=True):
            scores = scores_of(model, row).log_softmax(0)
            for k in range(3) if mode == "true" else [label]:
                weight = float(scores[k].detach().exp()) if mode == "true" else 1.0
                parts.append((weight, squared(model, -scores[k])))
        total = {place: value for place, value in added(parts).items() if names[place] in held}
        same(tmp_path / out / "fisher", total, len(LABELS), names.__getitem__)

    # Scores: plain forward passes.
    with torch.no_grad():
        logs = np.stack([scores_of(model, row).double().log_softmax(0).numpy() for row in rows])
    digests = []
    for data in files:
        task = {"name": "t", "kind": "classification", "data": str(home / data), "batch": 2, **column}
        (tmp_path / "suite.yaml").write_text(json.dumps({"name": "s", "tasks": [task]}))
        out = tmp_path / f"{data}.results"
        assert run(["evaluate", str(home / folder), str(tmp_path / "suite.yaml"), str(out), "--quiet"]) == 0
        found = read_results(out).tasks["t"]
        np.testing.assert_allclose(found.column("log_probabilities"), logs, atol=1e-5)
        assert found.column("right") == (logs.argmax(1) == LABELS).tolist()
        digests.append(found.column("input_digest"))
    assert all(one == digests[0] for one in digests)  # so results of all of them pair


def test_columns_are_a_series_of_one_channel(tmp_path):
    import torch
    import transformers as t

    columns = ["a", "b", "c", "d", "e", "f", "g", "h"]
    config = t.PatchTSTConfig(
        num_input_channels=1,
        context_length=len(columns),
        patch_length=4,
        patch_stride=4,
        d_model=16,
        num_attention_heads=2,
        num_hidden_layers=1,
        ffn_dim=24,
        num_targets=3,
        use_cls_token=True,
    )
    torch.manual_seed(0)
    model = t.PatchTSTForClassification(config).eval()
    model.save_pretrained(tmp_path / "model")
    values = np.random.default_rng(0).standard_normal((4, len(columns))).round(3)
    lines = [",".join(columns), *(",".join(map(str, row)) for row in values)]
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    out = tmp_path / "out"
    words = ["--collect", "gram,fisher", "--values", ",".join(columns), "--quiet"]
    assert run(["observe", str(tmp_path / "model"), str(tmp_path / "table.csv"), str(out), *words]) == 0
    rows = [{"past_values": torch.tensor(row, dtype=torch.float32)[None, :, None]} for row in values]
    found = mg.open(out / "gram")
    for place, x in inputs_by_hand(model, rows).items():
        close(found.compute(f"{place}.weight"), by_hand("gram", x))


def test_series_are_not_run_layer_by_layer(series, tmp_path, capsys):
    words = ["--values", "x", "--collect", "gram", "--layerwise"]
    asked = ["observe", str(series / "patchtst"), str(series / "lists.jsonl"), str(tmp_path / "out"), *words]
    assert run(asked) == 2
    assert "cannot be run layer by layer" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("cell", ["../elsewhere.png", "/etc/hostname", "png/../../elsewhere.png"])
def test_images_lie_below_the_data(pictures, tmp_path, capsys, cell):
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "rows.jsonl", [{"image": cell, "label": 0}])
    (tmp_path / "elsewhere.png").write_bytes((pictures / "png" / "0.png").read_bytes())
    asked = ["observe", str(pictures / "vit"), str(tmp_path / "data" / "rows.jsonl"), str(tmp_path / "out")]
    assert run(asked) == 2
    assert "row 1 names the image" in (told := capsys.readouterr().err) and "leads out" in told


def test_layer_by_layer_on_images(pictures, tmp_path):
    for out, layerwise in (("whole", False), ("layers", True)):
        fields = {"collect": "gram,mean", "batch": 2, "layerwise": layerwise}
        observe(pictures / "vit", pictures / "files.jsonl", tmp_path / out, **fields)
    for kind in ("gram", "mean"):
        whole, layers = (mg.open(tmp_path / out / kind) for out in ("whole", "layers"))
        assert set(whole) == set(layers)
        for name in whole:
            close(layers.compute(name), whole.compute(name).astype(float))


def test_images_that_do_not_open(pictures, tmp_path, capsys):
    import pyarrow as pa
    import pyarrow.parquet as parquet
    from PIL import Image

    kept = io.BytesIO()
    Image.new("RGB", (4, 4)).save(kept, "PNG")
    cases = {
        "cut.parquet": [kept.getvalue(), kept.getvalue()[:40]],
        "text.parquet": [kept.getvalue(), b"no image"],
        "nothing.parquet": [{"bytes": kept.getvalue(), "path": None}, {"bytes": None, "path": None}],
    }
    for name, cells in cases.items():
        parquet.write_table(pa.table({"image": cells, "label": [0, 1]}), tmp_path / name)
        task = {"name": "t", "kind": "classification", "data": name, "image": "image"}
        (tmp_path / "suite.yaml").write_text(json.dumps({"name": "s", "tasks": [task]}))
        for words in (
            ["observe", str(pictures / "vit"), str(tmp_path / name), str(tmp_path / "out")],
            ["evaluate", str(pictures / "vit"), str(tmp_path / "suite.yaml"), str(tmp_path / "out")],
        ):
            assert run([*words, "--quiet"]) == 2
            assert "row 2" in capsys.readouterr().err
            assert not (tmp_path / "out").exists()


def branches():
    """Convolutions that read one tensor, two of them with one kernel, stride, padding and dilation."""
    import torch

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            conv = torch.nn.Conv2d
            self.plain, self.twin = conv(4, 3, 1), conv(4, 5, 1)
            self.strided, self.padded = conv(4, 3, 1, stride=2), conv(4, 3, 1, padding=1)
            self.wide, self.dilated = conv(4, 3, 3, padding=1), conv(4, 3, 3, padding=1, dilation=2)

        def forward(self, x):
            return [part(x) for part in self.children()]

    return Net()


def test_layers_that_read_one_tensor_share_only_equal_patches():
    import torch

    from merganser.observe.layers import Layer, taps

    net = branches()
    found = {place: Layer(place, place, part.weight[0].numel()) for place, part in net.named_children()}
    read, unread = taps(net, found, lambda: net(torch.zeros(1, 4, 6, 6)))
    assert [tap.tensors for tap in read] == [
        ("plain", "twin"),
        ("strided",),
        ("padded",),
        ("wide",),
        ("dilated",),
    ]
    assert not unread


def test_a_shortcut_has_the_gram_matrix_of_its_own_patches(pictures, tmp_path):
    """RegNet's blocks begin with a 1x1 convolution, and their shortcut is a 1x1 convolution with stride 2."""
    import torch
    import transformers as t
    from PIL import Image
    from torch.nn.functional import unfold

    torch.manual_seed(0)
    config = t.RegNetConfig(
        embedding_size=6, hidden_sizes=[6, 6], depths=[1, 1], groups_width=3, layer_type="x", num_labels=3
    )
    model = t.RegNetForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "model")
    processor = t.ConvNextImageProcessorPil(size={"shortest_edge": 24}, crop_pct=1.0)
    processor.save_pretrained(tmp_path / "model")
    observe(tmp_path / "model", pictures / "files.jsonl", tmp_path / "out", collect="gram,mean")
    seen = {}
    parts = {place: part for place, part in model.named_modules() if isinstance(part, torch.nn.Conv2d)}
    for place, part in parts.items():
        part.register_forward_pre_hook(lambda _, given, place=place: seen.update({place: given[0]}))
    images = [Image.open(pictures / f"png/{k}.png").convert("RGB") for k in range(len(LABELS))]
    with torch.no_grad():
        model(**processor(images=images, return_tensors="pt"))
    gram, mean = (mg.open(tmp_path / "out" / kind) for kind in ("gram", "mean"))
    plain = [place for place, part in parts.items() if part.groups == 1]
    assert sum("shortcut" in place for place in plain) == 2
    for place in plain:
        part = parts[place]
        x = unfold(seen[place].double(), part.kernel_size, part.dilation, part.padding, part.stride)
        x = x.transpose(1, 2).reshape(-1, x.shape[1]).numpy()
        close(mg.compute(gram, f"{place}.weight"), x.T @ x / len(x))
        close(mg.compute(mean, f"{place}.weight"), x.mean(0))
