"""TSV-M, isotropic merging, OPCM and WUDI against the papers' formulas in f64, by NumPy's SVD."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from makers import BF16, python, read_model, write_adapter, write_model

import merganser as mg
from merganser.errors import AlgebraError, NonFiniteError, RequestError
from merganser.methods import get
from merganser.methods.merge._matrices import isometry, leading

METHODS = ["tsv_m", "iso_c", "iso_cts", "opcm", "wudi"]
MATRICES = {"layers.0.a.weight": (24, 15), "layers.1.b.weight": (11, 30), "layers.1.c.weight": (12, 12)}
OTHERS = {
    "norm.weight": (16,),
    "conv.weight": (4, 3, 3, 2),
    "experts": (2, 5, 6),
    "embed_tokens.weight": (20, 6),
    "lm_head.weight": (20, 6),
}


def arrays(seed, around=None, scale=0.1, dtype=np.float32):
    rng = np.random.default_rng(seed)
    found = {
        name: rng.standard_normal(shape) * scale + (0 if around is None else around[name].astype(np.float64))
        for name, shape in (MATRICES | OTHERS).items()
    }
    return {name: array.astype(dtype) for name, array in found.items()} | {"ids": np.arange(4) + seed}


@pytest.fixture
def trio(tmp_path):
    base = arrays(0, scale=1.0)
    found = [base, *(arrays(k, base) for k in (1, 2, 3))]
    opened = [mg.open(write_model(tmp_path / n, v)) for n, v in zip(["base", *"abc"], found, strict=True)]
    return opened[0], opened[1:], found


def deltas(found, name):
    return [model[name].astype(np.float64) - found[0][name] for model in found[1:]]


def changes(weights, found, names):
    return {n: mg.compute(weights, n).astype(np.float64) - found[0][n] for n in names}


def check(weights, found, expected, atol=2e-6):
    for name, array in expected.items():
        np.testing.assert_allclose(
            mg.compute(weights, name).astype(np.float64),
            found[0][name] + array,
            rtol=1e-6,
            atol=atol,
            err_msg=name,
        )


def polar(matrix):
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    return left @ right


# the papers' formulas, one matrix


def tsv_m(ds):
    count = max(1, min(ds[0].shape) // len(ds))
    parts = [np.linalg.svd(d, full_matrices=False) for d in ds]
    left = np.hstack([u[:, :count] for u, _, _ in parts])
    values = np.concatenate([s[:count] for _, s, _ in parts])
    right = np.vstack([v[:count] for _, _, v in parts])
    return polar(left) @ np.diag(values) @ polar(right)


def iso_c(ds):
    left, values, right = np.linalg.svd(sum(ds), full_matrices=False)
    return values.mean() * left @ right


def iso_cts(ds, fraction=0.8):
    rank = min(ds[0].shape)
    own = min(round((rank - int(rank * fraction)) / len(ds)), rank // len(ds))
    common = rank - own * len(ds)
    u, s, v = np.linalg.svd(sum(ds), full_matrices=False)
    lefts, values, rights = [u[:, :common]], [s[:common]], [v[:common]]
    for d in ds:
        left, value, right = np.linalg.svd(d - u[:, :common] @ u[:, :common].T @ d)
        lefts.append(left[:, :own])
        values.append(value[:own])
        rights.append(right[:own])
    return np.concatenate(values).mean() * polar(np.hstack(lefts)) @ polar(np.vstack(rights))


def opcm_step(merged, new, alpha):
    u, s, vt = np.linalg.svd(merged)
    share = np.cumsum(s) / np.cumsum(s)[-1]
    rank = int(np.argmax(share > alpha)) if alpha < 1 else len(s)
    inside = u.T @ new @ vt.T
    for i, j in itertools.product(range(len(u)), range(len(vt))):
        if (i < rank and j < rank) or i == j:
            inside[i, j] = 0
    return u @ inside @ vt


def opcm(models, alpha=0.5):
    """As the paper has it: divided by lambda_t after every step, norms over the whole model."""

    def norm(vector):
        return np.sqrt(sum((v**2).sum() for v in vector.values()))

    merged, scale, lengths = dict(models[0]), 1.0, [norm(models[0])]
    for model in models[1:]:
        lengths.append(norm(model))
        grown = {
            n: scale * merged[n] + (opcm_step(merged[n], v, alpha) if n in MATRICES else v)
            for n, v in model.items()
        }
        scale = norm(grown) / np.mean(lengths)
        merged = {n: v / scale for n, v in grown.items()}
    return merged


def loss(m, ds):
    return sum(np.linalg.norm((m - d) @ d.T) ** 2 / np.linalg.norm(d) ** 2 for d in ds)


def slope(m, ds):
    return sum(2 * (m - d) @ d.T @ d / np.linalg.norm(d) ** 2 for d in ds)


def adam(ds, steps=300, rate=1e-5):
    m = sum(ds)
    mean, square = np.zeros_like(m), np.zeros_like(m)
    for t in range(1, steps + 1):
        g = slope(m, ds)
        mean = 0.9 * mean + 0.1 * g
        square = 0.999 * square + 0.001 * g**2
        m = m - rate * (mean / (1 - 0.9**t)) / (np.sqrt(square / (1 - 0.999**t)) + 1e-8)
    return m


# the methods


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(
    ("name", "formula"), [("tsv_m", tsv_m), ("iso_c", iso_c), ("iso_cts", iso_cts), ("wudi", adam)]
)
def test_matrices_follow_the_formula_and_the_rest_is_averaged(trio, name, formula, count):
    base, models, found = trio
    found = found[: count + 1]
    merged = get(name)(base, models[:count], scale=0.7)
    check(merged, found, {n: 0.7 * formula(deltas(found, n)) for n in MATRICES})
    check(merged, found, {n: 0.7 * np.mean(deltas(found, n), axis=0) for n in OTHERS})
    assert np.array_equal(mg.compute(merged, "ids"), np.arange(4))
    assert merged.degree == 1.0


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.55, 1.0])
def test_iso_cts_divides_the_space_as_asked(trio, fraction):
    base, models, found = trio
    merged = get("iso_cts")(base, models, common_space_fraction=fraction)
    check(merged, found, {n: iso_cts(deltas(found, n), fraction) for n in MATRICES})


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_opcm_is_the_papers_recursion(trio, alpha, count):
    base, models, found = trio
    vectors = [{n: deltas(found, n)[k] for n in MATRICES | OTHERS} for k in range(count)]
    merged = get("opcm")(base, models[:count], alpha=alpha, scale=0.9)
    check(merged, found, {n: 0.9 * v for n, v in opcm(vectors, alpha).items()})


def test_opcm_by_tensor_keeps_the_norm_of_each(trio):
    base, models, found = trio
    merged = get("opcm")(base, models, scope="tensor")
    for name, change in changes(merged, found, MATRICES | OTHERS).items():
        lengths = [np.linalg.norm(d) for d in deltas(found, name)]
        assert np.linalg.norm(change) == pytest.approx(np.mean(lengths), rel=1e-5)
    ds = deltas(found, "layers.1.c.weight")
    expected = ds[0] + opcm_step(ds[0], ds[1], 0.5)
    expected = expected + opcm_step(expected, ds[2], 0.5)
    expected *= np.mean([np.linalg.norm(d) for d in ds]) / np.linalg.norm(expected)
    check(merged, found, {"layers.1.c.weight": expected})


def test_opcm_adds_only_what_is_orthogonal_to_what_is_merged(trio):
    base, models, found = trio
    merged = get("opcm")(base, models[:2], alpha=0.6)
    name = "layers.0.a.weight"
    first, _ = deltas(found, name)[:2]
    total = changes(merged, found, [name])[name]
    along = (total * first).sum() / (first**2).sum()
    u, s, vt = np.linalg.svd(first, full_matrices=False)
    rank = int((np.cumsum(s) <= 0.6 * s.sum()).sum())
    corner = u[:, :rank].T @ (total / along - first) @ vt[:rank].T
    assert rank > 2
    assert np.abs(corner).max() < 1e-4 * s[0]
    assert not np.allclose(total / along, first, atol=1e-3)


def test_opcm_depends_on_the_order(trio):
    base, models, _ = trio
    one, other = (get("opcm")(base, order) for order in (models, models[::-1]))
    assert not np.allclose(
        mg.compute(one, "layers.1.c.weight"), mg.compute(other, "layers.1.c.weight"), atol=1e-3
    )


@pytest.mark.parametrize("ridge", [1e-9, 1e-6, 0.5])
def test_wudi_exact_has_no_slope_left(trio, ridge):
    base, models, found = trio
    merged = get("wudi")(base, models, solver="exact", ridge=ridge)
    for name, m in changes(merged, found, MATRICES).items():
        ds = deltas(found, name)
        mean = sum(np.trace(d.T @ d) / np.linalg.norm(d) ** 2 for d in ds) / m.shape[1]
        left = slope(m, ds) + 2 * ridge * mean * (m - sum(ds))
        assert np.abs(left).max() < 1e-5 * np.abs(slope(sum(ds), ds)).max()


def test_wudi_lowers_the_loss_and_exact_is_its_floor(trio):
    base, models, found = trio
    start, some, all_of_it, exact = (
        changes(get("wudi")(base, models, **options), found, MATRICES)
        for options in ({"steps": 0}, {"steps": 30}, {"steps": 300}, {"solver": "exact", "ridge": 1e-9})
    )
    for name in MATRICES:
        ds = deltas(found, name)
        np.testing.assert_allclose(start[name], sum(ds), atol=1e-6)
        losses = [loss(found_there[name], ds) for found_there in (start, some, all_of_it, exact)]
        assert losses[0] > losses[1] > losses[2] > losses[3]


def test_wudi_exact_with_a_large_ridge_is_the_sum(trio):
    base, models, found = trio
    merged = get("wudi")(base, models, solver="exact", ridge=1e9)
    check(merged, found, {n: sum(deltas(found, n)) for n in MATRICES})


@pytest.mark.models
def test_wudi_adam_is_torchs_adam_on_the_loss(trio):
    import torch

    torch.set_num_threads(1)
    base, models, found = trio
    merged = get("wudi")(base, models, steps=40, rate=1e-3)
    for name in MATRICES:
        ds = [torch.tensor(d) for d in deltas(found, name)]
        m = torch.nn.Parameter(sum(ds).clone())
        optimiser = torch.optim.Adam([m], lr=1e-3)
        for _ in range(40):
            optimiser.zero_grad()
            sum((((m - d) @ d.T) ** 2).sum() / (d**2).sum() for d in ds).backward()
            optimiser.step()
        check(merged, found, {name: m.detach().numpy()}, atol=1e-5)


# laws


def methods():
    return [(name, {}) for name in METHODS] + [("wudi", {"solver": "exact"}), ("opcm", {"scope": "tensor"})]


@pytest.mark.parametrize(("name", "options"), methods())
def test_models_that_are_the_base_give_the_base(tmp_path, name, options):
    base = arrays(0, dtype=BF16)
    opened = mg.open(write_model(tmp_path / "base", base))
    same = [mg.open(write_model(tmp_path / n, base), name=n) for n in "ab"]
    out = tmp_path / "out"
    get(name)(opened, same, **options).save(out, sync=False)
    found = read_model(out)
    assert all(found[n].tobytes() == v.tobytes() for n, v in base.items())


@pytest.mark.parametrize(
    ("name", "options"),
    [("tsv_m", {}), ("opcm", {}), ("opcm", {"scope": "tensor"}), ("wudi", {}), ("wudi", {"solver": "exact"})],
)
def test_one_model_gives_itself(trio, name, options):
    base, models, found = trio
    merged = get(name)(base, models[:1], **options)
    check(merged, found, {n: deltas(found, n)[0] for n in MATRICES | OTHERS}, atol=1e-6)


@pytest.mark.parametrize("name", ["iso_c", "iso_cts"])
def test_the_spectrum_is_flat_and_its_sum_is_kept(trio, name):
    base, models, found = trio
    one = changes(get(name)(base, models[:1]), found, MATRICES)
    for matrix, change in one.items():
        values = np.linalg.svd(change)[1]
        before = np.linalg.svd(deltas(found, matrix)[0])[1]
        np.testing.assert_allclose(values, before.mean(), rtol=1e-4)
    several = changes(get("iso_c")(base, models), found, MATRICES)
    for matrix, change in several.items():
        values, before = (np.linalg.svd(m)[1] for m in (change, sum(deltas(found, matrix))))
        np.testing.assert_allclose(values, before.mean(), rtol=1e-4)


@pytest.mark.parametrize("name", ["tsv_m", "iso_c", "iso_cts", "wudi"])
def test_the_order_of_the_models_does_not_matter(trio, name):
    base, models, _ = trio
    one, *others = (get(name)(base, order) for order in itertools.permutations(models))
    for matrix in MATRICES:
        first = mg.compute(one, matrix)
        for other in others:
            np.testing.assert_allclose(mg.compute(other, matrix), first, rtol=1e-5, atol=3e-6)


def test_a_model_given_twice_is_merged_as_its_leading_half(trio):
    base, models, found = trio
    merged = get("tsv_m")(base, [models[0], models[0].relabel("again")])
    expected = {}
    for name in MATRICES:
        u, s, v = np.linalg.svd(deltas(found, name)[0], full_matrices=False)
        half = len(s) // 2
        expected[name] = (u[:, :half] * s[:half]) @ v[:half]
    check(merged, found, expected)


def test_more_models_than_directions(tmp_path):
    """Three models of a row: each keeps its one direction."""
    rng = np.random.default_rng(5)
    base = {"w": rng.standard_normal((1, 7)).astype(np.float32)}
    models = [{"w": rng.standard_normal((1, 7)).astype(np.float32)} for _ in range(3)]
    opened = [mg.open(write_model(tmp_path / str(k), m)) for k, m in enumerate([base, *models])]
    found = [base, *models]
    check(get("tsv_m")(opened[0], opened[1:]), found, {"w": tsv_m(deltas(found, "w"))})
    for name in METHODS[1:]:
        assert np.isfinite(mg.compute(get(name)(opened[0], opened[1:]), "w")).all()


def test_directions_without_length_take_no_part(tmp_path):
    """Adapters of rank 2: nothing but what they change is merged."""
    rng = np.random.default_rng(2)
    base = {"w.weight": rng.standard_normal((16, 12)).astype(np.float32)}
    factors = [[rng.standard_normal(s).astype(np.float32) for s in ((16, 2), (2, 12))] for _ in range(2)]
    opened = mg.open(write_model(tmp_path / "base", base))
    adapters = [
        mg.open(write_adapter(tmp_path / f"lora{k}", {"w": (b, a)}, alpha=2.0))
        for k, (b, a) in enumerate(factors)
    ]
    ds = [b.astype(np.float64) @ a for b, a in factors]
    parts = [np.linalg.svd(d, full_matrices=False) for d in ds]
    left = np.hstack([u[:, :2] for u, _, _ in parts])
    right = np.vstack([v[:2] for _, _, v in parts])
    values = np.concatenate([s[:2] for _, s, _ in parts])
    found = [base]
    check(get("tsv_m")(opened, adapters), found, {"w.weight": polar(left) * values @ polar(right)}, atol=2e-5)
    u, s, v = np.linalg.svd(sum(ds), full_matrices=False)
    check(get("iso_c")(opened, adapters), found, {"w.weight": s[:4].mean() * u[:, :4] @ v[:4]}, atol=2e-5)
    change = mg.compute(get("iso_cts")(opened, adapters), "w.weight").astype(np.float64) - base["w.weight"]
    assert np.linalg.matrix_rank(change, tol=1e-4) == 4
    for name in ("opcm", "wudi"):
        assert np.isfinite(mg.compute(get(name)(opened, adapters), "w.weight")).all()


def test_one_task_that_leaves_a_matrix_alone_counts_for_nothing_there(trio, tmp_path):
    base, models, found = trio
    still = mg.open(write_model(tmp_path / "still", found[0]))
    name = "layers.1.c.weight"
    wudi = [get("wudi")(base, group) for group in ([models[0], still, models[1]], models[:2])]
    np.testing.assert_allclose(*(mg.compute(w, name) for w in wudi), atol=1e-6)
    iso = [get("iso_c")(base, group) for group in ([models[0], still, models[1]], models[:2])]
    np.testing.assert_allclose(*(mg.compute(w, name) for w in iso), atol=1e-6)
    one = get("opcm")(base, [still, models[0]], scope="tensor")
    check(one, found, {name: deltas(found, name)[0] / 2})


# which tensors


def test_all_or_none_count_as_matrices(trio):
    base, models, found = trio
    everything = get("iso_c")(base, models, matrices="all")
    two = [n for n, shape in (MATRICES | OTHERS).items() if len(shape) == 2]
    assert "embed_tokens.weight" in two
    check(everything, found, {n: iso_c(deltas(found, n)) for n in two})
    nothing = get("iso_c")(base, models, matrices="none")
    check(nothing, found, {n: np.mean(deltas(found, n), axis=0) for n in MATRICES | OTHERS})


def test_the_family_file_says_which_are_embeddings_and_heads(tmp_path):
    config = {
        "model_type": "gpt2", "vocab_size": 9, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 5,
        "tie_word_embeddings": False, "architectures": ["GPT2LMHeadModel"],
    }  # fmt: skip
    shapes = {"wte.weight": (9, 8), "wpe.weight": (5, 8), "ln_f.weight": (8,), "ln_f.bias": (8,)}
    for norm in ("ln_1", "ln_2"):
        shapes |= {f"h.0.{norm}.weight": (8,), f"h.0.{norm}.bias": (8,)}
    for module, (rows, columns) in {
        "attn.c_attn": (8, 24), "attn.c_proj": (8, 8), "mlp.c_fc": (8, 32), "mlp.c_proj": (32, 8)
    }.items():  # fmt: skip
        shapes |= {f"h.0.{module}.weight": (rows, columns), f"h.0.{module}.bias": (columns,)}
    shapes = {f"transformer.{n}": s for n, s in shapes.items()} | {"lm_head.weight": (9, 8)}
    rng = np.random.default_rng(1)
    found = [{n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()} for _ in range(3)]
    opened = [mg.open(write_model(tmp_path / str(k), m, config)) for k, m in enumerate(found)]
    merged = get("iso_c")(opened[0], opened[1:])
    for name, shape in shapes.items():
        is_matrix = len(shape) == 2 and ".h." in name
        formula = iso_c if is_matrix else lambda ds: np.mean(ds, axis=0)
        check(merged, found, {name: formula(deltas(found, name))}, atol=1e-5)
    for options in ({"steps": 5, "rate": 0.01}, {"solver": "exact", "ridge": 0.1}):
        merged = get("wudi")(opened[0], opened[1:], **options)
        name = "transformer.h.0.mlp.c_proj.weight"  # stored [inputs, outputs]
        ds = [d.T for d in deltas(found, name)]
        if "steps" in options:
            expected = adam(ds, **options)
        else:
            h = sum(d.T @ d / np.linalg.norm(d) ** 2 for d in ds)
            pull = 0.1 * np.trace(h) / len(h) * np.eye(len(h))
            expected = (
                sum(d @ d.T @ d / np.linalg.norm(d) ** 2 for d in ds) + sum(ds) @ pull
            ) @ np.linalg.inv(h + pull)
        check(merged, found, {name: expected.T}, atol=2e-5)


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "wte.weight",
        "shared.weight",
        "lm_head.weight",
        "score.weight",
        "head.weight",
    ],
)
def test_without_a_family_file_names_say_it(tmp_path, name):
    rng = np.random.default_rng(1)
    found = [
        {n: rng.standard_normal((6, 5)).astype(np.float32) for n in (name, "headroom.weight")}
        for _ in range(3)
    ]
    opened = [mg.open(write_model(tmp_path / str(k), m)) for k, m in enumerate(found)]
    merged = get("iso_c")(opened[0], opened[1:])
    check(merged, found, {name: np.mean(deltas(found, name), axis=0)})
    check(merged, found, {"headroom.weight": iso_c(deltas(found, "headroom.weight"))}, atol=1e-5)


# errors


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("iso_cts", {"common_space_fraction": 1.5}, "common_space_fraction must be in"),
        ("opcm", {"alpha": -0.1}, "alpha must be in"),
        ("wudi", {"steps": -1}, "steps and rate"),
        ("wudi", {"rate": float("nan")}, "steps and rate"),
        ("wudi", {"ridge": 0.0}, "ridge must be above 0"),
    ],
)
def test_values_out_of_range(trio, name, options, told):
    base, models, _ = trio
    with pytest.raises(RequestError, match=told):
        get(name)(base, models, **options)


@pytest.mark.parametrize("name", METHODS)
def test_other_shapes_and_names_are_errors_before_a_byte_is_read(trio, tmp_path, name):
    base, models, found = trio
    other = dict(found[1])
    other["layers.0.a.weight"] = other["layers.0.a.weight"][:-1]
    with pytest.raises(AlgebraError, match=r"'layers\.0\.a\.weight' has shape \[23, 15\] in 'x'"):
        get(name)(base, [models[0], mg.open(write_model(tmp_path / "x", other))])
    del other["layers.0.a.weight"]
    with pytest.raises(AlgebraError, match="lacks 1 of the"):
        get(name)(base, [models[0], mg.open(write_model(tmp_path / "y", other))])


@pytest.mark.parametrize(("name", "options"), methods())
def test_a_nan_names_tensor_and_parent(trio, tmp_path, name, options):
    base, models, found = trio
    broken = {n: v.copy() for n, v in found[1].items()}
    broken["layers.0.a.weight"][3, 4] = np.inf
    model = mg.open(write_model(tmp_path / "broken", broken))
    with pytest.raises(NonFiniteError, match=r"'layers\.0\.a\.weight' of parent 'broken' holds Inf"):
        get(name)(base, [models[0], model], **options).save(tmp_path / "out", sync=False)


# factors


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (30, 8), (8, 30), (20, 20)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_leading_factors_and_isometry(shape, dtype, scale):
    rng = np.random.default_rng(3)
    matrix = (rng.standard_normal(shape) * scale).astype(dtype)
    count = max(1, min(shape) // 2)
    left, values, right = leading(matrix, count)
    u, s, v = np.linalg.svd(matrix.astype(np.float64) / scale, full_matrices=False)
    np.testing.assert_allclose(values / scale, s[:count], rtol=1e-9)
    np.testing.assert_allclose(
        (left * values) @ right.T / scale, (u[:, :count] * s[:count]) @ v[:count], atol=1e-9
    )
    for factor in (left, right):
        np.testing.assert_allclose(factor.T @ factor, np.eye(count), atol=1e-9)
    turned, all_of_them = isometry(matrix)
    np.testing.assert_allclose(turned, u @ v, atol=1e-6)
    np.testing.assert_allclose(all_of_them / scale, s, rtol=1e-6)


def test_factors_of_a_spectrum_of_six_orders():
    """As accurate as the module says."""
    rng = np.random.default_rng(4)
    u, v = (np.linalg.qr(rng.standard_normal((60, 40)))[0] for _ in range(2))
    s = np.logspace(0, -5.5, 40)
    matrix = ((u * s) @ v.T).astype(np.float32)
    exact = np.linalg.svd(matrix.astype(np.float64))[1][:40]
    _, values, _ = leading(matrix, 40)
    assert len(values) == 40
    assert (np.abs(values / exact - 1) < 1e-14 + 1e-15 * (exact[0] / exact) ** 2).all()


def test_what_is_below_the_cut_is_left_out():
    rng = np.random.default_rng(4)
    u, v = (np.linalg.qr(rng.standard_normal((30, 10)))[0] for _ in range(2))
    matrix = (u * [3, 2, 1, 1e-8, 1e-9, 0, 0, 0, 0, 0]) @ v.T
    left, values, right = leading(matrix, 10)
    assert (left.shape, right.shape) == ((30, 3), (30, 3))
    np.testing.assert_allclose(values, [3, 2, 1], rtol=1e-9)
    np.testing.assert_allclose(isometry(matrix)[0], u[:, :3] @ v[:, :3].T, atol=1e-9)
    np.testing.assert_allclose(leading(matrix, 10, least=1.5)[1], [3, 2], rtol=1e-9)
    for empty in (np.zeros((4, 3)), np.zeros((3, 0)), np.zeros((0, 3))):
        assert leading(empty, 3)[1].size == 0
        assert isometry(empty)[0].shape == empty.shape
        assert not isometry(empty)[0].any()


# bytes and memory


@pytest.mark.parametrize(("name", "options"), methods())
def test_the_same_bytes_for_any_threads_and_tile(tmp_path, name, options):
    options = options | ({"steps": 5} if name == "wudi" and not options else {})
    rng = np.random.default_rng(0)
    shapes = {"a.weight": (530, 520), "b.weight": (100, 60), "norm.weight": (70,)}
    for model in ("base", "x", "y"):
        write_model(tmp_path / model, {n: rng.standard_normal(s).astype(BF16) for n, s in shapes.items()})
    base, *models = (mg.open(tmp_path / n) for n in ("base", "x", "y"))
    results = []
    for k, (threads, tile) in enumerate([(1, 1 << 18), (2, 1 << 18), (3, 0)]):
        get(name)(base, models, **options).save(tmp_path / f"o{k}", sync=False, threads=threads, tile=tile)
        results.append((tmp_path / f"o{k}/model.safetensors").read_bytes())
    assert results[0] == results[1] == results[2]


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """Wide and tall matrices, so large that what a method needs stands out from what the process holds."""
    home = tmp_path_factory.mktemp("larger")
    rng = np.random.default_rng(0)
    for model in ("base", "x", "y"):
        tensors = {
            "a.weight": (500, 1600),
            "b.weight": (1600, 500),
            "c.weight": (800, 800),
            "d.weight": (800, 800),
        }
        write_model(home / model, {n: rng.standard_normal(s).astype(BF16) for n, s in tensors.items()})
    return home


BYTES = """
import sys
import merganser as mg
from merganser.methods import get
home, out = sys.argv[1:]
base, *models = (mg.open(f"{home}/{n}") for n in ("base", "x", "y"))
for name in ("tsv_m", "opcm"):
    print(get(name)(base, models).save(f"{out}-{name}", threads=2, sync=False, memory=2**33).digest)
"""


def test_the_same_bytes_for_any_threads_of_the_matrix_library(larger, tmp_path):
    found = []
    for count in "13":
        variables = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
        done = python(BYTES, larger, tmp_path / f"o{count}", env=dict.fromkeys(variables, count))
        assert done.returncode == 0, done.stderr
        found.append(done.stdout)
    assert found[0] == found[1]


PEAK = """
import json, sys
import merganser as mg
from merganser.methods import get
home, out, name, options, memory = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4]), int(sys.argv[5])
base, *models = (mg.open(f"{home}/{n}") for n in ("base", "x", "y"))
merged = get(name)(base, models, **options)
try:
    merged.save(out, memory=memory, threads=2, sync=False)
except mg.MerganserError as error:
    print(error)
    sys.exit(2)
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:")) * 1024)
"""


@pytest.mark.parametrize(("name", "options"), methods())
def test_the_stated_memory_is_enough(larger, tmp_path, name, options):
    options = options | ({"steps": 2} if name == "wudi" and not options else {})
    arguments = (larger, tmp_path / "out", name, json.dumps(options))
    refused = python(PEAK, *arguments, 100 * 2**20)
    assert refused.returncode == 2, refused.stdout + refused.stderr
    need = (int(refused.stdout.rsplit("raise it to ", 1)[1].split()[0]) + 2) * 2**20
    done = python(PEAK, *arguments, need)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout) <= need
