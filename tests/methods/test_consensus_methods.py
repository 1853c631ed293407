"""The element-wise methods on task vectors, each against a few lines of NumPy in f64."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from checkpoints import keep_largest, opened, to_l1
from makers import BF16

import merganser
from merganser.errors import AlgebraError, NonFiniteError, RequestError
from merganser.methods import get

CLOSE = {"rtol": 3e-6, "atol": 3e-7}
FLOATS = ("m", "long", "conv", "one", "zero")
METHODS = (
    "breadcrumbs_ties",
    "sce",
    "ram",
    "ramplus_tl",
    "della",
    "della_linear",
    "pcb",
    "magmax",
    "emr",
    "tall_masks",
    "consensus",
    "wise_ft",
)


def random_arrays(count, seed=0, dtype=np.float32):
    """A base and siblings of it: a matrix, a vector, a convolution, one element, zeros, integers."""
    rng = np.random.default_rng(seed)
    shapes = {"m": (12, 20), "long": (997,), "conv": (6, 5, 3, 3), "one": (1,)}
    base = {n: rng.standard_normal(s).astype(dtype) for n, s in shapes.items()}
    made = [base]
    for _ in range(count):
        # Some entries stay as they are, in all models or in one.
        made.append(
            {
                n: (
                    v.astype(np.float32) + 0.1 * rng.standard_normal(v.shape) * (rng.random(v.shape) < 0.7)
                ).astype(dtype)
                for n, v in base.items()
            }
        )
    for one in made:
        one["zero"] = np.zeros(5, dtype)
        one["ids"] = np.arange(6)
    return made


@pytest.fixture
def trio(tmp_path):
    arrays = random_arrays(3)
    w = opened(tmp_path, base=arrays[0], a=arrays[1], b=arrays[2], c=arrays[3])
    return w["base"], [w[n] for n in "abc"], arrays


def run(name, base, models, **parameters):
    return get(name)(base, models, **parameters)


def check(weights, expected):
    for name, array in expected.items():
        np.testing.assert_allclose(merganser.compute(weights, name), array, **CLOSE, err_msg=name)


def vectors(arrays, name):
    """Differences as they are taken, in f32."""
    return [
        (m[name].astype(np.float32) - arrays[0][name].astype(np.float32)).astype(float) for m in arrays[1:]
    ]


def agreed(vs, w, *, tie="zero", divisor="magnitudes"):
    """TIES's election and average, entry by entry."""
    stack, w = np.stack(vs), np.asarray(w, float).reshape(-1, *[1] * vs[0].ndim)
    elected = np.sign((w * stack).sum(0))
    if tie == "plus":
        elected = np.where(elected == 0, 1.0, elected)
    inside = np.sign(w * stack) * elected > 0
    by = {"magnitudes": abs(w) * inside, "weights": w * inside, "count": inside, "none": 0 * inside}[divisor]
    by = by.sum(0)
    return (w * stack * inside).sum(0) / np.where(by == 0, 1, by)


# breadcrumbs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rescale", ["none", "l1"])
@pytest.mark.parametrize("gamma", [0.0, 0.1])
@pytest.mark.parametrize("dialect", ["paper", "mergekit"])
def test_breadcrumbs_ties(trio, dialect, gamma, rescale):
    base, models, arrays = trio
    how = (
        {"tie": "plus", "divisor": "weights", "keep_one": False, "normalize": False}
        if dialect == "mergekit"
        else {}
    )
    w = [1.0, -0.5, 0.3]
    merged = run(
        "breadcrumbs_ties",
        base,
        models,
        weight=w,
        density=0.3,
        gamma=gamma,
        scale=0.5,
        rescale=rescale,
        **how,
    )
    for n in FLOATS:
        vs = vectors(arrays, n)
        kept = [keep_largest(v, 0.3, at_least=0 if how else 1, top=int(gamma * v.size)) for v in vs]
        if rescale == "l1":
            kept = [to_l1(k, v) for k, v in zip(kept, vs, strict=True)]
        divisor = "none" if how else "magnitudes"
        check(merged, {n: arrays[0][n] + 0.5 * agreed(kept, w, tie=how.get("tie", "zero"), divisor=divisor)})


@pytest.mark.parametrize("name", ["breadcrumbs", "breadcrumbs_ties"])
def test_breadcrumbs_by_rows_masks_each_row_of_the_last_dimension(trio, name):
    base, models, arrays = trio
    merged = run(name, base, models[:1], density=0.3, gamma=0.1, scope="row")
    for n in FLOATS:
        (v,) = vectors(arrays[:2], n)
        rows = v.reshape(-1, v.shape[-1])
        kept = [keep_largest(row, 0.3, top=int(0.1 * row.size)) for row in rows]
        check(merged, {n: arrays[0][n] + np.stack(kept).reshape(v.shape)})


# sce --------------------------------------------------------------------------------------------------------


def sce(vs, share, tie="zero", tiny=0.0, normalize=True):
    stack = np.stack(vs)
    if share < 1:
        # f32, so that the same entries are selected where variances are close
        variance = stack.var(0)
        variance[(stack == stack[0]).all(0)] = 0.0
        k = int(np.count_nonzero(variance) * share)
        least = np.sort(variance.ravel())[::-1][k - 1] if k else np.inf
        stack = stack * (variance >= least * (1 - 1e-9))
    energy = (stack**2).reshape(len(vs), -1).mean(1)
    total = energy.sum()
    w = np.full(len(vs), 1 / len(vs)) if total < tiny or total == 0 else energy / total
    w = w.reshape(-1, *[1] * vs[0].ndim)
    mass = stack.sum(0)
    elected = np.sign(mass) if tie == "zero" else np.where(mass >= 0, 1.0, -1.0)
    inside = np.sign(stack) * elected > 0
    share = np.maximum((w * inside).sum(0), tiny) if normalize else np.ones_like(mass)
    return (w * stack * inside).sum(0) / np.where(share == 0, 1, share)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.35, 1.0])
@pytest.mark.parametrize("options", [{}, {"tie": "plus", "tiny": 1e-6}, {"tiny": 1.0}, {"normalize": False}])
def test_sce(trio, share, options):
    base, models, arrays = trio
    merged = run("sce", base, models, select_topk=share, scale=0.7, **options)
    check(merged, {n: arrays[0][n] + 0.7 * sce(vectors(arrays, n), share, **options) for n in FLOATS})


def test_sce_counts_only_entries_that_differ(tmp_path):
    """Of 8 entries 4 differ between the models; half of those are selected, not half of 8."""
    a = np.array([1, 2, 3, 4, 5, 6, 7, 8], np.float32)
    b = np.array([1, 2, 3, 4, 6, 8, 10, 12], np.float32)
    w = opened(tmp_path, base={"x": np.zeros(8, np.float32)}, a={"x": a}, b={"x": b})
    merged = merganser.compute(run("sce", w["base"], [w["a"], w["b"]], select_topk=0.5), "x")
    np.testing.assert_array_equal(merged[:6], 0)
    energy = np.array([7.0**2 + 8**2, 10.0**2 + 12**2])
    share = energy / energy.sum()
    np.testing.assert_allclose(merged[6:], share @ np.array([[7, 8], [10, 12]]), rtol=1e-6)


def test_sce_of_identical_models_selects_nothing_below_one_and_all_at_one(trio):
    base, models, arrays = trio
    twin = [models[0], models[0].relabel("twin")]
    check(run("sce", base, twin, select_topk=0.9), {n: arrays[0][n] for n in FLOATS})
    check(run("sce", base, twin, select_topk=1.0), {n: arrays[1][n] for n in FLOATS})


def test_sce_ties_elect_nobody_or_plus(tmp_path):
    a, b = np.array([2, 1, 0], np.float32), np.array([-2, 3, 0], np.float32)
    w = opened(tmp_path, base={"x": np.zeros(3, np.float32)}, a={"x": a}, b={"x": b})
    pair = [w["a"], w["b"]]
    assert merganser.compute(run("sce", w["base"], pair, select_topk=1.0), "x")[0] == 0
    assert merganser.compute(run("sce", w["base"], pair, select_topk=1.0, tie="plus"), "x")[0] == 2


# ram --------------------------------------------------------------------------------------------------------


def ram(vs, epsilon, factors=None):
    stack = np.stack(vs)
    inside = np.abs(stack) > np.float32(epsilon)
    count = inside.sum(0)
    factors = np.ones(len(vs)) if factors is None else factors
    total = np.zeros_like(stack[0])
    for v, i, f in zip(stack, inside, factors, strict=True):
        total += np.where(i & (count == 1), f * v, 0) + np.where(i & (count > 1), v / np.maximum(count, 1), 0)
    return total


def factors(vs, epsilon, r, alpha):
    stack = np.concatenate([np.stack([v.ravel() for v in group]) for group in vs], axis=1)
    inside = np.abs(stack) > np.float32(epsilon)
    shared, alone = (inside & (inside.sum(0) > 1)).sum(1), (inside & (inside.sum(0) == 1)).sum(1)
    return [
        1 + r * min(s / a if a else (np.inf if s else 0), alpha) for s, a in zip(shared, alone, strict=True)
    ]


@pytest.mark.parametrize("epsilon", [0.0, 1e-5, 0.1])
def test_ram(trio, epsilon):
    base, models, arrays = trio
    merged = run("ram", base, models, epsilon=epsilon)
    check(merged, {n: arrays[0][n] + ram(vectors(arrays, n), epsilon) for n in FLOATS})


def test_ram_by_hand(tmp_path):
    a = np.array([4, 4, 0, 1, 0], np.float32)
    b = np.array([0, 2, 6, -1, 0], np.float32)
    w = opened(tmp_path, base={"x": np.zeros(5, np.float32)}, a={"x": a}, b={"x": b})
    pair = [w["a"], w["b"]]
    np.testing.assert_array_equal(merganser.compute(run("ram", w["base"], pair), "x"), [4, 3, 6, 0, 0])
    # Each model shares 2 entries and has 1 alone: 1 + 0.5 * min(2, 1.5)
    plus = merganser.compute(run("ramplus_tl", w["base"], pair, r=0.5, alpha=1.5), "x")
    np.testing.assert_array_equal(plus, [7, 3, 10.5, 0, 0])


@pytest.mark.parametrize("scope", ["tensor", "model"])
@pytest.mark.parametrize("alpha", [0.2, 100.0])
def test_ramplus(trio, scope, alpha):
    base, models, arrays = trio
    merged = run("ramplus_tl", base, models, r=0.3, alpha=alpha, epsilon=0.05, scope=scope)
    everything = [vectors(arrays, n) for n in FLOATS]
    for n, vs in zip(FLOATS, everything, strict=True):
        f = factors(everything if scope == "model" else [vs], 0.05, 0.3, alpha)
        check(merged, {n: arrays[0][n] + ram(vs, 0.05, f)})


# della ------------------------------------------------------------------------------------------------------


def ranks(v):
    """By counting: of equal magnitudes the first rank, at odd places the last."""
    rows = np.abs(v).reshape(v.shape[0] if v.ndim > 1 else 1, -1)
    below = (rows[:, :, None] > rows[:, None, :]).sum(2)
    equal = (rows[:, :, None] == rows[:, None, :]).sum(2)
    odd = np.arange(rows.shape[1]) % 2
    return (below + (equal - 1) * odd).reshape(v.shape), rows.shape[1]


def chances(v, density, epsilon):
    rank, width = ranks(v)
    return np.full(v.shape, density) if width == 1 else density - epsilon + 2 * epsilon * rank / (width - 1)


def kept_of(base, model, arrays, n, **options):
    """What magprune kept of one model, read off a merge of that model alone without rescaling."""
    alone = run("della_linear", base, [model], rescale="none", **options)
    return np.abs(merganser.compute(alone, n).astype(np.float64) - arrays[0][n]) > 0


@pytest.mark.parametrize("rescale", ["share", "l1", "none"])
def test_della_linear(trio, rescale):
    base, models, arrays = trio
    options = {"density": 0.6, "epsilon": 0.2, "seed": 3}
    w = [1.0, -0.5, 0.3]
    merged = run("della_linear", base, models, weight=w, scale=0.8, rescale=rescale, **options)
    for n in FLOATS:
        total = 0.0
        for model, x, v in zip(models, w, vectors(arrays, n), strict=True):
            kept = np.where(kept_of(base, model, arrays, n, **options), v, 0.0)
            rescaled = {"share": kept / chances(v, 0.6, 0.2), "l1": to_l1(kept, v), "none": kept}[rescale]
            total = total + x * rescaled
        check(merged, {n: arrays[0][n] + 0.8 * total})


@pytest.mark.parametrize("dialect", ["paper", "mergekit"])
def test_della(tmp_path, dialect):
    arrays = random_arrays(3)
    arrays[0] = {n: np.zeros_like(v) if n != "ids" else v for n, v in arrays[0].items()}
    w = opened(tmp_path, base=arrays[0], a=arrays[1], b=arrays[2], c=arrays[3])
    base, models = w["base"], [w[n] for n in "abc"]
    how = {"tie": "plus", "divisor": "weights", "rescale": "l1"} if dialect == "mergekit" else {}
    merged = run("della", base, models, weight=[1.0, 0.5, 0.3], **how)
    for n in FLOATS:
        vs = vectors(arrays, n)
        alone = [merganser.compute(run("della", base, [m], rescale="none"), n).astype(float) for m in models]
        kept = [
            to_l1(k, v) if dialect == "mergekit" else k / chances(v, 0.5, 0.15)
            for k, v in zip(alone, vs, strict=True)
        ]
        tie, divisor = how.get("tie", "zero"), how.get("divisor", "magnitudes")
        check(merged, {n: agreed(kept, [1.0, 0.5, 0.3], tie=tie, divisor=divisor)})


@pytest.mark.parametrize("dtype", [np.float32, np.float64, BF16])
def test_della_keeps_each_rank_with_its_probability(tmp_path, dtype):
    rows, width = 4000, 21
    rng = np.random.default_rng(0)
    v = rng.permuted(np.tile(np.arange(1, width + 1), (rows, 1)), axis=1) * rng.choice([-1, 1], (rows, width))
    w = opened(tmp_path, base={"x": np.zeros(v.shape, dtype)}, a={"x": v.astype(dtype)})
    both = [
        merganser.compute(run("della_linear", w["base"], [w["a"]], density=0.4, epsilon=0.3, rescale=r), "x")
        for r in ("none", "share")
    ]
    np.testing.assert_array_equal(both[0] != 0, both[1] != 0)
    chance = 0.1 + 0.6 * np.arange(width) / (width - 1)
    for rank in range(width):
        here = np.abs(v) == rank + 1
        share = (both[0][here] != 0).mean()
        assert abs(share - chance[rank]) < 5 * np.sqrt(chance[rank] * (1 - chance[rank]) / rows)
        kept = np.abs(both[1][here & (both[1] != 0)].astype(float))
        np.testing.assert_allclose(kept, (rank + 1) / chance[rank], rtol=1e-6)
    assert abs((both[0] != 0).mean() - 0.4) < 5 * np.sqrt(0.24 / v.size)
    spread = 5 * np.sqrt((v.astype(float) ** 2 * (1 / chance[np.abs(v) - 1] - 1)).sum())
    assert abs(both[1].astype(float).sum() - v.sum()) < spread


@pytest.mark.parametrize("rescale", ["none", "share"])
def test_della_of_equal_magnitudes_keeps_the_share(tmp_path, rescale):
    """All are equal: at even places the chance is that of the first rank, at odd ones that of the last."""
    shape = (3000, 10)
    w = opened(tmp_path, base={"x": np.zeros(shape, np.float32)}, a={"x": np.ones(shape, np.float32)})
    merged = run("della_linear", w["base"], [w["a"]], density=0.5, epsilon=0.4, rescale=rescale)
    kept = merganser.compute(merged, "x")
    np.testing.assert_allclose((kept != 0).mean(0), [0.1, 0.9] * 5, atol=5 * np.sqrt(0.25 / shape[0]))
    assert abs((kept != 0).mean() - 0.5) < 5 * np.sqrt(0.25 / kept.size)


def test_della_decides_by_the_rank_however_it_is_found(tmp_path):
    """Without rescaling no rank is computed; with it, and in f64, all are. Many magnitudes are equal."""
    rng = np.random.default_rng(0)
    v = np.round(rng.standard_normal((50, 400)) * 4).astype(np.float32)
    zero = np.zeros_like(v)
    narrow = opened(tmp_path / "f32", base={"x": zero}, a={"x": v})
    wide = opened(tmp_path / "f64", base={"x": zero.astype(np.float64)}, a={"x": v.astype(np.float64)})
    kept = [
        merganser.compute(run("della_linear", w["base"], [w["a"]], rescale=rescale), "x") != 0
        for w in (narrow, wide)
        for rescale in ("none", "share")
    ]
    assert 0.4 < kept[0][v != 0].mean() < 0.6
    for other in kept[1:]:
        assert (other != kept[0]).sum() <= 2  # a bound at a rank, but for its rounding


def test_della_of_a_row_longer_than_a_tile(tmp_path):
    n = 1_300_001
    v = np.random.default_rng(0).standard_normal(n).astype(np.float32)
    w = opened(tmp_path, base={"x": np.zeros(n, np.float32)}, a={"x": v})
    kept = merganser.compute(
        run("della_linear", w["base"], [w["a"]], density=0.3, epsilon=0.2, rescale="l1"), "x"
    )
    inside = kept != 0
    order = np.argsort(np.abs(v))
    for tenth, group in enumerate(np.array_split(order, 10)):
        chance = 0.1 + 0.4 * (tenth + 0.5) / 10
        assert abs(inside[group].mean() - chance) < 5 * np.sqrt(0.25 / len(group))
    np.testing.assert_allclose(np.abs(kept).sum(dtype=float), np.abs(v).sum(dtype=float), rtol=1e-6)


def test_della_without_epsilon_drops_evenly(tmp_path):
    n = 100_000
    w = opened(tmp_path, base={"x": np.zeros(n, np.float32)}, a={"x": np.ones(n, np.float32)})
    kept = merganser.compute(run("della_linear", w["base"], [w["a"]], density=0.25, epsilon=0.0), "x")
    assert set(np.unique(kept)) == {0.0, 4.0}
    assert abs((kept > 0).mean() - 0.25) < 5 * np.sqrt(0.1875 / n)


@pytest.mark.parametrize("name", ["della", "della_linear"])
def test_della_refuses_probabilities_outside_the_unit_interval(trio, name):
    base, models, _ = trio
    for density, epsilon in ((0.1, 0.1), (0.9, 0.1), (0.5, 0.5), (0.1, 0.15)):
        with pytest.raises(RequestError, match=r"must lie between 0 and 1.*take an epsilon below"):
            run(name, base, models, density=density, epsilon=epsilon)
    with pytest.raises(RequestError, match=r"epsilon of 'a' .* must not be negative"):
        run(name, base, models, epsilon=-0.1)
    with pytest.raises(RequestError, match=r"density of 'b' .* in \[0, 1\], not 1.5"):
        run(name, base, models, density=[0.5, 1.5, 0.5])
    with pytest.raises(RequestError, match="two models are called 'a'"):
        run(name, base, [models[0], models[0]])
    for density in (0.0, 1.0):  # nothing is drawn, so epsilon says nothing
        run(name, base, models, density=density)


def test_della_draws_depend_on_seed_method_label_and_name_only(tmp_path):
    zeros, ones = np.zeros((40, 100), np.float32), np.ones((40, 100), np.float32)
    w = opened(tmp_path, base={"x": zeros, "y": zeros}, a={"x": ones, "y": ones}, b={"x": ones, "y": ones})

    def mask(method="della_linear", model="a", tensor="x", seed=0):
        return merganser.compute(run(method, w["base"], [w[model]], seed=seed), tensor) > 0

    first = mask()
    np.testing.assert_array_equal(first, mask())
    both = run("della_linear", w["base"], [w["b"], w["a"]], weight=[0, 1])
    np.testing.assert_array_equal(first, merganser.compute(both, "x") > 0)
    for other in (mask(seed=1), mask(model="b"), mask(tensor="y"), mask(method="della")):
        assert 0.45 < (first == other).mean() < 0.6


# pcb --------------------------------------------------------------------------------------------------------


def pcb(groups, ratio):
    """The paper's formula over flat vectors in f64; `groups` are the tensors' vectors, by model."""
    flat = np.stack([np.concatenate([v.ravel() for v in model]) for model in zip(*groups, strict=True)])
    n, size = flat.shape

    def softmax(x):
        e = np.exp(x - x.max())
        return e / e.sum()

    def norm(x):
        return (x - x.min()) / (np.ptp(x) or 1.0)

    top, bottom = np.zeros(size), np.zeros(size)
    for i in range(n):
        score = softmax(n * norm(flat[i] ** 2)) * sum(softmax(norm(flat[i] * flat[j])) for j in range(n))
        least = np.sort(score)[::-1][max(1, int(ratio * size)) - 1]
        score = np.where(score >= least * (1 - 1e-12), score, 0)
        top += score * flat[i]
        bottom += score
    result = top / np.where(bottom == 0, 1, bottom)
    edges = np.cumsum([v[0].size for v in groups])[:-1]
    return [r.reshape(v[0].shape) for r, v in zip(np.split(result, edges), groups, strict=True)]


@pytest.mark.parametrize("scope", ["model", "tensor"])
@pytest.mark.parametrize("ratio", [0.1, 0.4, 1.0])
def test_pcb(trio, scope, ratio):
    base, models, arrays = trio
    merged = run("pcb", base, models, ratio=ratio, scope=scope, scale=0.7)
    groups = [vectors(arrays, n) for n in FLOATS]
    if scope == "model":
        found = pcb(groups, ratio)
    else:
        found = [pcb([vs], ratio)[0] for vs in groups]
    for n, change in zip(FLOATS, found, strict=True):
        np.testing.assert_allclose(
            merganser.compute(merged, n), arrays[0][n] + 0.7 * change, rtol=1e-5, atol=1e-6, err_msg=n
        )


def test_pcb_of_equal_signs_throughout(tmp_path):
    """No product is of the other sign, so the least is not below zero."""
    rng = np.random.default_rng(0)
    vs = [rng.uniform(1, 2, (6, 7)).astype(np.float32) for _ in range(2)]
    w = opened(tmp_path, base={"x": np.zeros((6, 7), np.float32)}, a={"x": vs[0]}, b={"x": -vs[1]})
    merged = run("pcb", w["base"], [w["a"], w["b"]], ratio=0.5)
    (expected,) = pcb([[vs[0].astype(float), -vs[1].astype(float)]], 0.5)
    np.testing.assert_allclose(merganser.compute(merged, "x"), expected, rtol=1e-5)


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.5])
def test_pcb_refuses_a_ratio(trio, ratio):
    base, models, _ = trio
    with pytest.raises(RequestError, match=r"ratio must be in \(0, 1\]"):
        run("pcb", base, models, ratio=ratio)


# magmax, emr, tall masks, wise-ft ---------------------------------------------------------------------------


def test_magmax(trio):
    base, models, arrays = trio
    merged = run("magmax", base, models, scale=0.5)
    for n in FLOATS:
        stack = np.stack(vectors(arrays, n))
        chosen = np.take_along_axis(stack, np.abs(stack).argmax(0)[None], 0)[0]
        check(merged, {n: arrays[0][n] + 0.5 * chosen})


def test_magmax_of_equal_magnitudes_takes_the_last(tmp_path):
    a, b = np.array([2, -3], np.float32), np.array([-2, 1], np.float32)
    w = opened(tmp_path, base={"x": np.zeros(2, np.float32)}, a={"x": a}, b={"x": b})
    for order, first in (("ab", -2), ("ba", 2)):
        merged = run("magmax", w["base"], [w[n] for n in order])
        np.testing.assert_array_equal(merganser.compute(merged, "x"), [first, -3])


def elected(vs):
    stack = np.stack(vs)
    sign = np.sign(stack.astype(np.float32).sum(0, dtype=np.float32)).astype(float)
    return sign * np.where(stack * sign > 0, np.abs(stack), 0).max(0)


def test_emr_unifies(trio):
    base, models, arrays = trio
    check(run("emr", base, models), {n: arrays[0][n] + elected(vectors(arrays, n)) for n in FLOATS})


@pytest.mark.parametrize("scope", ["model", "tensor"])
@pytest.mark.parametrize("task", [1, 3])
def test_emr_brings_a_model_back(trio, task, scope):
    base, models, arrays = trio
    merged = run("emr", base, models, task=task, scope=scope)
    before, after, masked = {}, {}, {}
    for n in FLOATS:
        vs = vectors(arrays, n)
        masked[n] = np.where(vs[task - 1] * elected(vs) > 0, elected(vs), 0)
        before[n], after[n] = np.abs(vs[task - 1]).sum(), np.abs(masked[n]).sum()
    for n in FLOATS:
        names = FLOATS if scope == "model" else [n]
        up, down = sum(before[k] for k in names), sum(after[k] for k in names)
        check(merged, {n: arrays[0][n] + (up / down if down else 1.0) * masked[n]})


def test_emr_of_one_model_is_the_model(trio):
    base, models, arrays = trio
    for task in (0, 1):
        check(run("emr", base, models[:1], task=task), {n: arrays[1][n] for n in FLOATS})


@pytest.mark.parametrize("task", [0, 1, 2])
def test_tall_masks(trio, task):
    base, models, arrays = trio
    limits = [0.3, 0.6, 0.4]
    merged = run("tall_masks", base, models, task=task, threshold=limits, scale=0.9)
    for n in FLOATS:
        vs = vectors(arrays, n)
        total = sum(vs)
        own, limit = vs[task - 1], limits[task - 1]
        mask = np.abs(own) >= limit * np.abs(total - own) if task else True
        check(merged, {n: arrays[0][n] + 0.9 * total * mask})


def test_tall_mask_brings_back_what_one_task_uses_alone(tmp_path):
    a, b = np.array([3, 0, 1], np.float32), np.array([0, -2, -1], np.float32)
    w = opened(tmp_path, base={"x": np.ones(3, np.float32)}, a={"x": 1 + a}, b={"x": 1 + b})
    pair = [w["a"], w["b"]]
    np.testing.assert_array_equal(
        merganser.compute(run("tall_masks", w["base"], pair, task=1), "x"), [4, 1, 1]
    )
    np.testing.assert_array_equal(
        merganser.compute(run("tall_masks", w["base"], pair, task=2), "x"), [1, -1, 1]
    )


@pytest.mark.parametrize("k", [1, 2, 3])
def test_consensus(trio, k):
    base, models, arrays = trio
    merged = run("consensus", base, models, k=k, threshold=0.5, scale=0.4)
    for n in FLOATS:
        vs = vectors(arrays, n)
        total = sum(vs)
        uses = sum(np.abs(v) >= 0.5 * np.abs(total - v) for v in vs)
        check(merged, {n: arrays[0][n] + 0.4 * np.where(uses >= k, total, 0)})


def test_tasks_and_counts_that_are_not_there(trio):
    base, models, _ = trio
    for name in ("emr", "tall_masks"):
        for task in (-1, 4):
            with pytest.raises(
                RequestError, match=r"task must be 0 for the merged model, or 1 for 'a', 2 for 'b'"
            ):
                run(name, base, models, task=task)
    for k in (0, 4):
        with pytest.raises(RequestError, match="k must be from 1 to the number of models, 3"):
            run("consensus", base, models, k=k)
    for name in ("tall_masks", "consensus"):
        with pytest.raises(RequestError, match=r"threshold of 'b' .* must not be negative"):
            run(name, base, models, threshold=[0.1, -1.0, 0.1])
    for name in ("ram", "ramplus_tl"):
        with pytest.raises(RequestError, match=r"epsilon .* must not be negative"):
            run(name, base, models, epsilon=-1.0)
    with pytest.raises(RequestError, match=r"select_topk .* in \[0, 1\], not 2"):
        run("sce", base, models, select_topk=2)
    with pytest.raises(RequestError, match="takes exactly 1 model"):
        run("wise_ft", base, models)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0, 1.5])
def test_wise_ft(trio, alpha):
    base, models, arrays = trio
    merged = run("wise_ft", base, models[:1], alpha=alpha)
    for n in FLOATS:
        (v,) = vectors(arrays[:2], n)
        check(merged, {n: arrays[0][n] + alpha * v})
        if alpha in (0.0, 1.0):
            np.testing.assert_array_equal(merganser.compute(merged, n), arrays[int(alpha)][n])
    np.testing.assert_array_equal(merganser.compute(merged, "ids"), np.arange(6))


def test_wise_ft_takes_alpha_by_tensor_and_adapters(trio):
    base, models, arrays = trio
    merged = run("wise_ft", base, models[:1], alpha={"m": 1.0, "*": 0.0})
    check(merged, {"m": arrays[1]["m"], "long": arrays[0]["long"]})
    patch = (models[0] - base).select("m").relabel("patch")
    merged = run("wise_ft", base, [patch], alpha=1.0)
    check(merged, {"m": arrays[1]["m"], "long": arrays[0]["long"]})


# For all of them --------------------------------------------------------------------------------------------

WHOLE = {
    "breadcrumbs_ties": {"density": 1.0},
    "sce": {"select_topk": 1.0},
    "ram": {"epsilon": 0.0},
    "ramplus_tl": {"epsilon": 0.0},
    "della": {"density": 1.0},
    "della_linear": {"density": 1.0},
    "pcb": {"ratio": 1.0},
    "tall_masks": {"task": 1},
    "consensus": {"k": 1},
    "wise_ft": {"alpha": 1.0},
}
"""What makes a method give back the only model it is given."""


@pytest.mark.parametrize("name", METHODS)
def test_one_model_comes_back(trio, name):
    base, models, arrays = trio
    merged = run(name, base, models[:1], **WHOLE.get(name, {}))
    assert merged.degree == 1.0
    check(merged, {n: arrays[1][n] for n in FLOATS})
    np.testing.assert_array_equal(merganser.compute(merged, "ids"), np.arange(6))


@pytest.mark.parametrize("name", METHODS)
def test_models_equal_to_the_base_give_the_base(trio, name):
    base, _, arrays = trio
    twins = [base.relabel("x"), base.relabel("y")][: 1 if name == "wise_ft" else 2]
    merged = run(name, base, twins)
    for n in FLOATS:
        np.testing.assert_array_equal(merganser.compute(merged, n), arrays[0][n])


@pytest.mark.parametrize(
    "name", ["breadcrumbs_ties", "sce", "ram", "ramplus_tl", "pcb", "magmax", "emr", "consensus", "della"]
)
def test_the_order_of_models_does_not_matter(trio, name):
    base, models, _ = trio
    one, other = run(name, base, models), run(name, base, models[::-1])
    for n in FLOATS:
        np.testing.assert_allclose(
            merganser.compute(one, n), merganser.compute(other, n), rtol=1e-6, atol=1e-6, err_msg=n
        )


@pytest.mark.parametrize("name", METHODS)
def test_inputs_that_do_not_fit(trio, name, tmp_path):
    base, models, arrays = trio
    with pytest.raises(RequestError, match="needs a base"):
        run(name, None, models[:1])
    odd = opened(tmp_path / "odd", odd=arrays[1] | {"m": np.zeros((3, 4), np.float32)})["odd"]
    with pytest.raises(AlgebraError, match=r"'m' has shape \[3, 4\] in 'odd' and \[12, 20\] in 'base'"):
        run(name, base, [odd], **WHOLE.get(name, {}))
    few = opened(tmp_path / "few", few={k: v for k, v in arrays[1].items() if k != "m"})["few"]
    with pytest.raises(AlgebraError, match="lacks 1 of the 6"):
        run(name, base, [few], **WHOLE.get(name, {}))


@pytest.mark.parametrize("name", METHODS)
def test_nan_in_a_model_stops_the_merge(tmp_path, name):
    arrays = random_arrays(3)
    arrays[2]["m"][3, 4] = np.nan
    w = opened(tmp_path, base=arrays[0], a=arrays[1], b=arrays[2], c=arrays[3])
    models = [w["b"]] if name == "wise_ft" else [w[n] for n in "abc"]
    with pytest.raises(NonFiniteError, match=r"tensor 'm' of parent 'b' holds NaN at \[3, 4\]"):
        run(name, w["base"], models).save(tmp_path / "out")


@pytest.mark.parametrize("name", METHODS)
def test_bf16_is_rounded_once(tmp_path, name):
    arrays = random_arrays(3, dtype=BF16)
    wide = [{n: v.astype(np.float32) if n != "ids" else v for n, v in m.items()} for m in arrays]
    count = 1 if name == "wise_ft" else 3
    for kind, parents in (("short", arrays), ("wide", wide)):
        w = opened(tmp_path / kind, **dict(zip(("base", "a", "b", "c"), parents, strict=True)))
        run(name, w["base"], [w[n] for n in "abc"[:count]]).save(tmp_path / f"{kind}-out", dtype="bfloat16")
    one, other = (merganser.open(tmp_path / f"{kind}-out") for kind in ("short", "wide"))
    for n in FLOATS:
        np.testing.assert_array_equal(merganser.compute(one, n), merganser.compute(other, n), err_msg=n)


OTHER_PATHS = [("della", {"rescale": "l1"}), ("breadcrumbs", {"scope": "row"}), ("emr", {"task": 1})]


@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in METHODS), *OTHER_PATHS])
def test_threads_and_tiles_do_not_change_a_byte(tmp_path, name, options):
    rng = np.random.default_rng(0)
    shapes = {"wide": (300, 1021), "row": (70_001,), "conv": (11, 130, 7, 3)}
    base = {n: rng.standard_normal(s).astype(BF16) for n, s in shapes.items()}
    parents = {"base": base} | {
        label: {
            n: (v.astype(np.float32) + 0.05 * rng.standard_normal(v.shape)).astype(BF16)
            for n, v in base.items()
        }
        for label in "ab"
    }
    w = opened(tmp_path, **parents)
    merged = run(name, w["base"], [w["a"]] if name == "wise_ft" else [w["a"], w["b"]], **options)
    digests = set()
    for k, how in enumerate(({"threads": 1}, {"threads": 2}, {"threads": 2, "tile": 2**16})):
        merged.save(tmp_path / f"out{k}", sync=False, **how)
        digests.add(hashlib.sha256((tmp_path / f"out{k}/model.safetensors").read_bytes()).hexdigest())
    assert len(digests) == 1


MERGEKIT = {
    "breadcrumbs_ties": (
        {"weight": 0.5, "density": 0.4, "gamma": 0.1, "lambda": 0.7},
        {
            "weight": 0.5,
            "density": 0.4,
            "gamma": 0.1,
            "scale": 0.7,
            "keep_one": False,
            "normalize": False,
            "tie": "plus",
            "divisor": "weights",
        },
    ),
    "sce": ({"int8_mask": True}, {"select_topk": 1.0, "tie": "plus", "tiny": 1e-6}),
    "ram": ({}, {"epsilon": 1e-5}),
    "ramplus_tl": ({"r": 0.5}, {"r": 0.5, "alpha": 0.2, "epsilon": 1e-5}),
    "della": (
        {"weight": 0.5, "density": 0.4},
        {
            "weight": 0.5,
            "density": 0.4,
            "epsilon": 0.15,
            "rescale": "l1",
            "tie": "plus",
            "divisor": "weights",
        },
    ),
    "della_linear": (
        {"weight": 0.5, "density": 0.4, "rescale": False},
        {"weight": 0.5, "density": 0.4, "rescale": "none"},
    ),
}


@pytest.mark.parametrize("name", MERGEKIT)
def test_a_recipe_of_mergekit_gives_its_arithmetic(tmp_path, name):
    import yaml

    from merganser.recipe import build, load

    arrays = random_arrays(2)
    w = opened(tmp_path, base=arrays[0], a=arrays[1], b=arrays[2])
    theirs, ours = MERGEKIT[name]
    recipe = {
        "merge_method": name,
        "base_model": str(tmp_path / "base"),
        "models": [{"model": str(tmp_path / n)} for n in "ab"],
        "parameters": theirs,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    merged, _ = build(load(tmp_path / "recipe.yaml"))
    direct = run(name, w["base"], [w["a"], w["b"]], **ours)
    for n in FLOATS:
        np.testing.assert_array_equal(merganser.compute(merged, n), merganser.compute(direct, n), err_msg=n)


@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in METHODS), *OTHER_PATHS])
def test_tensors_without_elements_or_dimensions(tmp_path, name, options):
    shapes = {"none": (0,), "no_rows": (0, 4), "no_columns": (3, 0), "number": (), "some": (3, 4)}
    rng = np.random.default_rng(0)
    parents = {
        label: {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()} for label in "xab"
    }
    w = opened(tmp_path, **{k: {n: np.asarray(v) for n, v in m.items()} for k, m in parents.items()})
    merged = run(name, w["x"], [w["a"]] if name == "wise_ft" else [w["a"], w["b"]], **options)
    merged.save(tmp_path / "out", sync=False)
    saved = merganser.open(tmp_path / "out")
    for n, shape in shapes.items():
        found = merganser.compute(saved, n)
        assert found.shape == shape
        np.testing.assert_array_equal(found, merganser.compute(merged, n))
