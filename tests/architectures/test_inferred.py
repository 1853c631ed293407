"""Axes of plain nets by inference: right where they can be told, refused where they cannot."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from makers import normal, write_file

import merganser as mg
from merganser.architectures.inferred import infer
from merganser.checkpoint import open_checkpoint
from merganser.errors import RequestError

Shapes = dict[str, tuple[int, ...]]


def axes(path: Path, shapes: Shapes) -> dict[str, str]:
    """Each tensor's dimensions as text."""
    arrays = {name: normal(*shape, seed=k) for k, (name, shape) in enumerate(shapes.items())}
    file = write_file(path / "net.safetensors", arrays)
    reading = infer(open_checkpoint(file))
    return {name: " ".join(map(str, named.spec.dims)) for name, named in reading.tensors.items()}


def refusal(path: Path, shapes: Shapes) -> str:
    with pytest.raises(RequestError) as caught:
        axes(path, shapes)
    assert "cannot be inferred" in str(caught.value) and "family's file" in str(caught.value)
    return str(caught.value)


def test_mlp(tmp_path: Path) -> None:
    found = axes(
        tmp_path, {"fc1.weight": (7, 5), "fc1.bias": (7,), "fc2.weight": (7, 7), "out.weight": (3, 7)}
    )
    assert found == {
        "fc1.weight": "after_fc1 inputs",
        "fc1.bias": "after_fc1",
        "fc2.weight": "after_fc2 after_fc1",
        "out.weight": "outputs after_fc2",
    }


def test_order_by_numbers_not_by_letters(tmp_path: Path) -> None:
    names = ["0", "2", "4", "10", "12"]
    found = axes(tmp_path, {f"{n}.weight": (6, 6) for n in sorted(names)})
    assert found["10.weight"] == "after_10 after_4" and found["12.weight"] == "outputs after_10"


def test_order_by_sizes_where_names_mislead(tmp_path: Path) -> None:
    """A classifier sorts before the features."""
    found = axes(tmp_path, {"classifier.weight": (3, 9), "features.weight": (8, 5), "middle.weight": (9, 8)})
    assert (
        found["classifier.weight"] == "outputs after_middle"
        and found["features.weight"] == "after_features inputs"
    )


def test_cnn_with_batch_norm_and_flatten(tmp_path: Path) -> None:
    statistics = ("weight", "bias", "running_mean", "running_var")
    found = axes(
        tmp_path,
        {
            **{f"bn1.{one}": (4,) for one in statistics},
            "bn1.num_batches_tracked": (),
            **{f"bn2.{one}": (6,) for one in statistics},
            "conv1.weight": (4, 1, 3, 3),
            "conv2.weight": (6, 4, 3, 3),
            "fc.weight": (10, 6 * 25),
        },
    )
    assert found["conv2.weight"] == "after_conv2 after_conv1 3 3"
    assert found["bn1.running_var"] == "after_conv1" and found["bn2.weight"] == "after_conv2"
    assert found["bn1.num_batches_tracked"] == ""
    assert found["fc.weight"] == "outputs (after_conv2 25)"


def test_norms_in_a_sequential_stand_where_they_are_numbered(tmp_path: Path) -> None:
    found = axes(
        tmp_path,
        {"0.weight": (6, 6), "1.weight": (6,), "3.weight": (6, 6), "4.weight": (6,), "6.weight": (6, 6)},
    )
    assert found["1.weight"] == "after_0" and found["4.weight"] == "after_3"


@pytest.mark.models
def test_pickles_keep_the_order_in_which_layers_were_made(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    nn = torch.nn
    net = nn.ModuleDict(
        {"zeta": nn.Linear(6, 6), "norm": nn.LayerNorm(6), "alpha": nn.Linear(6, 6), "mid": nn.Linear(6, 6)}
    )
    torch.save(net.state_dict(), tmp_path / "net.pt")
    reading = infer(open_checkpoint(tmp_path / "net.pt", allow_pickle=True))
    found = {name: " ".join(map(str, named.spec.dims)) for name, named in reading.tensors.items()}
    assert found["zeta.weight"] == "after_zeta inputs" and found["norm.bias"] == "after_zeta"
    assert found["alpha.weight"] == "after_alpha after_zeta" and found["mid.weight"] == "outputs after_alpha"


@pytest.mark.models
def test_a_permuted_cnn_computes_the_same(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    nn = torch.nn
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Conv2d(5, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(96, 11),
        nn.LayerNorm(11),
        nn.ReLU(),
        nn.Linear(11, 3),
    )
    net(torch.randn(8, 1, 8, 8))
    net[1].weight.data.normal_()
    torch.save(net.state_dict(), tmp_path / "net.pt")
    weights = mg.open(tmp_path / "net.pt", allow_pickle=True)
    reading = infer(weights.origin)
    weights = weights._with({name: weights.entry(name) for name in weights}, reading=reading)
    x = torch.randn(4, 1, 8, 8)
    before = net.eval()(x).detach()
    random = np.random.default_rng(0)
    for axis, size in reading.sizes.items():
        if axis.name.startswith("after"):
            weights = mg.axes.permute(weights, axis.name, random.permutation(size))
    net.load_state_dict({name: torch.from_numpy(np.array(weights.compute(name))) for name in weights})
    assert not torch.equal(net[0].weight, torch.load(tmp_path / "net.pt")["0.weight"])
    assert torch.allclose(net(x), before, atol=1e-6)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"a.weight": (3, 4)}, "fewer than two Linear or Conv"),
        ({"a.weight": (5, 4), "b.weight": (3, 6)}, "no order of its layers .* 'a' gives 5 and 'b' takes 6"),
        (
            {"first.weight": (4, 4), "other.weight": (4, 4)},
            "order of its layers is open: 'first' and 'other' could change places",
        ),
        (
            {"in.weight": (4, 3), "x.weight": (4, 4), "y.weight": (4, 4)},
            "is open: 'x' and 'y' could change places",
        ),
        (
            {"a.weight": (4, 4), **{f"l.{k}.weight": (4, 4) for k in range(9)}},
            "'a' and 'l.0' could change places",
        ),
        (
            {"u1.weight": (4, 4), "v.weight": (5, 4), "w.weight": (4, 5)},
            "is open: u1, v, w, or v, w, u1",
        ),
        (
            {"stem.weight": (4, 3), "downsample.weight": (5, 4)},
            "'downsample' looks like a connection that skips",
        ),
        (
            {
                "stem.weight": (4, 3),
                **{f"layers.{k}.{n}.weight": (4, 4) for k in range(2) for n in ("a", "b")},
            },
            "'layers' has 2 numbered blocks of several layers",
        ),
        (
            {"conv1.weight": (4, 1, 3, 3), "gn1.weight": (4,), "conv2.weight": (6, 4, 3, 3)},
            "may be a GroupNorm",
        ),
        ({"embedding.weight": (9, 4), "fc.weight": (3, 4)}, "an embedding is read by rows"),
        ({"self_attn.weight": (4, 4), "fc.weight": (3, 4)}, "attention has products"),
        (
            {"lstm.weight_ih_l0": (8, 4), "fc.weight": (3, 2)},
            "'lstm.weight_ih_l0' is no weight, bias or statistic",
        ),
        (
            {"fc1.weight": (4, 4), "bn1.weight": (4,), "fc2.weight": (4, 4), "bn2.weight": (4,)},
            "which layer 'bn1' belongs",
        ),
        (
            {"conv.weight": (4, 1, 3, 3), "deep.weight": (4, 1, 3, 3), "fc.weight": (2, 4)},
            "no order of its layers",
        ),
        (
            {"a.weight": (5, 4), "a.bias": (4,), "b.weight": (3, 5)},
            r"'a.bias' has shape \[4\] beside a weight of \[5, 4\]",
        ),
        ({"a.weight": (5, 4), "b.bias": (5,)}, "'b' has no weight"),
        ({"a{0}.weight": (5, 4), "b.weight": (3, 5)}, "is no weight, bias or statistic"),
    ],
)
def test_what_cannot_be_told_is_refused(tmp_path: Path, shapes: Shapes, message: str) -> None:
    assert re.search(message, refusal(tmp_path, shapes))


def test_many_layers_of_one_size_end_quickly(tmp_path: Path) -> None:
    assert "is open" in refusal(tmp_path, {f"{name}.weight": (4, 4) for name in "abcdefghijklmnopqrst"})
