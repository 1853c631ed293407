"""Weight matching on small nets without torch: against brute force, against the definition, and what is refused."""

from __future__ import annotations

import builtins
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers import normal, read_model, write_model

import merganser as mg
from merganser.algebra.axes import permute
from merganser.architectures import Axis
from merganser.errors import AlgebraError, MerganserError, RequestError
from merganser.methods import get_step
from merganser.methods.align._descent import Block, assigned, match
from merganser.methods.align.weight_matching import _Models, align

Arrays = dict[str, np.ndarray]
FAMILY = """
family: toy
model_types: [toy]
indices:
  layer: layers
  expert[layer]: experts
axes:
  vocab: vocab_size
  residual: hidden
  heads[layer]: heads
  head_dim[layer]: head_dim
  rotary: 2
  neurons[layer, expert]: neurons
config:
  layers: layer
fixed:
  rotary: pairs
modules:
  embed: embedding vocab -> residual
  layers.{layer}:
    qkv: linear residual -> (heads head_dim + heads head_dim + rotary)
    out: linear (heads head_dim) -> residual
    gate: linear residual -> expert
    experts.{expert}:
      up: linear residual -> neurons
      down: linear neurons -> residual
  turn: linear residual -> residual
"""
CONFIG = {"layers": 2, "experts": 3, "vocab_size": 40, "hidden": 8, "heads": 3, "head_dim": 4, "neurons": 5}


def mlp(seed: int, *widths: int) -> Arrays:
    found: Arrays = {}
    for k, (a, b) in enumerate(itertools.pairwise(widths)):
        found[f"{2 * k}.weight"] = normal(b, a, seed=seed + 10 * k)
        found[f"{2 * k}.bias"] = normal(b, seed=seed + 10 * k + 1)
    return found


def toy(seed: int) -> Arrays:
    c = CONFIG
    wide = c["heads"] * c["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (c["vocab_size"], c["hidden"])}
    for layer in range(c["layers"]):
        at = f"layers.{layer}"
        shapes |= {
            f"{at}.qkv.weight": (2 * wide + 2, c["hidden"]),
            f"{at}.qkv.bias": (2 * wide + 2,),
            f"{at}.out.weight": (c["hidden"], wide),
            f"{at}.gate.weight": (c["experts"], c["hidden"]),
        }
        for expert in range(c["experts"]):
            shapes[f"{at}.experts.{expert}.up.weight"] = (c["neurons"], c["hidden"])
            shapes[f"{at}.experts.{expert}.down.weight"] = (c["hidden"], c["neurons"])
    shapes["turn.weight"] = (c["hidden"], c["hidden"])
    return {name: normal(*shape, seed=seed + k) for k, (name, shape) in enumerate(shapes.items())}


@pytest.fixture
def family(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(FAMILY)
    return path


def opened(path: Path, arrays: Arrays, config: Any = None) -> mg.Weights:
    return mg.open(write_model(path, arrays, config))


def distance(a: mg.Weights, b: mg.Weights) -> float:
    return float(np.sqrt(sum(np.sum((a.compute(n).astype(float) - b.compute(n)) ** 2) for n in a)))


def forward(arrays: Any, x: np.ndarray) -> np.ndarray:
    layers = sorted({int(name.split(".")[0]) for name in arrays})
    for k in layers:
        x = x @ arrays[f"{k}.weight"].T.astype(float) + arrays[f"{k}.bias"]
        x = np.maximum(x, 0) if k != layers[-1] else x
    return x


@pytest.mark.parametrize("seed", range(8))
def test_one_hidden_layer_is_the_best_of_all_permutations(tmp_path: Path, seed: int) -> None:
    first, second = mlp(seed, 3, 4, 2), mlp(seed + 100, 3, 4, 2)
    a, b = opened(tmp_path / "a", first), opened(tmp_path / "b", second)
    found = align(b, to=a, seed=seed, inferred=True)

    def gap(order: tuple[int, ...]) -> float:
        moved = second | {
            "0.weight": second["0.weight"][list(order)],
            "0.bias": second["0.bias"][list(order)],
            "2.weight": second["2.weight"][:, list(order)],
        }
        return float(sum(np.sum((first[n].astype(float) - moved[n]) ** 2) for n in first))

    orders = list(itertools.permutations(range(4)))
    best = min(orders, key=gap)
    assert np.array_equal(found.compute("0.bias"), second["0.bias"][list(best)])
    assert np.array_equal(found.compute("2.weight"), second["2.weight"][:, list(best)])
    note = found.notes[-1]
    assert note["l2_after"] == pytest.approx(gap(best) ** 0.5, rel=1e-12)
    assert note["l2_before"] == pytest.approx(gap((0, 1, 2, 3)) ** 0.5, rel=1e-12)
    assert note["axes"]["after_0"]["moved"] == sum(k != p for k, p in enumerate(best))


def test_deep_nets_keep_their_function_and_come_nearer(tmp_path: Path) -> None:
    first, second = mlp(0, 5, 16, 12, 9, 3), mlp(500, 5, 16, 12, 9, 3)
    a, b = opened(tmp_path / "a", first), opened(tmp_path / "b", second)
    found = align(b, to=a, inferred=True)
    out = {name: found.compute(name) for name in found}
    x = normal(20, 5, seed=9)
    assert np.allclose(forward(out, x), forward(second, x), rtol=1e-6, atol=1e-6)
    assert not np.array_equal(out["0.weight"], second["0.weight"])
    note = found.notes[-1]
    assert note["settled"] and note["l2_after"] < note["l2_before"]
    assert note["l2_after"] == pytest.approx(distance(a, found), rel=1e-9)
    assert set(note["axes"]) == {"after_0", "after_2", "after_4"}


@pytest.mark.parametrize("start", ["outside", "identity"])
def test_no_single_assignment_is_left_that_improves(tmp_path: Path, start: Any) -> None:
    """A local optimum: each axis alone, solved by trying all of its permutations, gives nothing more."""
    first, second = mlp(1, 3, 5, 4, 2), mlp(700, 3, 5, 4, 2)
    a, b = opened(tmp_path / "a", first), opened(tmp_path / "b", second)
    found = align(b, to=a, inferred=True, start=start)
    best = distance(a, found)
    for axis, size in (("after_0", 5), ("after_2", 4)):
        for order in itertools.permutations(range(size)):
            assert distance(a, permute(found, axis, order)) >= best - 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_a_permuted_model_is_found_again(tmp_path: Path, family: Path, seed: int) -> None:
    """Fused parts, heads with elements inside, experts with neurons inside, an axis twice in one tensor."""
    random = np.random.default_rng(seed)
    first = toy(seed)
    second = permuted_toy(first, random)
    a, b = opened(tmp_path / "a", first, CONFIG), opened(tmp_path / "b", second, CONFIG)
    found = align(b, to=a, seed=seed, family=family)
    assert found.notes[-1]["l2_before"] > 1
    assert found.notes[-1]["l2_after"] == 0
    for name, array in first.items():
        assert np.array_equal(found.compute(name), array), name


def permuted_toy(arrays: Arrays, random: np.random.Generator) -> Arrays:
    """By hand: no operation of the package."""
    c = CONFIG
    residual = random.permutation(c["hidden"])
    out = {"embed.weight": arrays["embed.weight"][:, residual]}
    out["turn.weight"] = arrays["turn.weight"][residual][:, residual]
    for layer in range(c["layers"]):
        at = f"layers.{layer}"
        grid = np.arange(c["heads"] * c["head_dim"]).reshape(c["heads"], c["head_dim"])
        rows = grid[random.permutation(c["heads"])][:, random.permutation(c["head_dim"])].reshape(-1)
        fused = np.concatenate([rows, rows + len(rows), 2 * len(rows) + np.arange(2)])
        out[f"{at}.qkv.weight"] = arrays[f"{at}.qkv.weight"][fused][:, residual]
        out[f"{at}.qkv.bias"] = arrays[f"{at}.qkv.bias"][fused]
        out[f"{at}.out.weight"] = arrays[f"{at}.out.weight"][residual][:, rows]
        experts = random.permutation(c["experts"])
        out[f"{at}.gate.weight"] = arrays[f"{at}.gate.weight"][experts][:, residual]
        for new, old in enumerate(experts):
            order = random.permutation(c["neurons"])
            up, down = (arrays[f"{at}.experts.{old}.{one}.weight"] for one in ("up", "down"))
            out[f"{at}.experts.{new}.up.weight"] = up[order][:, residual]
            out[f"{at}.experts.{new}.down.weight"] = down[residual][:, order]
    return {name: np.ascontiguousarray(out[name]) for name in arrays}


def test_only_the_axes_asked_for_move(tmp_path: Path, family: Path) -> None:
    a, b = opened(tmp_path / "a", toy(0), CONFIG), opened(tmp_path / "b", toy(50), CONFIG)
    found = align(b, to=a, family=family, axes=["neurons"])
    note = found.notes[-1]
    assert set(note["axes"]) == {"neurons"} and note["axes"]["neurons"]["instances"] == 6
    assert np.array_equal(found.compute("embed.weight"), b.compute("embed.weight"))
    assert np.array_equal(found.compute("layers.1.gate.weight"), b.compute("layers.1.gate.weight"))
    assert note["l2_after"] < note["l2_before"]


def test_same_seed_same_bytes_whatever_is_kept_in_memory(
    tmp_path: Path, family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = opened(tmp_path / "a", toy(0), CONFIG), opened(tmp_path / "b", toy(50), CONFIG)
    one = align(b, to=a, family=family, seed=3)
    one.save(tmp_path / "one")
    with monkeypatch.context() as patched:
        patched.setattr(_Models, "hold", lambda self, limit, free: None)  # nothing is kept: all is read again
        align(b, to=a, family=family, seed=3).save(tmp_path / "two", threads=3)
    first, second = read_model(tmp_path / "one"), read_model(tmp_path / "two")
    assert first.keys() == second.keys()
    for name, array in first.items():
        assert array.tobytes() == second[name].tobytes(), name
    others = {align(b, to=a, family=family, seed=seed).notes[-1]["l2_after"] for seed in range(3, 9)}
    assert len(others) > 1, "six seeds visited the axes in the same order"
    assert all(value < one.notes[-1]["l2_before"] for value in others)


def test_aligning_to_itself_moves_nothing(tmp_path: Path, family: Path) -> None:
    a = opened(tmp_path / "a", toy(0), CONFIG)
    note = align(a, to=a, family=family).notes[-1]
    assert note["l2_before"] == note["l2_after"] == 0
    assert all(one["moved"] == 0 for one in note["axes"].values())


def test_equal_and_dead_neurons_are_left_alone(tmp_path: Path) -> None:
    arrays = mlp(0, 3, 6, 2)
    for row in (1, 4):
        arrays["0.weight"][row], arrays["0.bias"][row], arrays["2.weight"][:, row] = 0, 0, 0
    arrays["0.weight"][5], arrays["0.bias"][5] = arrays["0.weight"][2], arrays["0.bias"][2]
    arrays["2.weight"][:, 5] = arrays["2.weight"][:, 2]
    a = opened(tmp_path / "a", arrays)
    assert align(a, to=a, inferred=True).notes[-1]["axes"]["after_0"]["moved"] == 0


def test_assignment_against_all_permutations() -> None:
    for seed in range(20):
        products = normal(5, 5, seed=seed).astype(float)
        best = max(itertools.permutations(range(5)), key=lambda p: sum(products[k, p[k]] for k in range(5)))
        assert assigned(products).tolist() == list(best)
    assert assigned(np.zeros((3, 3))).tolist() == [0, 1, 2]
    with pytest.raises(MerganserError, match="NaN, Inf"):
        assigned(np.array([[np.inf, 1], [1, 1]]))


@pytest.mark.parametrize("seed", range(5))
def test_heads_are_told_apart_by_their_elements(seed: int) -> None:
    """A copy under three times as much noise: visiting heads and elements in turns ends far below the true order."""
    random = np.random.default_rng(seed)
    heads, inside = Axis("heads"), [Axis("elements"), Axis("values")]
    sizes = {heads: 12, **dict.fromkeys(inside, 32)}
    orders = {axis: random.permutation(size) for axis, size in sizes.items()}
    pairs = []
    for axis in inside:
        a = random.standard_normal((12, 32, 64)).astype(np.float32)
        noisy = a + 3 * random.standard_normal(a.shape).astype(np.float32)
        pairs.append((axis, a, noisy[np.argsort(orders[heads])][:, np.argsort(orders[axis])]))

    def block(axis: Axis, a: np.ndarray, b: np.ndarray) -> Block:
        return Block(((heads, axis), (64,)), lambda: a, lambda _: b)

    def value(orders: Any) -> float:
        return sum(float((a * b[orders[heads]][:, orders[axis]]).sum()) for axis, a, b in pairs)

    found = match([block(*pair) for pair in pairs], sizes, list(sizes), seed=seed, rounds=100)
    assert value(found.orders) >= value(orders) * (1 - 1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_the_first_pass_goes_inwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """A small vocabulary and many experts: from the identity some of these seeds end far away."""
    monkeypatch.setitem(CONFIG, "vocab_size", 10)
    monkeypatch.setitem(CONFIG, "experts", 6)
    (tmp_path / "toy.yaml").write_text(FAMILY)
    a = opened(tmp_path / "a", toy(seed), CONFIG)
    b = opened(tmp_path / "b", permuted_toy(toy(seed), np.random.default_rng(seed)), CONFIG)
    assert align(b, to=a, seed=seed, family=tmp_path / "toy.yaml").notes[-1]["l2_after"] == 0


@pytest.mark.parametrize("seed", range(6))
def test_experts_are_told_apart_without_a_router(seed: int) -> None:
    random = np.random.default_rng(seed)
    expert = Axis("expert")
    inside = [Axis("neurons", (k,)) for k in range(4)]
    a = [normal(5, 3, seed=10 * seed + k) for k in range(4)]
    order, inner = random.permutation(4), [random.permutation(5) for _ in range(4)]
    b: list[np.ndarray] = [np.zeros(0)] * 4
    for k in range(4):
        b[order[k]] = a[k][np.argsort(inner[k])]

    def block(k: int) -> Block:
        return Block(((inside[k],), (3,)), lambda: a[k], lambda place: b[place[expert]], {expert: k}, "up")

    sizes = {expert: 4, **dict.fromkeys(inside, 5)}
    found = match([block(k) for k in range(4)], sizes, list(sizes), seed=seed, rounds=100)
    assert np.array_equal(found.orders[expert], order)
    assert all(np.array_equal(found.orders[inside[k]], inner[k]) for k in range(4))


def test_rounds_end_it(tmp_path: Path) -> None:
    first, second = (normal(40, 40, seed=seed) for seed in (0, 1))
    axes = [Axis("x"), Axis("y")]
    block = Block(((axes[0],), (axes[1],)), lambda: first, lambda _: second)
    sizes = dict.fromkeys(axes, 40)
    cut = match([block], sizes, axes, seed=0, rounds=1, start="identity")
    assert (cut.rounds, cut.settled) == (1, False)
    whole = match([block], sizes, axes, seed=0, rounds=100, start="identity")
    assert whole.settled and whole.rounds > 1
    reached = [float((first * second[m.orders[axes[0]]][:, m.orders[axes[1]]]).sum()) for m in (cut, whole)]
    assert reached[1] >= reached[0] > float((first * second).sum())


def test_it_is_a_step_with_a_report(tmp_path: Path) -> None:
    opened(tmp_path / "a", mlp(0, 3, 4, 2))
    b = opened(tmp_path / "b", mlp(9, 3, 4, 2))
    step = get_step("align")
    settings = step.settings(
        {"to": str(tmp_path / "a"), "inferred": True, "seed": 2},
        "steps",
        tmp_path,
        lambda path: mg.open(path),
    )
    step.function(b, **settings).save(tmp_path / "out")
    manifest = (tmp_path / "out" / "merganser.json").read_text()
    assert '"l2_before"' in manifest and '"share_moved"' in manifest
    assert read_model(tmp_path / "out").keys() == mlp(0, 3, 4, 2).keys()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "toy"


def test_without_a_config_none_is_written(tmp_path: Path) -> None:
    models = []
    for k, name in enumerate("ab"):
        directory = write_model(tmp_path / name, mlp(k, 3, 4, 2))
        (directory / "config.json").unlink()
        models.append(mg.open(directory))
    align(models[1], to=models[0], inferred=True).save(tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists()


# What is refused ------------------------------------------------------------------------------------------------------


def test_axes_that_are_not_free(tmp_path: Path, family: Path) -> None:
    a, b = opened(tmp_path / "a", toy(0), CONFIG), opened(tmp_path / "b", toy(1), CONFIG)
    for axis, message in (
        ("neuron", "did you mean 'neurons'"),
        ("rotary", "the order of rotary is not free: pairs"),
        ("vocab", "names outside the model"),
        ("layer", "it numbers parts that follow one another"),
    ):
        with pytest.raises(RequestError, match=message):
            align(b, to=a, family=family, axes=[axis])


def test_models_that_do_not_fit(tmp_path: Path, family: Path) -> None:
    a, b = opened(tmp_path / "a", mlp(0, 3, 4, 2)), opened(tmp_path / "b", mlp(0, 3, 5, 2))
    with pytest.raises(AlgebraError, match=r"tensor '0.weight' is \[5, 3\] in 'b' and \[4, 3\] in 'a'"):
        align(b, to=a, inferred=True)
    config = CONFIG | {"vocab_size": 41}
    larger = toy(1) | {"embed.weight": normal(41, 8)}
    c, d = opened(tmp_path / "c", toy(0), CONFIG), opened(tmp_path / "d", larger, config)
    with pytest.raises(AlgebraError, match="vocab is 41 in 'd' and 40 in 'c'"):
        align(d, to=c, family=family)


def test_settings_that_cannot_be(tmp_path: Path, family: Path) -> None:
    a, b = opened(tmp_path / "a", toy(0), CONFIG), opened(tmp_path / "b", toy(1), CONFIG)
    with pytest.raises(RequestError, match=r"no family file for model_type.*inferred: true"):
        align(b, to=a)
    with pytest.raises(RequestError, match="give one"):
        align(b, to=a, family=family, inferred=True)
    with pytest.raises(RequestError, match="rounds must be 1 or more"):
        align(b, to=a, family=family, rounds=0)
    with pytest.raises(RequestError, match=r"memory 0.00 GiB is too little.*needs 0.09 GiB"):
        align(b, to=a, family=family, memory=0.001)
    with pytest.raises(RequestError, match="align must be the first step"):
        align(align(b, to=a, family=family), to=a, family=family)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(RequestError, match="not text"):
        align(b, to=a, family=binary)


def test_scipy_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("scipy"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MerganserError, match=r"pip install 'merganser\[align\]'"):
        assigned(np.eye(2))
