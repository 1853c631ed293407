"""Every method against a few lines of NumPy in f64, for the paper's formula and for mergekit's."""

from __future__ import annotations

import numpy as np
import pytest
from checkpoints import keep_largest, opened, random_models, to_l1

import merganser
from merganser.errors import AlgebraError, RequestError
from merganser.methods import get

MERGEKIT = {
    "ties": {"density": 1.0, "tie": "plus", "divisor": "weights"},
    "dare_ties": {"normalize": False, "tie": "plus", "divisor": "weights"},
    "breadcrumbs": {"keep_one": False},
}
CLOSE = {"rtol": 2e-6, "atol": 2e-7}


@pytest.fixture
def trio(tmp_path):
    arrays = random_models(3)
    weights = opened(tmp_path, base=arrays[0], a=arrays[1], b=arrays[2], c=arrays[3])
    return weights["base"], [weights[n] for n in "abc"], arrays


def run(name, base, models, **parameters):
    return get(name)(base, models, **parameters)


def check(weights, expected):
    for name, array in expected.items():
        np.testing.assert_allclose(merganser.compute(weights, name), array, **CLOSE, err_msg=name)


def vectors(arrays, name):
    return [m[name].astype(np.float64) - arrays[0][name] for m in arrays[1:]]


FLOATS = ("m", "long", "one", "zero")


# linear -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [1.0, [1.0, 1.0, 1.0], [0.5, 2.0, -0.25]])
def test_linear_is_the_weighted_mean(trio, weight):
    _, models, arrays = trio
    w = np.broadcast_to(np.asarray(weight, float), 3)
    merged = run("linear", None, models, weight=weight)
    check(merged, {n: sum(x * m[n] for x, m in zip(w, arrays[1:], strict=True)) / w.sum() for n in FLOATS})
    assert merged.degree == 1.0


def test_linear_without_normalize_keeps_the_sum_and_its_degree(trio):
    _, models, arrays = trio
    merged = run("linear", None, models, weight=[0.2, 0.3, 0.3], normalize=False)
    check(merged, {n: 0.2 * arrays[1][n] + 0.3 * arrays[2][n] + 0.3 * arrays[3][n] for n in FLOATS})
    assert merged.degree == pytest.approx(0.8)


def test_linear_takes_files_and_integers_from_the_base_and_else_from_the_first(trio):
    base, models, _ = trio
    assert run("linear", None, models).origin is models[0].origin
    merged = run("linear", base, models)
    assert merged.origin is base.origin
    np.testing.assert_array_equal(merganser.compute(merged, "ids"), np.arange(6))


def test_linear_of_weights_that_sum_to_zero(trio):
    with pytest.raises(RequestError, match="sum to zero"):
        run("linear", None, trio[1], weight=[1.0, -1.0, 0.0])


# slerp ------------------------------------------------------------------------------------------------------


def slerped(a, b, t, zero):
    a, b = a.astype(np.float64), b.astype(np.float64)
    na, nb = np.linalg.norm(a), np.linalg.norm(b)
    cosine = float((a * b).sum() / ((na if na > 1e-8 else 1) * (nb if nb > 1e-8 else 1)))
    if abs(cosine) > 0.9995 or (zero == "linear" and min(na, nb) <= 1e-8):
        return (1 - t) * a + t * b
    angle = np.arccos(np.clip(cosine, -1, 1))
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


@pytest.mark.parametrize("t", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("zero", ["linear", "orthogonal"])
def test_slerp(tmp_path, t, zero):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((4, 4)).astype(np.float32)
    y = rng.standard_normal((4, 4)).astype(np.float32)
    a = {
        "far": x,
        "near": x,
        "opposite": x,
        "from_zero": np.zeros_like(x),
        "tiny": x,
        "none": np.zeros_like(x),
    }
    b = {"far": y, "near": x * 1.5, "opposite": -x, "from_zero": y, "tiny": y, "none": np.zeros_like(x)}
    w = opened(tmp_path, a=a, b=b)
    merged = run("slerp", w["a"], [w["b"]], t=t, zero=zero, tiny=1e-8)
    check(merged, {n: slerped(a[n], b[n], t, zero) for n in a})
    assert merged.degree == 1.0


def test_slerp_takes_t_by_tensor(tmp_path):
    arrays = random_models(1)
    w = opened(tmp_path, a=arrays[0], b=arrays[1])
    merged = run("slerp", w["a"], [w["b"]], t={"m": 1.0, "*": 0.0})
    check(merged, {"m": arrays[1]["m"], "long": arrays[0]["long"]})


# Task vectors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("weight", [1.0, [0.5, -0.25, 2.0], [1.0, -1.0, 0.0]])
def test_task_arithmetic(trio, weight, normalize):
    base, models, arrays = trio
    w = np.broadcast_to(np.asarray(weight, float), 3)
    total = (w.sum() if abs(w.sum()) > 1e-8 else 1.0) if normalize else 1.0
    merged = run("task_arithmetic", base, models, weight=weight, scale=0.7, normalize=normalize)
    expected = {
        n: arrays[0][n] + 0.7 * sum(x * v for x, v in zip(w, vectors(arrays, n), strict=True)) / total
        for n in FLOATS
    }
    check(merged, expected)
    np.testing.assert_array_equal(merganser.compute(merged, "ids"), np.arange(6))
    assert merged.degree == 1.0


def agreed(vs, w, *, election="weighted", tie="zero", divisor="magnitudes", normalize=True):
    """Elect and average, entry by entry, written as loops."""
    result = np.zeros(vs[0].size)
    flat = [v.ravel() for v in vs]
    for i in range(result.size):
        votes = [x * v[i] if election == "weighted" else v[i] for x, v in zip(w, flat, strict=True)]
        elected = np.sign(sum(votes))
        if elected == 0 and tie == "plus":
            elected = 1.0
        inside = [k for k in range(len(w)) if votes[k] != 0 and np.sign(votes[k]) == elected]
        share = {
            "magnitudes": sum(abs(w[k]) for k in inside),
            "weights": sum(w[k] for k in inside),
            "count": len(inside),
        }
        by = share[divisor] if normalize else 1.0
        result[i] = sum(w[k] * flat[k][i] for k in inside) / (by or 1.0)
    return result.reshape(vs[0].shape)


@pytest.mark.parametrize("rescale", ["none", "l1"])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0, [0.2, 0.5, 0.9]])
@pytest.mark.parametrize("weight", [1.0, [0.5, -0.25, 2.0]])
@pytest.mark.parametrize("dialect", ["paper", "mergekit"])
def test_ties(trio, dialect, weight, density, rescale):
    base, models, arrays = trio
    options = {} if dialect == "paper" else {"tie": "plus", "divisor": "weights"}
    w = np.broadcast_to(np.asarray(weight, float), 3)
    d = np.broadcast_to(np.asarray(density, float), 3)
    merged = run("ties", base, models, weight=weight, density=density, scale=0.9, rescale=rescale, **options)
    for n in FLOATS:
        kept = [keep_largest(v, x) for v, x in zip(vectors(arrays, n), d, strict=True)]
        if rescale == "l1":
            kept = [to_l1(k, v) for k, v in zip(kept, vectors(arrays, n), strict=True)]
        check(merged, {n: arrays[0][n] + 0.9 * agreed(kept, w, **options)})


@pytest.mark.parametrize("options", [{"election": "unweighted", "divisor": "count"}, {"normalize": False}])
def test_ties_options(trio, options):
    base, models, arrays = trio
    w = [0.5, 1.0, 2.0]
    merged = run("ties", base, models, weight=w, density=0.5, **options)
    for n in FLOATS:
        kept = [keep_largest(v, 0.5) for v in vectors(arrays, n)]
        check(merged, {n: arrays[0][n] + agreed(kept, w, **options)})


def four(rows):
    return {"w": np.array(rows, np.float32).reshape(4, 4)}


def test_ties_by_hand(tmp_path):
    """Density 1/4 keeps 4 of 16; equal magnitudes at the threshold all stay; an exact tie elects nobody or plus."""
    zero = four([0] * 16)
    a = four([8, -7, 6, 5, 5, -5, 4, 3, 2, 1, 0, 0, 0, 0, 0, 0])
    b = four([-8, -1, 2, 9, 9, 9, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    w = opened(tmp_path, base=zero, a=a, b=b)
    paper = merganser.compute(run("ties", w["base"], [w["a"], w["b"]], density=0.25), "w").ravel()
    # a keeps 8 -7 6 5 5 -5 (ties with the fourth); b keeps 9 9 9 9, and its -8 is fifth
    np.testing.assert_array_equal(paper[:8], [8, -7, 6, 7, 7, 9, 9, 0])
    both = {"density": 1.0}
    paper = merganser.compute(run("ties", w["base"], [w["a"], w["b"]], **both), "w").ravel()
    theirs = merganser.compute(run("ties", w["base"], [w["a"], w["b"]], **both, tie="plus"), "w").ravel()
    assert paper[0] == 0.0
    assert theirs[0] == 8.0
    np.testing.assert_array_equal(paper[1:], theirs[1:])


def test_ties_counts_over_the_whole_model_when_asked(trio):
    base, models, arrays = trio
    merged = run("ties", base, models[:1], density=0.1, scope="model")
    vs = {n: arrays[1][n].astype(np.float64) - arrays[0][n] for n in FLOATS}
    everything = np.sort(np.abs(np.concatenate([v.ravel() for v in vs.values()])))[::-1]
    threshold = everything[int(0.1 * everything.size) - 1]
    # differences are taken in f32, so the threshold entry itself is compared with a little room
    check(
        merged, {n: arrays[0][n] + np.where(np.abs(v) >= threshold * (1 - 1e-5), v, 0) for n, v in vs.items()}
    )


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dialect", ["paper", "mergekit"])
def test_breadcrumbs(trio, dialect, density, gamma):
    base, models, arrays = trio
    options = MERGEKIT["breadcrumbs"] if dialect == "mergekit" else {}
    w = [1.0, -0.5, 0.3]
    merged = run("breadcrumbs", base, models, weight=w, density=density, gamma=gamma, scale=0.5, **options)
    for n in FLOATS:
        kept = [
            keep_largest(v, density, at_least=0 if options else 1, top=int(gamma * v.size))
            for v in vectors(arrays, n)
        ]
        check(merged, {n: arrays[0][n] + 0.5 * sum(x * k for x, k in zip(w, kept, strict=True))})


def test_breadcrumbs_rescaled(trio):
    base, models, arrays = trio
    merged = run(
        "breadcrumbs", base, models, density=0.4, gamma=0.05, rescale="l1", normalize=True, weight=0.5
    )
    for n in FLOATS:
        vs = vectors(arrays, n)
        kept = [to_l1(keep_largest(v, 0.4, top=int(0.05 * v.size)), v) for v in vs]
        check(merged, {n: arrays[0][n] + sum(kept) / 3})


# DARE -------------------------------------------------------------------------------------------------------


def kept_of(base, model, arrays, n, *, density, seed=0, method="dare_linear"):
    """The mask that DARE drew for one model, read off a merge of that model alone without rescaling."""
    alone = run(method, base, [model], density=density, rescale="none", seed=seed)
    return np.abs(merganser.compute(alone, n).astype(np.float64) - arrays[0][n]) > 0


@pytest.mark.parametrize("rescale", ["share", "l1", "none"])
def test_dare_linear(trio, rescale):
    base, models, arrays = trio
    merged = run(
        "dare_linear", base, models, density=0.4, weight=[1.0, -0.5, 0.3], scale=0.8, rescale=rescale, seed=3
    )
    for n in FLOATS:
        total = 0.0
        for model, w, v in zip(models, [1.0, -0.5, 0.3], vectors(arrays, n), strict=True):
            kept = np.where(kept_of(base, model, arrays, n, density=0.4, seed=3), v, 0.0)
            total = total + w * {"share": kept / 0.4, "l1": to_l1(kept, v), "none": kept}[rescale]
        check(merged, {n: arrays[0][n] + 0.8 * total})


@pytest.mark.parametrize("dialect", ["paper", "mergekit"])
def test_dare_ties(trio, dialect):
    base, models, arrays = trio
    options = MERGEKIT["dare_ties"] if dialect == "mergekit" else {}
    w = [1.0, -0.5, 0.3]
    merged = run("dare_ties", base, models, density=0.5, weight=w, **options)
    for n in FLOATS:
        vs = vectors(arrays, n)
        kept = [
            np.where(kept_of(base, m, arrays, n, density=0.5, method="dare_ties"), v, 0.0) / 0.5
            for m, v in zip(models, vs, strict=True)
        ]
        check(merged, {n: arrays[0][n] + agreed(kept, w, **options)})


def test_dare_keeps_the_share_and_the_expectation(tmp_path):
    n = 200_000
    w = opened(tmp_path, base={"x": np.zeros(n, np.float32)}, a={"x": np.ones(n, np.float32)})
    drawn = merganser.compute(run("dare_linear", w["base"], [w["a"]], density=0.1), "x")
    assert set(np.unique(drawn)) == {0.0, np.float32(10.0)}
    assert abs((drawn > 0).mean() - 0.1) < 5 * np.sqrt(0.09 / n)


def test_dare_draws_depend_on_seed_method_label_and_name_only(tmp_path):
    n = 4000
    base = {"x": np.zeros(n, np.float32), "y": np.zeros(n, np.float32)}
    ones = {"x": np.ones(n, np.float32), "y": np.ones(n, np.float32)}
    w = opened(tmp_path, base=base, a=ones, b=ones)

    def mask(method="dare_linear", model="a", tensor="x", seed=0):
        return merganser.compute(run(method, w["base"], [w[model]], density=0.5, seed=seed), tensor) > 0

    first = mask()
    np.testing.assert_array_equal(first, mask())
    together = (
        merganser.compute(run("dare_linear", w["base"], [w["b"], w["a"]], density=0.5, weight=[0, 1]), "x")
        > 0
    )
    np.testing.assert_array_equal(first, together)
    for other in (mask(seed=1), mask(model="b"), mask(tensor="y"), mask(method="dare_ties")):
        assert 0.45 < (first == other).mean() < 0.55


def test_dare_refuses_two_models_of_one_name(trio):
    base, models, _ = trio
    with pytest.raises(RequestError, match="two models are called 'a'"):
        run("dare_linear", base, [models[0], models[0]])


# For all of them --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ties", "dare_linear", "dare_ties", "breadcrumbs"])
def test_density_one_of_one_model_gives_the_model(trio, name):
    base, models, arrays = trio
    check(run(name, base, models[:1], density=1.0), {n: arrays[1][n] for n in FLOATS})


@pytest.mark.parametrize("name", ["task_arithmetic", "ties", "dare_linear", "dare_ties", "breadcrumbs"])
def test_bad_inputs(trio, name, tmp_path):
    base, models, arrays = trio
    with pytest.raises(RequestError, match="needs a base"):
        run(name, None, models)
    with pytest.raises(RequestError, match="2 weights for 3 models"):
        run(name, base, models, weight=[1.0, 2.0])
    if name != "task_arithmetic":
        with pytest.raises(RequestError, match=r"density .*in \[0, 1\], not 1\.5"):
            run(name, base, models, density=1.5)
    odd = opened(tmp_path / "odd", odd=arrays[1] | {"m": np.zeros((3, 4), np.float32)})["odd"]
    with pytest.raises(AlgebraError, match=r"'m' has shape \[3, 4\] in 'odd' and \[4, 4\] in 'base'"):
        run(name, base, [odd])
    with pytest.raises(AlgebraError, match="lacks 1 of the 5"):
        run(
            name,
            base,
            [opened(tmp_path / "few", few={k: v for k, v in arrays[1].items() if k != "m"})["few"]],
        )


@pytest.mark.parametrize("name", ["task_arithmetic", "ties", "dare_linear", "dare_ties", "breadcrumbs"])
def test_weights_by_tensor(trio, name):
    base, models, arrays = trio
    extra = {} if name == "task_arithmetic" else {"density": 1.0}
    weight = [{"m": 1.0, "*": 0.0}, {"m": 0.0, "*": 1.0}, 0.0]
    merged = run(name, base, models, weight=weight, **extra)
    check(merged, {"m": arrays[1]["m"], "long": arrays[2]["long"], "zero": arrays[0]["zero"]})


@pytest.mark.parametrize("name", ["task_arithmetic", "ties", "dare_linear", "dare_ties", "breadcrumbs"])
def test_a_vector_counts_as_it_is(trio, name):
    base, models, arrays = trio
    extra = {} if name == "task_arithmetic" else {"density": 1.0}
    vector = (models[0] - base).select("m").relabel("patch")
    merged = run(name, base, [vector], **extra)
    check(merged, {"m": arrays[1]["m"], "long": arrays[0]["long"]})
