"""Fisher averaging, RegMean and grafting against the papers' formulas in NumPy, in f64."""

from __future__ import annotations

import numpy as np
import pytest
from makers import BF16, files_of, read_model, write_model

import merganser as mg
import merganser.lineage
from merganser.errors import AlgebraError, NonFiniteError, RequestError
from merganser.methods import get, method
from merganser.methods.merge._statistics import UNOBSERVED

SHAPES = {"layer.weight": (12, 9), "deep.weight": (2, 3, 4), "bias": (257,), "one": (1,)}
KINDS = {"fisher": "fisher", "regmean": "gram", "graft": "mask"}


def model(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    found = {name: rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}
    return found | {"ids": np.arange(4) + seed}


def fishers(seed, names=SHAPES):
    rng = np.random.default_rng(seed + 100)
    return {name: (rng.random(SHAPES[name]) ** 4 * 1e-4).astype(np.float32) for name in names}


def gram(seed, size=9, tokens=40, dead=()):
    inputs = np.random.default_rng(seed + 200).standard_normal((tokens, size)) * 10 ** np.linspace(
        -2, 1, size
    )
    inputs[:, list(dead)] = 0
    return (inputs.T @ inputs / tokens).astype(np.float32)


def mask(seed, share=0.3, dtype=np.bool_):
    rng = np.random.default_rng(seed + 300)
    return {name: (rng.random(shape) < share).astype(dtype) for name, shape in SHAPES.items()}


@pytest.fixture
def trio(tmp_path):
    arrays = [model(seed) for seed in range(3)]
    return arrays, [mg.open(write_model(tmp_path / f"m{k}", a)) for k, a in enumerate(arrays)]


def opened(tmp_path, arrays, stem="s"):
    return [mg.open(write_model(tmp_path / f"{stem}{k}", a)) for k, a in enumerate(arrays)]


def wide(array):
    return array.astype(np.float64)


def all_of(weights):
    return {name: mg.compute(weights, name) for name in SHAPES}


# Fisher ---------------------------------------------------------------------------------------------------------------


def by_hand(models, found, weights, floor=1e-6, floored="all", normalize=False):
    norms = [np.sqrt(sum((wide(f) ** 2).sum() for f in own.values())) if normalize else 1.0 for own in found]
    merged = {}
    for name in SHAPES:
        parts = [
            w / n * np.maximum(wide(own[name]), floor if floored == "all" or k == 0 else 0)
            for k, (w, n, own) in enumerate(zip(weights, norms, found, strict=True))
        ]
        merged[name] = sum(p * wide(m[name]) for p, m in zip(parts, models, strict=True)) / sum(parts)
    return merged


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weight": [0.2, 1.0, 3.0]},
        {"normalize": True},
        {"normalize": True, "floored": "first", "floor": 1e-5, "weight": [1, 0.5, 0.25]},
        {"floor": 0.0},
    ],
)
def test_fisher_is_the_papers_formula(settings, trio, tmp_path):
    arrays, models = trio
    found = [fishers(k) for k in range(3)]
    merged = get("fisher")(None, models, statistics=opened(tmp_path, found), **settings)
    rest = dict(settings)
    weights = rest.pop("weight", [1.0, 1.0, 1.0])
    for name, expected in by_hand(arrays, found, weights, **rest).items():
        np.testing.assert_allclose(mg.compute(merged, name), expected, rtol=3e-6, atol=1e-6, err_msg=name)
    assert not merged.notes


@pytest.mark.parametrize("height", [1e-4, 1e-30, 0.0])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("normalize", [False, True])
def test_equal_fishers_give_the_plain_average_bit_for_bit(height, count, normalize, trio, tmp_path):
    _, models = trio
    rng = np.random.default_rng(5)
    same = {name: (rng.random(shape) * height).astype(np.float32) for name, shape in SHAPES.items()}
    found = opened(tmp_path, [same] * count)
    merged = get("fisher")(None, models[:count], statistics=found, floor=0.0, normalize=normalize)
    plain = get("linear")(None, models[:count])
    for name in SHAPES:
        ours, theirs = mg.compute(merged, name), mg.compute(plain, name)
        if normalize and height:
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(ours, theirs)


def test_small_fishers_do_not_vanish(trio, tmp_path):
    arrays, models = trio
    found = [{n: f * np.float32(1e-33) for n, f in fishers(k).items()} for k in range(3)]
    for normalize in (False, True):
        merged = get("fisher")(
            None, models, statistics=opened(tmp_path, found), floor=0.0, normalize=normalize
        )
        expected = by_hand(arrays, found, [1, 1, 1], 0.0, normalize=normalize)
        np.testing.assert_allclose(mg.compute(merged, "bias"), expected["bias"], rtol=2e-4, atol=1e-4)


def test_where_one_fisher_is_zero_the_other_model_stands(trio, tmp_path):
    arrays, models = trio
    found = [fishers(0), fishers(1)]
    found[0]["bias"][:100] = 0
    found[1]["bias"][50:100] = 0
    found[1]["bias"][:50] += 1e-6
    merged = mg.compute(
        get("fisher")(None, models[:2], statistics=opened(tmp_path, found), floor=0.0), "bias"
    )
    np.testing.assert_array_equal(merged[:50], arrays[1]["bias"][:50])
    mean = (wide(arrays[0]["bias"]) + arrays[1]["bias"])[50:100] / 2
    np.testing.assert_allclose(merged[50:100], mean, rtol=1e-6, atol=1e-7)


def test_the_authors_floor_keeps_the_first_model_where_no_fisher_speaks(trio, tmp_path):
    arrays, models = trio
    none = [{name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}] * 2
    merged = get("fisher")(None, models[:2], statistics=opened(tmp_path, none), floored="first")
    np.testing.assert_array_equal(mg.compute(merged, "bias"), arrays[0]["bias"])


# RegMean --------------------------------------------------------------------------------------------------------------


def regressed(matrices, grams, weights, alpha):
    grams = [
        w * (alpha * wide(g) + (1 - alpha) * np.diag(np.diag(wide(g))))
        for w, g in zip(weights, grams, strict=True)
    ]
    return np.linalg.solve(sum(grams), sum(g @ wide(m).T for g, m in zip(grams, matrices, strict=True))).T


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9, 0.9995, 1.0])
@pytest.mark.parametrize("weight", [1.0, [1.0, 0.0, 2.5]])
def test_regmean_is_the_papers_formula(alpha, weight, trio, tmp_path):
    arrays, models = trio
    grams = [gram(k) for k in range(3)]
    found = opened(tmp_path, [{"layer.weight": g} for g in grams])
    merged = get("regmean")(None, models, statistics=found, alpha=alpha, weight=weight)
    weights = weight if isinstance(weight, list) else [1.0] * 3
    expected = regressed([a["layer.weight"] for a in arrays], grams, weights, alpha)
    np.testing.assert_allclose(mg.compute(merged, "layer.weight"), expected, rtol=1e-5, atol=2e-5)
    plain = get("linear")(None, models, weight=weight)
    for name in ("deep.weight", "bias", "one"):
        np.testing.assert_allclose(mg.compute(merged, name), mg.compute(plain, name), rtol=1e-6, atol=1e-7)
    assert merged.notes == ({"step": "regmean", UNOBSERVED: ["deep.weight", "bias", "one"]},)


def test_regmean_minimises_what_the_layers_did_to_their_inputs(tmp_path):
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((60, 9)) @ rng.standard_normal((9, 9)) for _ in range(2)]
    matrices = [rng.standard_normal((1500, 9)).astype(np.float32) for _ in range(2)]  # more rows than a block
    stacked, wanted = np.vstack(inputs), np.vstack([x @ m.T for x, m in zip(inputs, matrices, strict=True)])
    expected = np.linalg.lstsq(stacked, wanted, rcond=None)[0].T
    models = opened(tmp_path, [{"w": m} for m in matrices], "m")
    found = opened(tmp_path, [{"w": (x.T @ x / 60).astype(np.float32)} for x in inputs])
    merged = get("regmean")(None, models, statistics=found, alpha=1.0)
    np.testing.assert_allclose(mg.compute(merged, "w"), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("alpha", [0.9, 1.0])
def test_a_singular_gram_leaves_the_mean_where_nothing_was_seen(alpha, trio, tmp_path):
    arrays, models = trio
    grams = [gram(k, dead=(2, 5), tokens=4 if alpha == 1.0 else 40) for k in range(2)]
    found = opened(tmp_path, [{"layer.weight": g} for g in grams])
    merged = mg.compute(get("regmean")(None, models[:2], statistics=found, alpha=alpha), "layer.weight")
    pair = [wide(a["layer.weight"]) for a in arrays[:2]]
    np.testing.assert_allclose(merged[:, [2, 5]], (sum(pair) / 2)[:, [2, 5]], rtol=1e-6, atol=1e-7)
    alive = [k for k in range(9) if k not in (2, 5)]
    inside = [g[np.ix_(alive, alive)] for g in grams]
    if alpha < 1:
        expected = regressed([m[:, alive] for m in pair], inside, [1, 1], alpha)
        np.testing.assert_allclose(merged[:, alive], expected, rtol=1e-5, atol=2e-5)
    else:  # 8 tokens for 7 inputs, but 4 a model: what each layer did to its own inputs is kept as well as can be
        assert np.isfinite(merged).all()


def test_all_grams_zero_give_the_mean(trio, tmp_path):
    _, models = trio
    found = opened(tmp_path, [{"layer.weight": np.zeros((9, 9), np.float32)}] * 2)
    for alpha in (0.9, 1.0):
        merged = get("regmean")(None, models[:2], statistics=found, alpha=alpha)
        plain = get("linear")(None, models[:2])
        np.testing.assert_allclose(
            mg.compute(merged, "layer.weight"), mg.compute(plain, "layer.weight"), rtol=1e-6, atol=1e-7
        )


def test_token_counts_weigh_the_grams(trio, tmp_path):
    arrays, models = trio
    grams = [gram(k) for k in range(2)]
    found = [
        one.with_note({"statistics": {"tokens": tokens}})
        for one, tokens in zip(opened(tmp_path, [{"layer.weight": g} for g in grams]), (300, 20), strict=True)
    ]
    merged = get("regmean")(None, models[:2], statistics=found, by_tokens=True)
    expected = regressed([a["layer.weight"] for a in arrays[:2]], grams, [300, 20], 0.9)
    np.testing.assert_allclose(mg.compute(merged, "layer.weight"), expected, rtol=1e-5, atol=2e-5)
    uncounted = opened(tmp_path, [{"layer.weight": g} for g in grams])[1]
    with pytest.raises(RequestError, match="by_tokens needs to know how many tokens 's1'"):
        get("regmean")(None, models[:2], statistics=[found[0], uncounted], by_tokens=True)


def test_inputs_stand_where_the_family_says(tmp_path):
    config = {
        "model_type": "gpt2", "vocab_size": 7, "n_embd": 6, "n_layer": 1, "n_head": 2, "n_positions": 5,
    }  # fmt: skip
    names = {
        "wte.weight": (7, 6), "wpe.weight": (5, 6), "ln_f.weight": (6,), "ln_f.bias": (6,),
        "h.0.ln_1.weight": (6,), "h.0.ln_1.bias": (6,), "h.0.ln_2.weight": (6,), "h.0.ln_2.bias": (6,),
        "h.0.attn.c_attn.weight": (6, 18), "h.0.attn.c_attn.bias": (18,),
        "h.0.attn.c_proj.weight": (6, 6), "h.0.attn.c_proj.bias": (6,),
        "h.0.mlp.c_fc.weight": (6, 24), "h.0.mlp.c_fc.bias": (24,),
        "h.0.mlp.c_proj.weight": (24, 6), "h.0.mlp.c_proj.bias": (6,),
    }  # fmt: skip
    rng = np.random.default_rng(0)
    arrays = [{n: rng.standard_normal(s).astype(np.float32) for n, s in names.items()} for _ in range(2)]
    models = [mg.open(write_model(tmp_path / f"g{k}", a, config)) for k, a in enumerate(arrays)]
    chosen = [n for n in names if "attn.c" in n and n.endswith("weight")]
    grams = [{n: gram(k + 7, 6) for n in chosen} for k in range(2)]
    merged = get("regmean")(None, models, statistics=opened(tmp_path, grams))
    for name in chosen:  # one of them is square: only the family's file tells which way it lies
        expected = regressed([a[name].T for a in arrays], [g[name] for g in grams], [1, 1], 0.9).T
        np.testing.assert_allclose(mg.compute(merged, name), expected, rtol=1e-5, atol=2e-5, err_msg=name)
    kept = get("regmean")(None, models, statistics=opened(tmp_path, grams), matrices="none")
    np.testing.assert_array_equal(mg.compute(kept, name), mg.compute(get("linear")(None, models), name))


def test_a_convolution_is_a_matrix_of_its_patches(trio, tmp_path):
    arrays, models = trio
    grams = [gram(k, 12) for k in range(2)]
    found = opened(tmp_path, [{"deep.weight": g} for g in grams])
    merged = mg.compute(get("regmean")(None, models[:2], statistics=found), "deep.weight")
    expected = regressed([a["deep.weight"].reshape(2, 12) for a in arrays[:2]], grams, [1, 1], 0.9)
    np.testing.assert_allclose(merged, expected.reshape(2, 3, 4), rtol=1e-5, atol=2e-5)


# Graft ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.float32, BF16])
@pytest.mark.parametrize("overlap", ["mean", "last"])
def test_a_graft_has_the_bits_of_its_parents(dtype, overlap, trio, tmp_path):
    arrays, models = trio
    (chosen,) = [mask(0, dtype=dtype)]
    merged = get("graft")(models[0], models[1:2], statistics=opened(tmp_path, [chosen]), overlap=overlap)
    for name in SHAPES:
        expected = np.where(chosen[name].astype(bool), arrays[1][name], arrays[0][name])
        np.testing.assert_array_equal(mg.compute(merged, name), expected)
    np.testing.assert_array_equal(mg.compute(merged, "ids"), arrays[0]["ids"])


def test_masks_that_meet(trio, tmp_path):
    arrays, models = trio
    masks = [mask(0, 0.6), mask(1, 0.6)]
    found = opened(tmp_path, masks)
    mixed = get("graft")(models[0], models[1:], statistics=found)
    last = get("graft")(models[0], models[1:], statistics=found, overlap="last")
    for name in SHAPES:
        base, a, b = (wide(one[name]) for one in arrays)
        one, two = (m[name] for m in masks)
        mean = np.where(one & two, (a + b) / 2, np.where(one, a, np.where(two, b, base)))
        np.testing.assert_allclose(mg.compute(mixed, name), mean, rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(mg.compute(last, name), np.where(two, b, np.where(one, a, base)))


def test_soft_masks_and_masks_out_of_range(trio, tmp_path):
    arrays, models = trio
    soft = {"bias": np.linspace(-0.5, 1.5, 257).astype(np.float32)}
    merged = get("graft")(models[0], models[1:2], statistics=opened(tmp_path, [soft]))
    share = np.clip(wide(soft["bias"]), 0, 1)
    expected = (1 - share) * arrays[0]["bias"] + share * arrays[1]["bias"]
    np.testing.assert_allclose(mg.compute(merged, "bias"), expected, rtol=1e-6, atol=1e-6)
    assert merged.notes == ({"step": "graft", UNOBSERVED: ["layer.weight", "deep.weight", "one"]},)
    np.testing.assert_array_equal(mg.compute(merged, "one"), arrays[0]["one"])


# All three ------------------------------------------------------------------------------------------------------------


def call(name, models, tmp_path, stem="s", **settings):
    found = {
        "fisher": lambda k: fishers(k),
        "regmean": lambda k: {"layer.weight": gram(k)},
        "graft": lambda k: mask(k, dtype=np.float32),
    }[name]
    base, own = (models[0], models[1:]) if name == "graft" else (None, models)
    statistics = opened(tmp_path, [found(int(m.label[1:])) for m in own], stem)
    return get(name)(base, own, statistics=statistics, **settings)


@pytest.mark.parametrize("name", ["fisher", "regmean"])
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_one_model_gives_itself(name, weight, trio, tmp_path):
    arrays, models = trio
    merged = call(name, models[:1], tmp_path, weight=weight)
    for key in SHAPES:
        np.testing.assert_array_equal(mg.compute(merged, key), arrays[0][key])
    alone = call(name, models, tmp_path, "z", weight=[0, weight, 0])
    for key in SHAPES:
        np.testing.assert_array_equal(mg.compute(alone, key), arrays[1][key])


@pytest.mark.parametrize("name", ["fisher", "regmean", "graft"])
def test_the_order_of_models_does_not_matter(name, trio, tmp_path):
    _, models = trio
    order = [models[0], models[2], models[1]] if name == "graft" else [models[2], models[0], models[1]]
    one, two = all_of(call(name, models, tmp_path)), all_of(call(name, order, tmp_path, "t"))
    for key in SHAPES:
        np.testing.assert_allclose(one[key], two[key], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", ["fisher", "regmean", "graft"])
def test_bytes_are_equal_for_any_number_of_threads(name, trio, tmp_path, monkeypatch):
    monkeypatch.setitem(SHAPES, "bias", (150_001,))
    models = [mg.open(write_model(tmp_path / "long" / f"m{k}", model(k))) for k in range(3)]
    settings = {"normalize": True} if name == "fisher" else {}
    merged = call(name, models, tmp_path, **settings)
    for k, (threads, tile) in enumerate([(1, 0), (2, 0), (2, 2**16)]):
        mg.save(merged, tmp_path / f"out{k}", threads=threads, tile=tile)
        assert files_of(tmp_path / "out0") == files_of(tmp_path / f"out{k}")
    parents = {p["name"]: p for p in mg.lineage.read_manifest(tmp_path / "out0")["parents"]}
    assert {"m0", "m1", "m2"} < set(parents)
    assert all(parents[one]["tensors_read"] for one in parents if one.startswith("s"))


@pytest.mark.parametrize("name", ["fisher", "regmean", "graft"])
def test_bf16_parents_are_computed_in_f32_and_rounded_once(name, tmp_path):
    arrays = [model(seed, BF16) for seed in range(3)]
    low = [mg.open(write_model(tmp_path / f"m{k}", a)) for k, a in enumerate(arrays)]
    raised = [{n: v.astype(np.float32) if n != "ids" else v for n, v in a.items()} for a in arrays]
    high = [mg.open(write_model(tmp_path / "high" / f"m{k}", a)) for k, a in enumerate(raised)]
    mg.save(call(name, low, tmp_path), tmp_path / "low")
    mg.save(call(name, high, tmp_path, "t"), tmp_path / "out")
    for key, array in read_model(tmp_path / "low").items():
        if key != "ids":
            np.testing.assert_array_equal(array, read_model(tmp_path / "out")[key].astype(BF16))


@pytest.mark.parametrize("name", ["fisher", "regmean", "graft"])
@pytest.mark.parametrize("what", ["names", "shapes", "count", "none", "parameter"])
def test_what_does_not_fit_is_refused_before_anything_is_read(name, what, trio, tmp_path):
    _, models = trio
    base, own = (models[0], models[1:]) if name == "graft" else (None, models[1:])
    good = {"fisher": fishers(0), "regmean": {"layer.weight": gram(0)}, "graft": mask(0, dtype=np.float32)}[
        name
    ]
    bad = {
        "names": good | {"layer.wieght": good["layer.weight"]},
        "shapes": good | {"layer.weight": np.zeros((9, 12), np.float32)},
    }.get(what, good)
    found: list[mg.Weights] | None = opened(tmp_path, [good, bad])
    settings = {}
    if what == "count":
        found = found[:1]
    elif what == "none":
        found = None
    elif what == "parameter":
        settings = {"wieght": 1}
    message = {
        "names": "statistics of tensor 'layer.wieght', which 'm2' lacks; did you mean 'layer.weight'",
        "shapes": r"statistics of tensor 'layer.weight' in 's1' have shape \[9, 12\]",
        "count": f"{name} needs statistics of the kind '{KINDS[name]}', one for each of the 2 models; there are 1",
        "none": "none are given",
        "parameter": "has no parameter 'wieght'",
    }[what]
    with pytest.raises(AlgebraError if what in ("names", "shapes") else RequestError, match=message):
        get(name)(base, own, statistics=found, **settings)


@pytest.mark.parametrize("name", ["fisher", "regmean", "graft"])
def test_statistics_that_are_not_finite_stop_the_merge(name, trio, tmp_path):
    _, models = trio
    base, own = (models[0], models[1:]) if name == "graft" else (None, models[1:])
    good = {"fisher": fishers(0), "regmean": {"layer.weight": gram(0)}, "graft": mask(0, dtype=np.float32)}[
        name
    ]
    bad = {key: array.copy() for key, array in good.items()}
    bad["layer.weight"][3, 2] = np.nan
    merged = get(name)(base, own, statistics=opened(tmp_path, [good, bad]))
    with pytest.raises(NonFiniteError, match=r"layer\.weight"):
        mg.save(merged, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("fisher", {"floor": -1.0}, "floor must be 0 or more"),
        ("fisher", {"weight": [1, -1, 1]}, "must not be negative"),
        ("fisher", {"weight": 0.0}, "are zero, so there is no average"),
        ("regmean", {"alpha": 1.5}, r"alpha must be in \[0, 1\]"),
        ("regmean", {"weight": [1, 1]}, "2 weights for 3 models"),
    ],
)
def test_settings_out_of_range(name, settings, message, trio, tmp_path):
    with pytest.raises(RequestError, match=message):
        call(name, trio[1], tmp_path, **settings)


def test_other_methods_take_no_statistics_and_the_decorator_says_who_does(trio):
    with pytest.raises(RequestError, match="linear takes no statistics"):
        get("linear")(None, trio[1], statistics=trio[1])
    assert get("fisher").statistics == "fisher"
    assert "statistics" not in [p.name for p in get("fisher").parameters]
    with pytest.raises(RequestError, match="go together"):

        @method("forgetful", statistics="fisher")
        def forgetful(base, models, *, weight: float = 1.0): ...

    with pytest.raises(RequestError, match="go together"):

        @method("secretive")
        def secretive(base, models, *, statistics): ...


def test_a_difference_is_not_averaged(trio, tmp_path):
    arrays, models = trio
    vector = models[1] - models[0]
    with pytest.raises(AlgebraError, match="fisher averages models"):
        get("fisher")(None, [models[0], vector], statistics=opened(tmp_path, [fishers(0), fishers(1)]))
    merged = get("graft")(models[0], [vector], statistics=opened(tmp_path, [mask(0)]))
    expected = np.where(mask(0)["bias"], arrays[1]["bias"], arrays[0]["bias"])
    np.testing.assert_allclose(mg.compute(merged, "bias"), expected, rtol=1e-6, atol=1e-6)
