"""Methods whose result lies in the span of the models, or that work row by row, against NumPy on vectors in f64."""

from __future__ import annotations

from itertools import combinations, permutations

import numpy as np
import pytest
from makers import BF16, normal, read_model, write_adapter

import merganser as mg
from merganser.errors import AlgebraError, MerganserError, RequestError
from merganser.methods import get
from merganser.recipe import build, load

CLOSE = {"rtol": 3e-6, "atol": 3e-7}
SHAPES = {"vector": (37,), "matrix": (9, 14), "conv": (4, 3, 2, 5), "one": (1,), "point": (), "none": (0, 3)}
ARRAYS = dict[str, np.ndarray]
F32 = np.dtype(np.float32)


def models_of(count: int, *, spread: float = 0.5, dtype: np.dtype = F32, seed: int = 0) -> list[ARRAYS]:
    """A base and `count` siblings of it: zeros, integers and tensors of several shapes."""
    base = {n: normal(*s, seed=seed + k) for k, (n, s) in enumerate(SHAPES.items())}
    found = []
    for j in range(count + 1):
        arrays = {
            n: (x + (spread if j else 0.0) * normal(*x.shape, seed=seed + 100 * j + k)).astype(dtype)
            for k, (n, x) in enumerate(base.items())
        }
        found.append(arrays | {"zero": np.zeros(6, dtype), "ids": np.arange(4) + j})
    return found


FLOATS = (*SHAPES, "zero")


@pytest.fixture
def family(opened):
    def make(count: int, **options) -> tuple[mg.Weights, list[mg.Weights], list[ARRAYS]]:
        arrays = models_of(count, **options)
        return opened("base", arrays[0]), [opened(f"m{i}", a) for i, a in enumerate(arrays[1:])], arrays

    return make


def run(name, base, models, **parameters):
    return get(name)(base, models, **parameters)


def check(weights, expected, **close):
    for name, array in expected.items():
        found = mg.compute(weights, name)
        assert found.shape == np.shape(array)
        np.testing.assert_allclose(found, array, **(CLOSE | close), err_msg=name)


def f64(arrays, name):
    return [a[name].astype(np.float64) for a in arrays]


def differences(arrays, name):
    base, *models = f64(arrays, name)
    return base, [m - base for m in models]


# nuslerp --------------------------------------------------------------------------------------------------------------


def turned(x, y, t, *, zero="linear"):
    """Spherical interpolation of two vectors, written with an orthogonal frame: cos(t theta) u + sin(t theta) v."""
    n, m = np.linalg.norm(x), np.linalg.norm(y)
    if n == 0 or m == 0:
        quarter = np.pi / 2
        return (
            (1 - t) * x + t * y
            if zero == "linear"
            else np.sin((1 - t) * quarter) * x + np.sin(t * quarter) * y
        )
    u, w = x / n, y / m
    across = w - (u @ w) * u
    if np.linalg.norm(across) < 1e-6:
        return (1 - t) * x + t * y
    theta = np.arctan2(np.linalg.norm(across), u @ w)
    # x = n u and y = m w need not have one length: each weight multiplies its own vector
    near, far = np.sin((1 - t) * theta) / np.sin(theta), np.sin(t * theta) / np.sin(theta)
    return near * x + far * y


def along(function, x, y, axis):
    """`function` on pairs of vectors along one axis (None: on all elements as one)."""
    if axis is None or x.ndim < 2:
        return function(x.ravel(), y.ravel()).reshape(x.shape)
    x, y = np.moveaxis(x, axis, -1), np.moveaxis(y, axis, -1)
    out = np.empty_like(x)
    for index in np.ndindex(x.shape[:-1]):
        out[index] = function(x[index], y[index])
    return np.moveaxis(out, -1, axis)


WAYS = {"whole": ({}, None), "last": ({"nuslerp_flatten": False}, -1),
        "first": ({"nuslerp_flatten": False, "nuslerp_row_wise": True}, 0)}  # fmt: skip


@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("zero", ["linear", "orthogonal"])
@pytest.mark.parametrize("weight", [1.0, [0.8, 0.2], [1.0, -0.3], [1.0, -1.0]])
@pytest.mark.parametrize("way", WAYS)
def test_nuslerp(family, way, weight, zero, with_base):
    base, models, arrays = family(2, spread=1.5)
    settings, axis = WAYS[way]
    first, second = np.broadcast_to(np.asarray(weight, float), 2)
    t = 0.5 if first + second == 0 else second / (first + second)
    tiny = 1e-7 if zero == "orthogonal" else 0.0
    merged = run(
        "nuslerp", base if with_base else None, models, weight=weight, zero=zero, tiny=tiny, **settings
    )
    assert merged.degree == 1.0
    for name in FLOATS:
        origin, (x, y) = differences(arrays, name)
        if not with_base:
            x, y, origin = x + origin, y + origin, 0.0
        check(merged, {name: origin + along(lambda a, b: turned(a, b, t, zero=zero), x, y, axis)}, atol=3e-6)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_nuslerp_ends_parallel_and_opposite(opened, way, t):
    x = normal(6, 8)
    a = opened("a", same=x, longer=x, opposite=x, from_zero=np.zeros_like(x))
    b = opened("b", same=x, longer=3 * x, opposite=-2 * x, from_zero=x)
    merged = run("nuslerp", None, [a, b], weight=[1 - t, t], **WAYS[way][0])
    line = {n: (1 - t) * np.float64(p) + t * np.float64(q) for n, p, q in
            (("same", x, x), ("longer", x, 3 * x), ("opposite", x, -2 * x), ("from_zero", 0 * x, x))}  # fmt: skip
    check(merged, line)
    if t in (0.0, 1.0):
        far = opened("far", x=normal(6, 8, seed=5))
        near = opened("near", x=x)
        ends = run("nuslerp", None, [near, far], weight=[1 - t, t], **WAYS[way][0])
        np.testing.assert_array_equal(mg.compute(ends, "x"), mg.compute(near if t == 0 else far, "x"))


def test_nuslerp_of_siblings_keeps_the_digits_of_small_angles(opened):
    """At an angle of 1e-3 a cosine in f32 would have lost it; sin(theta) is then about theta."""
    x = normal(400, 300)
    y = (x + 1e-3 * normal(400, 300, seed=1)).astype(np.float32)
    merged = run("nuslerp", None, [opened("x", w=x), opened("y", w=y)], weight=[0.25, 0.75])
    expected = turned(x.ravel().astype(np.float64), y.ravel().astype(np.float64), 0.75).reshape(x.shape)
    check(merged, {"w": expected}, rtol=2e-7, atol=2e-7)


def test_nuslerp_rows_have_one_weight_by_tensor(family):
    _, models, arrays = family(2)
    merged = run("nuslerp", None, models, weight=[{"matrix": 0.0, "*": 1.0}, 1.0])
    check(merged, {"matrix": arrays[2]["matrix"]})
    x, y = f64(arrays[1:], "vector")
    check(merged, {"vector": turned(x, y, 0.5)})


# multislerp -----------------------------------------------------------------------------------------------------------


def multislerped(xs, w, *, normalize=True, eps=1e-8):
    """As described: tangent vectors at the mean direction, averaged, and the exponential map."""
    shape, xs, w = xs[0].shape, [x.ravel() for x in xs], np.asarray(w, float)
    if normalize:
        w = w / w.sum()
    norms = [np.linalg.norm(x) for x in xs]
    units = [x / (n + eps) for x, n in zip(xs, norms, strict=True)]
    mean = sum(a * u for a, u in zip(w, units, strict=True))
    if np.linalg.norm(mean) < eps:
        return sum(a * x for a, x in zip(w, xs, strict=True)).reshape(shape)
    mean /= np.linalg.norm(mean)
    tangent = sum(a * (u - (u @ mean) * mean) for a, u in zip(w, units, strict=True))
    angle = np.linalg.norm(tangent) + 1e-12
    on_sphere = np.cos(angle) * mean + np.sin(angle) / angle * tangent
    return (on_sphere * (w @ norms)).reshape(shape)


@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("options", [{}, {"weight": [0.5, 2.0, -0.2]}, {"weight": 0.5, "normalize_weights": False},
                                     {"eps": 0.05}])  # fmt: skip
def test_multislerp(family, with_base, options):
    base, models, arrays = family(3)
    merged = run("multislerp", base if with_base else None, models, **options)
    w = np.broadcast_to(np.asarray(options.get("weight", 1.0), float), 3)
    more = {"normalize": options.get("normalize_weights", True), "eps": options.get("eps", 1e-8)}
    for name in FLOATS:
        origin, vectors = differences(arrays, name)
        if with_base:
            check(merged, {name: origin + multislerped(vectors, w, **more)})
        else:
            check(merged, {name: multislerped([v + origin for v in vectors], w, **more)})
    assert merged.degree == 1.0


def test_multislerp_of_one_model_is_that_model(family):
    base, models, arrays = family(1)
    for k, origin in enumerate((None, base)):
        merged = run("multislerp", origin, models, weight=0.3)
        for n in FLOATS:
            np.testing.assert_array_equal(mg.compute(merged, n), arrays[1][n])
        np.testing.assert_array_equal(mg.compute(merged, "ids"), arrays[1 - k]["ids"])


def test_multislerp_where_directions_cancel(opened):
    x, y = normal(5, 4), normal(5, 4, seed=1)
    a, b, c = opened("a", w=x), opened("b", w=-4 * x), opened("c", w=2 * x)
    check(run("multislerp", None, [a, b]), {"w": -1.5 * x})
    with pytest.raises(MerganserError, match="multislerp: in tensor 'w' the directions of the models cancel"):
        mg.compute(run("multislerp", None, [a, b, c], weight=[1, 2, 1]), "w")
    with pytest.raises(RequestError, match="the weights of tensor 'w' sum to zero"):
        run("multislerp", None, [a, opened("d", w=y)], weight=[1, -1])
    with pytest.raises(RequestError, match="eps must be above 0"):
        run("multislerp", None, [a, b], eps=0.0)


# karcher --------------------------------------------------------------------------------------------------------------


def karcher_mean(xs, w, *, steps=400, tol=1e-12):
    """Gradient steps on the sphere, on the vectors themselves."""
    shape, xs, w = xs[0].shape, [x.ravel() for x in xs], np.asarray(w, float) / np.sum(w)
    norms = [np.linalg.norm(x) for x in xs]
    if not any(norms):
        return np.zeros(shape)
    units = [(a, x / n) for a, x, n in zip(w, xs, norms, strict=True) if n]
    mean = sum(a * u for a, u in units)
    mean /= np.linalg.norm(mean)
    for _ in range(steps):
        tangent = np.zeros_like(mean)
        for a, u in units:
            across = u - (u @ mean) * mean
            size = np.linalg.norm(across)
            if size > 0:
                tangent += a / sum(b for b, _ in units) * np.arctan2(size, u @ mean) * across / size
        step = np.linalg.norm(tangent)
        if step < tol:
            break
        mean = np.cos(step) * mean + np.sin(step) * tangent / step
        mean /= np.linalg.norm(mean)
    return (mean * sum(a * n for a, n in zip(w, norms, strict=True))).reshape(shape)


@pytest.mark.parametrize("spread", [0.01, 0.7, 3.0])
@pytest.mark.parametrize("weight", [1.0, [0.2, 1.0, 0.5]])
def test_karcher(family, spread, weight):
    _, models, arrays = family(3, spread=spread)
    merged = run("karcher", None, models, weight=weight)
    w = np.broadcast_to(np.asarray(weight, float), 3)
    names = [
        n for n in FLOATS if n not in ("one", "point")
    ]  # on a sphere of two points there is nothing between
    check(merged, {n: karcher_mean(f64(arrays[1:], n), w) for n in names}, atol=2e-6)
    assert merged.degree == 1.0


def test_karcher_stops_as_told(family):
    """No steps: the direction of the mean of directions. One step is one step."""
    _, models, arrays = family(3, spread=2.0)
    for steps in (0, 1, 2):
        merged = run("karcher", None, models, max_iter=steps)
        check(
            merged,
            {
                n: karcher_mean(f64(arrays[1:], n), [1, 1, 1], steps=steps)
                for n in ("matrix", "conv", "vector")
            },
        )
    still = run("karcher", None, models, tol=10.0)
    first = run("karcher", None, models, tol=10.0, max_iter=0)
    for n in ("matrix", "conv"):
        np.testing.assert_array_equal(mg.compute(still, n), mg.compute(first, n))


def test_karcher_degenerate_cases(opened):
    x, y = normal(6, 4), normal(6, 4, seed=3)
    small = (x * np.float32(1e-8)).astype(np.float32)
    a = opened("a", opposite=x, small=small, half=np.zeros_like(x))
    b = opened("b", opposite=-x, small=small, half=y)
    own = run("karcher", None, [a, b])
    theirs = run("karcher", None, [a, b], max_iter=10, tol=1e-5, directionless="tol")
    check(
        own, {"opposite": x, "small": small, "half": y / 2}, atol=1e-12
    )  # from the first; no zeros; length halved
    check(theirs, {"opposite": x, "small": np.zeros_like(x), "half": y / 2}, atol=1e-12)
    for wrong in ([1.0, -0.5], [0.0, 0.0]):
        with pytest.raises(RequestError, match="karcher: the weights of tensor 'opposite' are"):
            run("karcher", None, [a, b], weight=wrong)
    with pytest.raises(RequestError, match="tol above 0"):
        run("karcher", None, [a, b], tol=0.0)


# model_stock ----------------------------------------------------------------------------------------------------------


def stocked(base, models, *, floor=0.0):
    """One filter."""
    vectors = [m - base for m in models]
    cosines = []
    for v, w in combinations(vectors, 2):
        size = max(np.linalg.norm(v) * np.linalg.norm(w), floor)
        cosines.append(np.clip((v * w).sum() / size, -1, 1) if size else 0.0)
    c, k = np.mean(cosines), len(models)
    t = k * c / (1 + (k - 1) * c) if abs(1 + (k - 1) * c) >= 1e-6 else 0.0
    return t * np.mean(models, axis=0) + (1 - t) * base


def by_filter(base, models, filters, **options):
    if base.ndim < 2:
        return stocked(base, models, **options)
    width = base.shape[-1] if filters == "last" else int(np.prod(base.shape[1:]))
    stacks = [np.reshape(m, (-1, width)) if m.size else m for m in (base, *models)]
    return np.array([stocked(b, m, **options) for b, *m in zip(*stacks, strict=True)]).reshape(base.shape)


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("floor", [0.0, 1e-6, 5.0])
@pytest.mark.parametrize("filters", [None, "first", "last"])
def test_model_stock(opened, family, filters, floor, count):
    """Fine-tunes that share most of their change, so that cosines are large and not equal."""
    arrays = models_of(count, spread=0.3)
    shared = models_of(1, spread=0.5, seed=9000)[1]
    for n in FLOATS:
        for m in arrays[1:]:
            m[n] = (m[n] + shared[n]).astype(np.float32)
    base, *models = (opened(f"m{i}", a) for i, a in enumerate(arrays))
    options = {} if filters is None else {"filter_wise": True, "filters": filters}
    merged = run("model_stock", base, models, floor=floor, **options)
    for name in FLOATS:
        origin, *rest = f64(arrays, name)
        if name == "none":
            expected = origin
        else:
            expected = (
                stocked(origin, rest, floor=floor)
                if filters is None
                else by_filter(origin, rest, filters, floor=floor)
            )
        check(merged, {name: expected}, rtol=1e-5, atol=1e-6)
    assert merged.degree == 1.0
    np.testing.assert_array_equal(mg.compute(merged, "ids"), arrays[0]["ids"])


def test_model_stock_of_equal_opposite_and_unchanged_models(opened):
    x, d = normal(6, 4), normal(6, 4, seed=2)
    base = opened("base", w=x)
    moved, back, same = opened("moved", w=x + d), opened("back", w=2 * x - (x + d)), opened("same", w=x)
    for options in ({}, {"filter_wise": True}):
        check(run("model_stock", base, [moved, moved], **options), {"w": x + d})
        check(run("model_stock", base, [moved, back], **options), {"w": x})
        check(run("model_stock", base, [same, same, same], **options), {"w": x})
        check(run("model_stock", base, [same, moved], **options), {"w": x})
    with pytest.raises(RequestError, match="at least 2 models beside its base; there are 1"):
        run("model_stock", base, [moved])
    with pytest.raises(RequestError, match="floor must be at least 0"):
        run("model_stock", base, [moved, same], floor=-1.0)


# nearswap -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("floor", [0.0, 1e-6, 0.4])
@pytest.mark.parametrize("t", [0.0, 1e-7, 0.1, 0.5, 100.0])
def test_nearswap(family, t, floor):
    base, models, arrays = family(1)
    merged = run("nearswap", base, models, t=t, floor=floor)
    for name in FLOATS:
        a, b = f64(arrays, name)
        expected = np.array(a)
        for at in np.ndindex(expected.shape):
            distance = max(abs(expected[at] - np.array(b)[at]), floor)
            w = 1.0 if distance <= t else t / distance
            expected[at] += w * (np.array(b)[at] - expected[at])
        check(merged, {name: expected})
    assert merged.degree == 1.0


def test_nearswap_moves_by_at_most_t(opened):
    base = opened("base", w=np.array([0, 0, 0, 0, -2, 5], np.float32), v=np.zeros(2, np.float32))
    model = opened("model", w=np.array([0, 0.25, 1, -1, -2.125, 5], np.float32), v=np.ones(2, np.float32))
    merged = run("nearswap", base, [model], t={"w": 0.25, "*": 2.0})
    np.testing.assert_array_equal(mg.compute(merged, "w"), [0, 0.25, 0.25, -0.25, -2.125, 5])
    np.testing.assert_array_equal(mg.compute(merged, "v"), [1, 1])
    with pytest.raises(RequestError, match="t must be at least 0, not -1 "):
        run("nearswap", base, [model], t=-1.0)
    with pytest.raises(RequestError, match="floor must be at least 0"):
        run("nearswap", base, [model], t=1.0, floor=-1.0)


# arcee_fusion ---------------------------------------------------------------------------------------------------------


def fused(base, model, *, factor=1.5, eps=1e-8):
    """The result, and how far each entry's importance is from the threshold, as a share of it."""
    width = base.shape[-1] if base.ndim else 1
    b, m = base.reshape(-1, width), model.reshape(-1, width)
    importance = np.empty(b.shape)
    for i in range(len(b)):
        p, q = (np.exp(r - r.max()) / np.exp(r - r.max()).sum() + eps for r in (m[i], b[i]))
        importance[i] = np.abs(m[i] - b[i]) * max((p * np.log(p / q)).sum(), 0.0)
    ranked = np.sort(importance.ravel())
    lower, median, upper = (ranked[int(q * (ranked.size - 1))] for q in (0.25, 0.5, 0.75))
    threshold = median + factor * (upper - lower)
    result = np.where(importance >= threshold, m, b).reshape(base.shape)
    return (
        result,
        np.abs(importance - threshold).reshape(base.shape) / max(threshold, 1e-30),
        importance >= threshold,
    )


@pytest.mark.parametrize("options", [{}, {"spread_factor": 0.0}, {"eps": 0.01}])
def test_arcee_fusion(family, options):
    base, models, arrays = family(1, spread=0.2)
    merged = run("arcee_fusion", base, models, **options)
    more = {"factor": options.get("spread_factor", 1.5), "eps": options.get("eps", 1e-8)}
    for name in FLOATS:
        a, b = f64(arrays, name)
        if name == "none":
            check(merged, {name: a})
            continue
        expected, margin, taken = fused(a, b, **more)
        found = mg.compute(merged, name)
        sure = margin > 1e-3
        np.testing.assert_allclose(found[sure], expected[sure], **CLOSE, err_msg=name)
        if name in ("matrix", "conv", "vector"):
            assert taken.any() and not taken.all()
            assert sure.mean() > 0.9
    assert merged.degree == 1.0


def test_arcee_fusion_takes_every_change_where_most_did_not_change(opened):
    x = normal(20, 10)
    y = x.copy()
    y[0, :5] += 1.0
    merged = run("arcee_fusion", opened("base", w=x), [opened("model", w=y)])
    check(merged, {"w": y})
    with pytest.raises(RequestError, match="eps above 0"):
        run("arcee_fusion", opened("a", w=x), [opened("b", w=y)], eps=0.0)
    with pytest.raises(RequestError, match="exactly 1 model"):
        run("arcee_fusion", opened("c", w=x), [])


# geometric_median -----------------------------------------------------------------------------------------------------


def median(xs, w, steps=200_000, tol=1e-13, start=None):
    """Weiszfeld on the vectors themselves; a model that is the median by its optimality condition."""
    for k, x in enumerate(xs):
        here = [np.array_equal(x, y) for y in xs]
        pull = sum(
            (a * (y - x) / np.linalg.norm(y - x) for a, y, h in zip(w, xs, here, strict=True) if not h), 0 * x
        )
        if np.linalg.norm(pull) < sum(a for a, h in zip(w, here, strict=True) if h) * (1 - 1e-9):
            return xs[k]
    z = sum(a * x for a, x in zip(w, xs, strict=True)) / sum(w) if start is None else start
    for _ in range(steps):
        pulls = [a / np.linalg.norm(x - z) for a, x in zip(w, xs, strict=True)]
        new = sum(p * x for p, x in zip(pulls, xs, strict=True)) / sum(pulls)
        done = np.linalg.norm(new - z) < tol * (1 + np.linalg.norm(z))
        z = new
        if done:
            break
    return z


@pytest.mark.parametrize("scope", ["tensor", "model"])
@pytest.mark.parametrize("weight", [1.0, [0.5, 1.0, 0.7, 0.6], [0.1, 5.0, 0.1, 0.1]])
def test_geometric_median(family, weight, scope):
    _, models, arrays = family(4)
    merged = run("geometric_median", None, models, weight=weight, scope=scope)
    w = np.broadcast_to(np.asarray(weight, float), 4)
    if scope == "tensor":
        names = [n for n in FLOATS if n not in ("one", "point")]  # of numbers, the median of four is a range
        check(merged, {n: median(f64(arrays[1:], n), w) for n in names}, rtol=1e-5, atol=2e-6)
    else:
        together = [np.concatenate([m[n].ravel().astype(np.float64) for n in FLOATS]) for m in arrays[1:]]
        expected, at = median(together, w), 0
        for n in FLOATS:
            size = arrays[0][n].size
            check(merged, {n: expected[at : at + size].reshape(arrays[0][n].shape)}, rtol=1e-5, atol=2e-6)
            at += size
    assert merged.degree == 1.0


def test_geometric_median_on_a_line_and_with_an_outlier(opened):
    x, d = normal(7, 5), normal(7, 5, seed=1)
    line = [opened(f"l{i}", w=(x + k * d).astype(np.float32)) for i, k in enumerate((0, 1, 2, 3, 1000))]
    np.testing.assert_array_equal(
        mg.compute(run("geometric_median", None, line), "w"), mg.compute(line[2], "w")
    )
    three = [line[0], line[4], line[1]]  # the mean lies outside, the median is the middle one
    np.testing.assert_array_equal(
        mg.compute(run("geometric_median", None, three), "w"), mg.compute(line[1], "w")
    )
    two = run("geometric_median", None, line[:2])
    check(two, {"w": x + 0.5 * d})
    heavy = run("geometric_median", None, line[:2], weight=[1.0, 1.001])
    np.testing.assert_array_equal(mg.compute(heavy, "w"), mg.compute(line[1], "w"))
    mean = run("geometric_median", None, three, max_iter=0)
    check(mean, {"w": x + 1001 / 3 * d}, rtol=1e-5, atol=1e-4)


def test_geometric_median_leaves_a_model_that_the_mean_falls_on(opened):
    """Four corners and a model at their mean that nearly weighs nothing: the iteration starts on it and must go on."""
    corners = [(-1, 0), (1, 0), (0, 4), (0, -1)]
    at = np.mean(corners, axis=0)
    models = [opened(f"c{i}", w=np.array(p, np.float32)) for i, p in enumerate([*corners, at])]
    w = [1, 1, 1, 1, 1e-3]
    merged = run("geometric_median", None, models, weight=w)
    expected = median([np.array(p, np.float64) for p in [*corners, at]], w, start=np.array([0.3, 0.3]))
    assert abs(expected - at).max() > 0.1
    check(merged, {"w": expected}, atol=1e-5)


def test_geometric_median_errors(family):
    _, models, _ = family(2)
    with pytest.raises(RequestError, match="over the whole model every model has one weight"):
        run("geometric_median", None, models, scope="model", weight=[{"matrix": 1.0, "*": 2.0}, 1.0])
    with pytest.raises(RequestError, match="none may be negative"):
        run("geometric_median", None, models, weight=[1.0, -1.0])
    with pytest.raises(RequestError, match="tolerance above 0"):
        run("geometric_median", None, models, tolerance=0.0)


# Laws -----------------------------------------------------------------------------------------------------------------

MANY = {"multislerp": {}, "karcher": {}, "geometric_median": {}}
WITH_BASE = {"model_stock": {}, "nearswap": {"t": 0.01}, "arcee_fusion": {}}


@pytest.mark.parametrize("name", [*MANY, "nuslerp"])
def test_identical_models_are_themselves(family, name):
    _, models, arrays = family(1)
    merged = run(name, None, models * (2 if name == "nuslerp" else 3))
    check(merged, {n: arrays[1][n] for n in FLOATS}, rtol=2.5e-7, atol=0)


@pytest.mark.parametrize("name", WITH_BASE)
def test_a_base_merged_with_itself_is_itself(family, name):
    base, _, arrays = family(0)
    merged = run(name, base, [base] * get(name).min_models, **WITH_BASE[name])
    for n in FLOATS:
        np.testing.assert_allclose(mg.compute(merged, n), arrays[0][n], rtol=1.2e-7, atol=0)


@pytest.mark.parametrize("name", ["karcher", "geometric_median"])
def test_one_model_is_itself(family, name):
    _, models, arrays = family(1)
    merged = run(name, None, models, weight=0.3)
    for n in FLOATS:
        np.testing.assert_array_equal(mg.compute(merged, n), arrays[1][n])


@pytest.mark.parametrize("name", [*MANY, "model_stock"])
def test_the_order_of_models_does_not_matter(family, name):
    base, models, _ = family(3)
    results = [run(name, base, list(order)) for order in permutations(models)]
    for n in ("matrix", "conv", "vector"):
        first = mg.compute(results[0], n)
        for other in results[1:]:
            np.testing.assert_allclose(mg.compute(other, n), first, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["karcher", "geometric_median"])
def test_a_base_lends_files_and_integers_only(family, name):
    base, models, arrays = family(3)
    alone, lent = run(name, None, models), run(name, base, models)
    assert alone.origin is models[0].origin
    assert lent.origin is base.origin
    for n in FLOATS:
        np.testing.assert_array_equal(mg.compute(alone, n), mg.compute(lent, n))
    np.testing.assert_array_equal(mg.compute(alone, "ids"), arrays[1]["ids"])
    np.testing.assert_array_equal(mg.compute(lent, "ids"), arrays[0]["ids"])


def test_adapters_count_as_the_model_or_the_change_they_make(opened, tmp_path):
    x = normal(6, 4)
    left, right = normal(6, 2, seed=1), normal(2, 4, seed=2)
    base = opened("base", {"layer.weight": x, "norm": normal(4)})
    adapter = mg.open(write_adapter(tmp_path / "lora", {"layer": (left, right)}, alpha=2.0))
    full = opened("full", {"layer.weight": x + left @ right, "norm": normal(4)})
    other = opened("other", {"layer.weight": normal(6, 4, seed=7), "norm": normal(4, seed=8)})
    for name, more, models in (
        ("nuslerp", {}, [other]), ("multislerp", {}, [other]), ("model_stock", {}, [other]),
        ("nearswap", {"t": 0.5}, []), ("arcee_fusion", {}, []),
    ):  # fmt: skip
        with_adapter = run(name, base, [adapter, *models], **more)
        with_model = run(name, base, [full, *models], **more)
        for n in ("layer.weight", "norm"):
            np.testing.assert_allclose(
                mg.compute(with_adapter, n), mg.compute(with_model, n), rtol=1e-5, atol=1e-6, err_msg=name
            )
    with pytest.raises(AlgebraError, match="models and task vectors"):
        run("karcher", None, [other, adapter])
    half = other * 0.5
    for name, more in (("nearswap", {"t": 1.0}), ("arcee_fusion", {})):
        with pytest.raises(AlgebraError, match=r"has degree 0\.5"):
            run(name, base, [half], **more)


@pytest.mark.parametrize("name", ["nuslerp", *MANY, "model_stock"])
def test_names_and_shapes_must_agree(opened, name):
    a, b = opened("a", w=normal(4, 3), v=normal(3)), opened("b", w=normal(4, 3), v=normal(3))
    shape, names = opened("shape", w=normal(3, 4), v=normal(3)), opened("names", w=normal(4, 3), u=normal(3))
    base = a if get(name).base == "required" else None
    with pytest.raises(AlgebraError, match="'w'"):
        run(name, base, [b, shape])
    with pytest.raises(AlgebraError, match=r"lacks 1 of the 2 tensors of '[ab]': v"):
        run(name, base, [b, names])


# Dtypes, threads, tiles -----------------------------------------------------------------------------------------------

EVERY = {
    "nuslerp": ({}, 2, False), "nuslerp rows": ({"nuslerp_flatten": False}, 2, False),
    "nuslerp columns": ({"nuslerp_flatten": False, "nuslerp_row_wise": True}, 2, True),
    "multislerp": ({}, 3, True), "karcher": ({}, 3, False), "geometric_median": ({}, 3, False),
    "geometric_median model": ({"scope": "model"}, 3, False), "model_stock": ({}, 3, True),
    "model_stock filters": ({"filter_wise": True}, 3, True), "nearswap": ({"t": 0.2}, 1, True),
    "arcee_fusion": ({}, 1, True),
}  # fmt: skip


@pytest.mark.parametrize("case", EVERY)
def test_the_same_bytes_for_any_threads_and_tiles(opened, tmp_path, case):
    parameters, count, with_base = EVERY[case]
    arrays = [{"w": normal(700, 1000, seed=i, dtype=BF16), "v": normal(3000, seed=i, dtype=BF16),
               "c": normal(50, 40, 3, 3, seed=i, dtype=BF16)} for i in range(count + 1)]  # fmt: skip
    base, *models = (opened(f"m{i}", a) for i, a in enumerate(arrays))
    merged = run(case.split()[0], base if with_base else None, models, **parameters)
    found = []
    for k, (threads, tile) in enumerate([(1, 0), (2, 1 << 18), (2, 1 << 20)]):
        merged.save(tmp_path / f"o{k}", sync=False, threads=threads, tile=tile)
        found.append({n: a.tobytes() for n, a in read_model(tmp_path / f"o{k}").items()})
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("case", EVERY)
@pytest.mark.filterwarnings("error")
def test_what_is_not_finite_stops_every_method(opened, tmp_path, case, bad):
    parameters, count, with_base = EVERY[case]
    arrays = [{"w": normal(20, 10, seed=i)} for i in range(count + 1)]
    arrays[1]["w"][3, 3] = bad
    base, *models = (opened(f"m{i}", a) for i, a in enumerate(arrays))
    merged = run(case.split()[0], base if with_base else None, models, **parameters)
    with pytest.raises(MerganserError, match=r"'w' of parent 'm1' holds (NaN|Inf) at \[3, 3\]"):
        merged.save(tmp_path / "out", sync=False)


@pytest.mark.parametrize("case", EVERY)
def test_bf16_is_rounded_once_and_f64_stays_f64(opened, tmp_path, case):
    """bf16 parents: the f32 result, rounded. f64 parents: what f32 ones give, with the digits of f64."""
    parameters, count, with_base = EVERY[case]
    name = case.split()[0]
    results = {}
    for dtype in (BF16, np.dtype(np.float32), np.dtype(np.float64)):
        base, *models = (
            opened(f"{dtype}{i}", {n: a for n, a in m.items() if n != "ids"} if dtype != BF16 else m)
            for i, m in enumerate(models_of(count, dtype=BF16))
            for m in [{n: a if a.dtype.kind == "i" else a.astype(dtype) for n, a in m.items()}]
        )
        merged = run(name, base if with_base else None, models, **parameters)
        merged.save(tmp_path / str(dtype), sync=False, partial=True)
        results[dtype] = read_model(tmp_path / str(dtype))
    for n in ("vector", "matrix", "conv", "one", "point", "zero", "none"):
        single = results[np.dtype(np.float32)][n]
        assert results[BF16][n].tobytes() == single.astype(BF16).tobytes()
        wide = results[np.dtype(np.float64)][n]
        assert wide.dtype == np.float64
        np.testing.assert_allclose(single, wide, rtol=2e-5, atol=2e-6)


# Recipes --------------------------------------------------------------------------------------------------------------


def test_mergekit_recipes_give_mergekit_s_settings(family):
    base, models, _ = family(2)
    paths = {w.label: str(w.origin.path) for w in (base, *models)}

    def built(method, entries, **more):
        return build(load({"merge_method": method, "models": entries, "dtype": "float32", **more}))[0]

    def same(found, expected):
        for n in ("matrix", "conv", "vector", "zero"):
            np.testing.assert_array_equal(mg.compute(found, n), mg.compute(expected, n))

    weighted = [
        {"model": paths["m0"], "parameters": {"weight": 0.3}},
        {"model": paths["m1"], "parameters": {"weight": 0.9}},
    ]
    plain = [{"model": paths["m0"]}, {"model": paths["m1"]}]
    theirs = {"tiny": 1e-7, "zero": "orthogonal"}
    for origin in (None, base):
        more = {} if origin is None else {"base_model": paths["base"]}
        same(built("nuslerp", weighted, **more), run("nuslerp", origin, models, weight=[0.3, 0.9], **theirs))
        same(built("multislerp", weighted, **more), run("multislerp", origin, models, weight=[0.3, 0.9]))
    rows = {"nuslerp_flatten": False, "nuslerp_row_wise": True}
    same(
        built("nuslerp", weighted, parameters=rows),
        run("nuslerp", None, models, weight=[0.3, 0.9], **theirs, **rows),
    )
    karcher = {"max_iter": 10, "tol": 1e-5, "directionless": "tol"}
    same(built("karcher", plain), run("karcher", None, models, **karcher))
    same(
        built("model_stock", plain, base_model=paths["base"], parameters={"filter_wise": True}),
        run("model_stock", base, models, filter_wise=True, filters="last", floor=1e-6),
    )
    same(
        built("nearswap", plain[:1], base_model=paths["base"], parameters={"t": 0.2}),
        run("nearswap", base, models[:1], t=0.2, floor=1e-6),
    )
    same(built("arcee_fusion", plain[:1], base_model=paths["base"]), run("arcee_fusion", base, models[:1]))
    with pytest.raises(RequestError, match="weight"):
        load({"merge_method": "nuslerp", "models": plain})
