"""Activation matching and PLeaS on plain nets without torch: against definitions, brute force and permuted copies."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from makers import normal, read_model, write_model

import merganser as mg
from merganser.algebra.rearranged import Array
from merganser.algebra.weights import Entry
from merganser.errors import AlgebraError, RequestError
from merganser.methods.align.activation_matching import align_activations
from merganser.methods.align.pleas import pleas

Arrays = dict[str, np.ndarray]
LAYERS = (0, 2, 4)


def mlp(seed: int, *widths: int) -> Arrays:
    found: Arrays = {}
    for k, (a, b) in enumerate(itertools.pairwise(widths)):
        found[f"{2 * k}.weight"] = normal(b, a, seed=seed + 10 * k) / np.float32(a**0.5)
        found[f"{2 * k}.bias"] = normal(b, seed=seed + 10 * k + 1, scale=0.2)
    return found


def inputs(arrays: Arrays, x: np.ndarray) -> dict[str, np.ndarray]:
    """What each layer takes in, and under `out` what the last one gives; ReLU between."""
    layers = sorted({int(name.split(".")[0]) for name in arrays})
    found = {}
    for k in layers:
        found[f"{k}.weight"] = x
        x = x @ arrays[f"{k}.weight"].T.astype(float) + arrays[f"{k}.bias"]
        x = np.maximum(x, 0) if k != layers[-1] else x
    return found | {"out": x}


def moments(a: Arrays, b: Arrays, x: np.ndarray) -> mg.Weights:
    """By hand: the mean of v v^T, v = [x_A, x_B, 1]."""
    one, two = inputs(a, x), inputs(b, x)
    entries = {}
    for name in (n for n in one if n != "out"):
        v = np.concatenate([one[name], two[name], np.ones((len(x), 1))], 1)
        entries[name] = Entry(Array(v.T @ v / len(x)), 1.0)
    note = {"statistics": {"kind": "paired", "shared": {}, "models": []}}
    return mg.Weights(entries, label="stats", origin=None, notes=(note,))


def correlations(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> np.ndarray:
    """Of the hidden units before the second layer; 0 where one never changes."""
    one, two = first["2.weight"], second["2.weight"]
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(np.corrcoef(one.T, two.T)[: one.shape[1], one.shape[1] :])


def opened(path: Path, arrays: Arrays) -> mg.Weights:
    return mg.open(write_model(path, arrays))


def computed(weights: mg.Weights) -> Arrays:
    return {name: weights.compute(name) for name in weights}


def shuffled(arrays: Arrays, seed: int) -> Arrays:
    """Hidden units in another order, by hand."""
    random = np.random.default_rng(seed)
    out = dict(arrays)
    for k in LAYERS[:-1]:
        order = random.permutation(len(out[f"{k}.bias"]))
        out[f"{k}.weight"], out[f"{k}.bias"] = out[f"{k}.weight"][order], out[f"{k}.bias"][order]
        out[f"{k + 2}.weight"] = np.ascontiguousarray(out[f"{k + 2}.weight"][:, order])
    return out


@pytest.mark.parametrize("by", ["correlation", "products"])
@pytest.mark.parametrize("seed", range(4))
def test_the_best_of_all_permutations(tmp_path: Path, seed: int, by: str) -> None:
    a, b, x = mlp(seed, 3, 5, 2), mlp(seed + 100, 3, 5, 2), normal(40, 3, seed=seed + 7)
    one, two = inputs(a, x)["2.weight"], inputs(b, x)["2.weight"]
    if by == "correlation":
        score = correlations(inputs(a, x), inputs(b, x))
    else:
        score = -((one[:, :, None] - two[:, None, :]) ** 2).mean(0)  # the smallest distances
    best = max(itertools.permutations(range(5)), key=lambda p: sum(score[k, p[k]] for k in range(5)))
    found = align_activations(
        opened(tmp_path / "b", b),
        to=opened(tmp_path / "a", a),
        statistics=moments(a, b, x),
        by=by,  # type: ignore[arg-type]
        inferred=True,
    )
    taken = score[
        range(5), [list(map(tuple, b["0.weight"])).index(tuple(r)) for r in found.compute("0.weight")]
    ]
    assert taken.sum() == pytest.approx(sum(score[k, best[k]] for k in range(5)), rel=1e-9)
    assert found.notes[-1]["without_statistics"] == []


def test_a_permuted_net_is_found_again(tmp_path: Path) -> None:
    a, x = mlp(3, 6, 12, 9, 4), normal(60, 6, seed=1)
    b = shuffled(a, 5)
    found = align_activations(
        opened(tmp_path / "b", b), to=opened(tmp_path / "a", a), statistics=moments(a, b, x), inferred=True
    )
    assert all(np.array_equal(found.compute(name), array) for name, array in a.items())
    assert {one["moved"] > 0 for one in found.notes[-1]["axes"].values()} == {True}


def test_independent_nets_keep_their_function(tmp_path: Path) -> None:
    a, b, x = mlp(3, 6, 12, 9, 4), mlp(300, 6, 12, 9, 4), normal(60, 6, seed=1)
    found = align_activations(
        opened(tmp_path / "b", b), to=opened(tmp_path / "a", a), statistics=moments(a, b, x), inferred=True
    )
    assert np.allclose(inputs(computed(found), x)["out"], inputs(b, x)["out"], atol=1e-5)
    before, after = (correlations(inputs(a, x), inputs(net, x)).trace() for net in (b, computed(found)))
    assert after > before + 1


# PLeaS ----------------------------------------------------------------------------------------------------------------


def merged(path: Path, a: Arrays, b: Arrays, x: np.ndarray, **options: object) -> mg.Weights:
    path.mkdir()
    return pleas(
        opened(path / "a", a),
        other=opened(path / "b", b),
        statistics=moments(a, b, x),
        inferred=True,
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("by", ["correlation", "distance"])
def test_a_permuted_copy_gives_the_model_back(tmp_path: Path, by: str) -> None:
    a, x = mlp(3, 6, 12, 9, 4), normal(30, 6, seed=1)
    found = computed(merged(tmp_path / "m", a, shuffled(a, 5), x, by=by))
    assert all(np.allclose(found[name], array, rtol=1e-6, atol=1e-6) for name, array in a.items())
    # with every second unit kept twice it is the same function of another width
    wide = computed(merged(tmp_path / "w", a, shuffled(a, 6), x, by=by, size=1.5))
    assert wide["0.weight"].shape == (18, 6) and wide["2.weight"].shape == (14, 18)
    fresh = normal(50, 6, seed=77)
    assert np.allclose(inputs(wide, fresh)["out"], inputs(a, fresh)["out"], atol=2e-5)


@pytest.mark.parametrize("fit", [True, False])
def test_nothing_merged_is_the_mean_of_both_outputs(tmp_path: Path, fit: bool) -> None:
    a, b, x = mlp(3, 6, 12, 9, 4), mlp(300, 6, 12, 9, 4), normal(30, 6, seed=1)
    found = computed(merged(tmp_path / "m", a, b, x, size=2, fit=fit))
    fresh = normal(50, 6, seed=77)
    both = (inputs(a, fresh)["out"] + inputs(b, fresh)["out"]) / 2
    assert np.allclose(inputs(found, fresh)["out"], both, atol=2e-5)


def test_the_units_that_match_best_are_merged_and_the_blocks_are_those_of_the_definition(
    tmp_path: Path,
) -> None:
    a, b, x = mlp(3, 4, 5, 3), mlp(300, 4, 5, 3), normal(60, 4, seed=1)
    found = computed(merged(tmp_path / "m", a, b, x, size=1.4, fit=False, by="distance"))
    one, two = inputs(a, x)["2.weight"], inputs(b, x)["2.weight"]
    cost = ((one[:, :, None] - two[:, None, :]) ** 2).mean(0)
    best = min(itertools.permutations(range(5)), key=lambda p: sum(cost[k, p[k]] for k in range(5)))
    ranked = sorted(range(5), key=lambda k: cost[k, best[k]])
    pairs = sorted(ranked[:3])  # 5 + 5 - 7
    mine, theirs = sorted(ranked[3:]), sorted(best[k] for k in ranked[3:])
    rows = [(a["0.weight"][k] + b["0.weight"][best[k]]) / 2 for k in pairs]
    rows += [a["0.weight"][k] for k in mine] + [b["0.weight"][k] for k in theirs]
    assert np.allclose(found["0.weight"], rows, atol=1e-6)
    columns = [(a["2.weight"][:, k] + b["2.weight"][:, best[k]]) / 2 for k in pairs]
    columns += [a["2.weight"][:, k] / 2 for k in mine] + [b["2.weight"][:, k] / 2 for k in theirs]
    assert np.allclose(found["2.weight"], np.stack(columns, 1), atol=1e-6)


def test_the_fit_is_the_least_squares_of_the_definition(tmp_path: Path) -> None:
    """Two hidden layers: rows of A's units never read B's alone; by numpy.linalg.lstsq on the samples themselves."""
    a, b, x = mlp(3, 4, 6, 5, 3), mlp(300, 4, 6, 5, 3), normal(80, 4, seed=1)
    ridge = 1e-2
    start = computed(merged(tmp_path / "s", a, b, x, size=1.5, fit=False))
    out = merged(tmp_path / "m", a, b, x, size=1.5, ridge=ridge)
    found = computed(out)

    def units(layer: int) -> tuple[list[int], list[int]]:
        """Which of A's and of B's rows each unit of the merge is, from the merge without a fit."""
        mine, theirs = [], []
        for row in start[f"{layer}.weight"] if layer == 0 else start[f"{layer}.bias"][:, None]:
            ours, others = (n["0.weight"] if layer == 0 else n[f"{layer}.bias"][:, None] for n in (a, b))
            hits = [
                (i, j)
                for i in range(len(ours))
                for j in range(len(others))
                if np.allclose((ours[i] + others[j]) / 2, row, atol=1e-6)
            ]
            if hits:
                mine.append(hits[0][0]), theirs.append(hits[0][1])
                continue
            mine.append(next((i for i in range(len(ours)) if np.allclose(ours[i], row, atol=1e-6)), -1))
            theirs.append(next((j for j in range(len(others)) if np.allclose(others[j], row, atol=1e-6)), -1))
        return mine, theirs

    def joined(one: np.ndarray, two: np.ndarray, kinds: tuple[list[int], list[int]]) -> np.ndarray:
        return np.stack(
            [
                (one[:, i] + two[:, j]) / 2 if i >= 0 and j >= 0 else one[:, i] if i >= 0 else two[:, j]
                for i, j in zip(*kinds, strict=True)
            ],
            1,
        )

    ia, ib = inputs(a, x), inputs(b, x)
    into, outof = units(0), units(2)
    z = np.concatenate([joined(ia["2.weight"], ib["2.weight"], into), np.ones((len(x), 1))], 1)
    given = [n["2.weight"].astype(float) for n in (a, b)]
    target = joined(
        ia["2.weight"] @ given[0].T + a["2.bias"], ib["2.weight"] @ given[1].T + b["2.bias"], outof
    )
    for row, (i, j) in enumerate(zip(*outof, strict=True)):
        w0 = np.append(start["2.weight"][row], start["2.bias"][row]).astype(float)
        blocked = [
            k for k, (p, q) in enumerate(zip(*into, strict=True)) if (j < 0 and p < 0) or (i < 0 and q < 0)
        ]
        free = [k for k in range(z.shape[1]) if k not in blocked]
        scale = (z[:, free] ** 2).mean()
        root = np.sqrt(ridge * scale * len(x))
        big = np.concatenate([z[:, free], root * np.eye(len(free))])
        goal = np.concatenate([target[:, row], root * w0[free]])
        best = np.linalg.lstsq(big, goal, rcond=None)[0]
        got = np.append(found["2.weight"][row], found["2.bias"][row])
        assert np.allclose(got[free], best, atol=1e-4)
        assert np.all(got[blocked] == 0)
    fitted = out.notes[-1]["fitted"]["2.weight"]
    assert fitted["after"] < fitted["before"]


def test_a_saved_merge_is_sealed_and_says_what_was_done(tmp_path: Path) -> None:
    a, b, x = mlp(3, 4, 6, 3), mlp(300, 4, 6, 3), normal(60, 4, seed=1)
    merged(tmp_path / "m", a, b, x, size=1.5).save(tmp_path / "out")
    stored = read_model(tmp_path / "out")
    assert stored["0.weight"].shape == (9, 4) and stored["2.weight"].shape == (3, 9)
    mg.verify(tmp_path / "out")


def test_what_cannot_be(tmp_path: Path) -> None:
    a, b, x = mlp(3, 4, 6, 3), mlp(300, 4, 6, 3), normal(60, 4, seed=1)
    with pytest.raises(RequestError, match=r"from 1 to 2, not 2\.5"):
        merged(tmp_path / "1", a, b, x, size=2.5)
    with pytest.raises(RequestError, match="ridge must be above 0"):
        merged(tmp_path / "2", a, b, x, ridge=0.0)
    with pytest.raises(RequestError, match="after_1 is no axis of neurons; did you mean 'after_0'"):
        merged(tmp_path / "3", a, b, x, size={"after_1": 1.5})
    one, two = opened(tmp_path / "a", a), opened(tmp_path / "b", b)
    with pytest.raises(RequestError, match="observe-pair"):
        pleas(one, other=two, statistics=one, inferred=True)
    other = moments(mlp(3, 4, 7, 3), b, x)
    with pytest.raises(RequestError, match=r"shape \[14, 14\]; layers that take in 6 and 6 need \[13, 13\]"):
        pleas(one, other=two, statistics=other, inferred=True)
    with pytest.raises((RequestError, AlgebraError)):
        pleas(one, other=opened(tmp_path / "c", mlp(3, 5, 6, 3)), statistics=moments(a, b, x), inferred=True)
