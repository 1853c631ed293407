"""What weights mean: names, degrees, coefficients, errors that name the tensor and the nearest name."""

from __future__ import annotations

import numpy as np
import pytest
from makers import BF16, normal, read_model, same_bytes, write_adapter, write_file, write_model

import merganser as mg
from merganser.errors import AlgebraError, NonFiniteError, RequestError

NAMES = ("layers.0.attn.w", "layers.0.mlp.w", "layers.1.attn.w", "layers.1.mlp.w", "norm")


def tensors(seed):
    return {name: normal(3, 4, seed=seed * 10 + k) for k, name in enumerate(NAMES)}


@pytest.fixture
def models(opened):
    return [opened(name, tensors(k)) for k, name in enumerate(("base", "math", "code"))]


def values(weights):
    return {name: mg.compute(weights, name) for name in weights}


def near(found, wanted):
    assert list(found) == list(wanted)
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-6, atol=1e-6, err_msg=name)


# a mapping


def test_weights_are_a_mapping_of_names(models):
    base, *_ = models
    assert list(base) == list(NAMES) and len(base) == 5 and "norm" in base and "norms" not in base
    assert base["norm"].shape == (3, 4) and base.label == "base"
    assert "'base': 5 tensors, degree 1" in repr(base)


def test_an_unknown_name_is_an_error_with_the_nearest(models):
    with pytest.raises(
        AlgebraError, match=r"'base' has no tensor 'layers\.0\.mpl\.w'; did you mean 'layers\.0\.mlp\.w'"
    ):
        models[0]["layers.0.mpl.w"]


def test_weights_are_not_changed_by_what_is_made_of_them(models):
    base, math, _ = models
    _ = base + (math - base), base.select("norm"), base.rename({"norm": "n"}), base.relabel("x"), base * 3
    assert list(base) == list(NAMES) and base.degree == 1 and base.label == "base"
    assert np.array_equal(mg.compute(base, "norm"), tensors(0)["norm"])


# arithmetic and degree


@pytest.mark.parametrize(
    ("make", "degree"),
    [
        (lambda a, b, c: a, 1),
        (lambda a, b, c: a - b, 0),
        (lambda a, b, c: a + b, 2),
        (lambda a, b, c: 0.5 * a + 0.25 * b, 0.75),
        (lambda a, b, c: (a + b + c) / 3, 1),
        (lambda a, b, c: -a, -1),
        (lambda a, b, c: a + (b - c) * 7, 1),
        (lambda a, b, c: (a * b) / b, 1),
        (lambda a, b, c: a * mg.sign(b), 1),
        (lambda a, b, c: sum([a, b, c]), 3),
        (lambda a, b, c: mg.mean(a, b, c), 1),
        (lambda a, b, c: mg.weighted_sum([a, b], [0.5, 0.1]), 0.6),
        (lambda a, b, c: mg.slerp(a, b, 0.2), 1),
        (lambda a, b, c: mg.slerp(a - c, b - c, 0.2), 0),
        (lambda a, b, c: mg.trim(a - b, 0.5), 0),
        (lambda a, b, c: mg.disjoint_mean([a - c, b - c], mg.elect_sign([a - c, b - c])), 0),
        (lambda a, b, c: (a * b + b * c) / (b + c), 1),
    ],
)
def test_degree(models, make, degree):
    assert make(*models).degree == pytest.approx(degree)


@pytest.mark.parametrize(
    "make",
    [
        lambda a, b, c: a + b - c,
        lambda a, b, c: 0.3 * a + b * 0.5 - c / 4,
        lambda a, b, c: -(a - b) + 2,
        lambda a, b, c: (a * b + b * c) / 3,
        lambda a, b, c: sum([a, b, c]),
    ],
)
def test_arithmetic_is_numpys(models, make):
    arrays = [tensors(k) for k in range(3)]
    near(values(make(*models)), {n: make(*(a[n] for a in arrays)) for n in NAMES})


def test_words_for_vectors_refuse_models(models):
    base, math, _ = models
    for word in (
        lambda: mg.trim(math, 0.5),
        lambda: mg.trim_band(math, 0.5, 0.1),
        lambda: mg.random_drop(math, 0.5, seed=0),
        lambda: mg.elect_sign([math, math]),
        lambda: mg.disjoint_mean([math], mg.elect_sign([math - base])),
    ):
        with pytest.raises(
            AlgebraError, match=r"task vectors \(degree 0\), but 'math' has degree 1; subtract the base"
        ):
            word()


def test_slerp_of_different_degrees_is_an_error(models):
    base, math, code = models
    with pytest.raises(AlgebraError, match=r"different degree.*'base' 1.*0"):
        mg.slerp(base, math - code, 0.5)


def test_tensors_of_different_degrees_have_no_common_one(models):
    mixed = models[0] * {"norm": 2.0, "*": 1.0}
    with pytest.raises(AlgebraError, match="different degrees"):
        _ = mixed.degree
    assert mixed.entry("norm").degree == 2


def test_division_by_zero_is_an_error(models):
    with pytest.raises(AlgebraError, match="division of 'base' by zero"):
        _ = models[0] / 0


# coefficients by name


@pytest.mark.parametrize(
    "weights",
    [
        {"layers.0.*": 0.25, "*": 1.5},
        {r"re:^layers\.0\.": 0.25, "*": 1.5},
        lambda name: 0.25 if name.startswith("layers.0") else 1.5,
    ],
    ids=["glob", "regular expression", "function"],
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_coefficients_by_name(models, weights, side):
    found = weights * models[0] if side == "left" else models[0] * weights
    near(values(found), {n: t * (0.25 if n.startswith("layers.0") else 1.5) for n, t in tensors(0).items()})


def test_the_first_pattern_that_matches_counts(models):
    found = values(models[0] * {"*.mlp.*": 2.0, "layers.1.*": 3.0, "*": 4.0})
    factors = dict(zip(NAMES, (4, 2, 3, 2, 4), strict=True))
    near(found, {n: t * factors[n] for n, t in tensors(0).items()})


def test_coefficients_must_cover_every_tensor(models):
    with pytest.raises(
        AlgebraError, match=r"no coefficient for tensor 'norm'.*'layers\.\*'.*add a last pattern '\*'"
    ):
        _ = models[0] * {"layers.*": 1.0}


def test_a_bad_regular_expression_is_an_error(models):
    with pytest.raises(RequestError, match=r"'re:\(' is not a regular expression"):
        models[0].select("re:(")


@pytest.mark.parametrize("density", [-0.1, 1.01, float("nan")])
def test_densities_are_checked(models, density):
    base, math, _ = models
    for word in (lambda v: mg.trim(v, density), lambda v: mg.random_drop(v, density, seed=1)):
        finite = density == density
        said = (
            r"density \(tensor 'layers\.0\.attn\.w'\) must be in \[0, 1\]"
            if finite
            else "a finite number, not nan"
        )
        with pytest.raises(RequestError if finite else AlgebraError, match=said):
            word(math - base)


# names


def test_select_and_drop(models):
    base = models[0]
    assert list(base.select("layers.0.*")) == list(NAMES[:2])
    assert list(base.select("*.mlp.*", "norm")) == [NAMES[1], NAMES[3], NAMES[4]]
    assert list(base.select(r"re:layers\.\d\.attn")) == [NAMES[0], NAMES[2]]
    assert list(base.drop("layers.*")) == ["norm"]


@pytest.mark.parametrize("word", ["select", "drop"])
def test_a_pattern_that_matches_nothing_is_an_error(models, word):
    with pytest.raises(AlgebraError, match="no tensor matches 'nrom'; did you mean 'norm'"):
        getattr(models[0], word)("nrom")


def test_rename(models, tmp_path):
    base = models[0]
    renamed = base.rename({"norm": "final_norm"})
    assert list(renamed) == [*NAMES[:4], "final_norm"]
    assert list(base.rename(lambda n: "model." + n)) == ["model." + n for n in NAMES]
    with pytest.raises(AlgebraError, match="no tensor 'nrm' to rename; did you mean 'norm'"):
        base.rename({"nrm": "x"})
    with pytest.raises(AlgebraError, match=r"two tensors the name 'norm'"):
        base.rename({NAMES[0]: "norm"})
    renamed.save(tmp_path / "out", partial=True, sync=False)
    assert same_bytes(read_model(tmp_path / "out")["final_norm"], tensors(0)["norm"])


def test_map(models):
    found = models[0].map(lambda name, e: abs(e) if "mlp" in name else e * 2)
    near(values(found), {n: abs(t) if "mlp" in n else t * 2 for n, t in tensors(0).items()})
    with pytest.raises(AlgebraError, match=r"map: the function gave 3 for tensor 'layers\.0\.attn\.w'"):
        models[0].map(lambda name, e: 3)


def test_override(models):
    base, math, _ = models
    found = base.override(math.select("*.mlp.*"))
    near(values(found), {n: tensors(1 if "mlp" in n else 0)[n] for n in NAMES})
    with pytest.raises(AlgebraError, match=r"'math' would put in tensors that 'base' lacks: new\.norm"):
        base.override(math.rename({"norm": "new.norm"}))


# what does not fit


def test_shapes_that_differ_are_an_error_that_shows_them(opened):
    a, b = opened("a", w=normal(3, 4)), opened("b", w=normal(4, 3))
    for word in (
        lambda: a + b,
        lambda: a - b,
        lambda: a * b,
        lambda: mg.slerp(a, b, 0.5),
        lambda: mg.mean(a, b),
    ):
        with pytest.raises(AlgebraError, match=r"'w' has shape \[3, 4\] in 'a' and \[4, 3\] in 'b'"):
            word()


def test_missing_tensors_are_an_error_with_the_nearest_name(opened):
    a, b = opened("a", w=normal(3), lm_head=normal(3)), opened("b", w=normal(3), lmhead=normal(3))
    with pytest.raises(
        AlgebraError, match=r"'b' lacks 1 of the 2 tensors of 'a': lm_head; did you mean 'lmhead'"
    ):
        a + b


def test_a_difference_has_the_names_of_where_it_starts(opened):
    base, tune = opened("base", w=normal(3)), opened("tune", w=normal(3, seed=1), extra=normal(9))
    assert list(tune.drop("extra") - base) == ["w"]
    for join in (lambda: tune - base, lambda: 0.5 * base + 0.5 * tune, lambda: mg.slerp(base, tune, 0.5)):
        with pytest.raises(
            AlgebraError, match=r"'tune' has 1 tensor that 'base' lacks.*after \.drop\(\"extra\"\)"
        ):
            join()
    assert list(tune - tune.relabel("start").select("w")) == [
        "w"
    ]  # what was left out on purpose is not missed
    with pytest.raises(AlgebraError, match=r"lacks 1 of the 2 tensors"):
        base - tune


def test_dtypes_may_differ_and_the_result_has_the_bases(opened, tmp_path):
    a, b = opened("a", w=normal(50, dtype=BF16)), opened("b", w=normal(50, seed=1))
    (0.5 * a + 0.5 * b).save(tmp_path / "out", sync=False)
    exact = normal(50, dtype=BF16).astype(np.float32) * np.float32(0.5) + normal(50, seed=1) * np.float32(0.5)
    assert same_bytes(read_model(tmp_path / "out")["w"], exact.astype(BF16))


def test_a_number_that_the_first_models_precision_cannot_hold_is_an_error(opened, tmp_path):
    a, b = opened("a", w=normal(3, dtype=np.float16)), opened("b", w=np.array([1e30, 1, 1], BF16))
    with pytest.raises(NonFiniteError):
        (0.5 * a + 0.5 * b).save(tmp_path / "out", sync=False)


def test_an_unknown_dtype_is_an_error_with_the_nearest(models, tmp_path):
    with pytest.raises(RequestError, match="unknown dtype 'bflot16'; did you mean 'bfloat16'"):
        models[0].save(tmp_path / "out", dtype="bflot16")
    with pytest.raises(RequestError, match="must be a float"):
        models[0].save(tmp_path / "out", dtype="int8")


def test_a_number_is_not_weights(models, tmp_path):
    with pytest.raises(AlgebraError, match="is a number, not a tensor"):
        mg.norm(models[0]).save(tmp_path / "out")


# integers and bools


@pytest.mark.parametrize("order", ["base first", "base last"])
def test_integers_and_bools_come_from_the_base(opened, tmp_path, order):
    base = opened("base", w=normal(4), ids=np.arange(5), mask=np.array([True, False]))
    tune = opened("tune", w=normal(4, seed=1), ids=np.arange(5) + 7, mask=np.array([False, False]))
    vector = 0.5 * (tune - base)
    (base + vector if order == "base first" else vector + base).save(
        tmp_path / "out", sync=False, dtype="bf16"
    )
    found = read_model(tmp_path / "out")
    assert same_bytes(found["ids"], np.arange(5)) and same_bytes(found["mask"], np.array([True, False]))
    assert found["w"].dtype == BF16


def test_integers_of_an_average_come_from_the_first(opened, tmp_path):
    parents = [opened(f"m{k}", w=normal(4, seed=k), ids=np.arange(5) * k) for k in range(1, 4)]
    mg.mean(*parents).save(tmp_path / "out", sync=False)
    assert same_bytes(read_model(tmp_path / "out")["ids"], np.arange(5))


@pytest.mark.parametrize("kind", [np.float32, np.float16, BF16])
@pytest.mark.parametrize("way", ["average", "task vector", "slerp"])
@pytest.mark.parametrize("first", ["integers", "floats"])
def test_integers_that_another_model_stores_as_floats_stay_integers(opened, tmp_path, kind, way, first):
    ids = np.arange(250).reshape(5, 50)
    whole = opened("whole", w=normal(4), steps=ids)
    floats = opened("floats", w=normal(4, seed=1), steps=ids.astype(kind))
    a, b = (whole, floats) if first == "integers" else (floats, whole)
    made = {
        "average": lambda: 0.25 * a + 0.75 * b,
        "task vector": lambda: a + 0.5 * (b - a),
        "slerp": lambda: mg.slerp(a, b, 0.5),
    }[way]()
    made.save(tmp_path / "out", sync=False, dtype="bf16")
    assert same_bytes(read_model(tmp_path / "out")["steps"], ids)


def test_an_integer_tensor_against_a_float_one_of_other_values_is_an_error(opened):
    a, b = opened("a", w=np.arange(4)), opened("b", w=normal(4))
    for pair in ((a, b), (b, a)):
        with pytest.raises(
            AlgebraError,
            match=r"'w' is an integer or bool tensor in 'a' and a float tensor in 'b', with other values",
        ):
            pair[0] + pair[1]
    many = np.zeros((300, 300), np.int8)  # codes of a quantized matrix are no buffer
    with pytest.raises(AlgebraError, match="no small buffer"):
        opened("c", w=many) + opened("d", w=many.astype(np.float32))


def test_constants_are_carried_and_may_be_missing(opened, tmp_path):
    speeds = np.array([1.0, 0.1, 0.01], np.float32)
    name = "layers.0.attn.rotary_emb.inv_freq"
    old = opened("old", {"w": normal(4), name: speeds})
    new = opened("new", {"w": normal(4, seed=1)})
    for made, has in (
        (0.3 * old + 0.7 * new, True),
        (0.3 * new + 0.7 * old, False),
        (old + (new - old), True),
    ):
        made.save(tmp_path / "out", sync=False, overwrite=True, dtype="bf16")
        found = read_model(tmp_path / "out")
        assert (name in found) == has
        assert not has or same_bytes(found[name], speeds)
    with pytest.raises(AlgebraError, match="is a constant"):
        old[name] * 2


def test_integers_are_never_computed_with(opened):
    with pytest.raises(
        AlgebraError, match=r"'w' of 'a' is I64: integer and bool tensors and constants are carried"
    ):
        opened("a", w=np.arange(4))["w"] * 2


# vectors and adapters


@pytest.fixture
def adapter(tmp_path):
    left, right = normal(3, 2, seed=70), normal(2, 4, seed=71)
    directory = write_adapter(tmp_path / "lora", {"layers.0.attn": (left, right)}, alpha=6.0)
    return directory, 3 * left @ right


def lora_model(tmp_path, name="model"):
    found = {"layers.0.attn.weight": normal(3, 4, seed=1), "layers.0.mlp.weight": normal(5, seed=2)}
    return mg.open(write_model(tmp_path / name, found)), found


def test_an_adapter_is_a_vector_that_may_cover_a_part(tmp_path, adapter):
    directory, delta = adapter
    base, arrays = lora_model(tmp_path)
    vector = mg.open(directory)
    assert vector.degree == 0 and list(vector) == ["layers.0.attn.weight"]
    merged = base + 0.5 * vector
    assert merged.degree == 1
    merged.save(tmp_path / "out", sync=False)
    found = read_model(tmp_path / "out")
    assert same_bytes(found["layers.0.mlp.weight"], arrays["layers.0.mlp.weight"])
    np.testing.assert_allclose(
        found["layers.0.attn.weight"], arrays["layers.0.attn.weight"] + 0.5 * delta, rtol=1e-5, atol=1e-6
    )


def test_an_adapter_can_come_first_and_be_taken_away(tmp_path, adapter):
    directory, delta = adapter
    base, arrays = lora_model(tmp_path)
    vector, name = mg.open(directory), "layers.0.attn.weight"
    np.testing.assert_allclose(mg.compute(vector + base, name), arrays[name] + delta, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mg.compute(base - vector, name), arrays[name] - delta, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mg.compute(base + vector - vector, name), arrays[name], rtol=1e-5, atol=1e-5)
    assert list(base - vector) == list(arrays) and (vector + base).origin is base.origin


def test_an_adapter_for_other_tensors_is_an_error_with_the_nearest_name(tmp_path, adapter):
    directory, _ = adapter
    base = mg.open(write_model(tmp_path / "m", {"layers.0.attm.weight": normal(3, 4)}))
    with pytest.raises(
        AlgebraError,
        match=r"changes 1 tensors that 'm' does not have: .*did you mean 'layers\.0\.attm\.weight'",
    ):
        base + mg.open(directory)


def test_an_adapter_of_another_shape_is_an_error(tmp_path, adapter):
    directory, _ = adapter
    base = mg.open(write_model(tmp_path / "m", {"layers.0.attn.weight": normal(4, 4)}))
    with pytest.raises(AlgebraError, match=r"shape \[4, 4\] in 'm' and \[3, 4\] in 'lora'"):
        base + mg.open(directory)


def test_an_adapter_alone_is_no_model(tmp_path, adapter):
    with pytest.raises(AlgebraError, match=r"'lora' sums to 0 of a model.*add it to a base"):
        mg.open(adapter[0]).save(tmp_path / "out")


def test_two_vectors_have_the_union_of_their_names(opened):
    base = opened("base", tensors(0))
    a, b = opened("a", tensors(1)) - base, opened("b", tensors(2)) - base
    both = a.select("layers.0.*") - b.select("*.mlp.*")
    assert set(both) == {NAMES[0], NAMES[1], NAMES[3]}
    change = [{n: tensors(k)[n] - tensors(0)[n] for n in NAMES} for k in (1, 2)]
    wanted = {
        NAMES[0]: change[0][NAMES[0]],
        NAMES[1]: change[0][NAMES[1]] - change[1][NAMES[1]],
        NAMES[3]: -change[1][NAMES[3]],
    }
    found = values(both)
    near({n: found[n] for n in wanted}, wanted)
    near(values(base + both), {n: tensors(0)[n] + wanted.get(n, 0) for n in NAMES})


def test_two_adapters_add_up(tmp_path, adapter):
    left, right = normal(5, 1, seed=80).reshape(5, 1), normal(1, 4, seed=81)
    other = write_adapter(tmp_path / "other", {"layers.0.mlp": (left, right)}, alpha=1.0)
    both = mg.open(adapter[0]) + 2.0 * mg.open(other)
    assert list(both) == ["layers.0.attn.weight", "layers.0.mlp.weight"] and both.degree == 0
    np.testing.assert_allclose(
        mg.compute(both, "layers.0.mlp.weight"), 2 * left @ right, rtol=1e-5, atol=1e-6
    )


# the vocabulary, elsewhere than in laws


def test_clip_sign_absolute_and_where(opened):
    w = normal(500)
    w[3] = np.nan
    model = opened("m", w=w)
    assert np.array_equal(mg.compute(mg.clip(model, -0.5, 0.25), "w"), np.clip(w, -0.5, 0.25), equal_nan=True)
    assert np.array_equal(mg.compute(mg.sign(model), "w"), np.sign(w), equal_nan=True)
    assert np.array_equal(mg.compute(mg.absolute(model), "w"), np.abs(w), equal_nan=True)
    found = mg.compute(model.map(lambda _, e: mg.where(e > 0.0, e * 2, 7.0)), "w")
    assert np.array_equal(found, np.where(w > 0, w * 2, np.float32(7)))
    with pytest.raises(RequestError, match=r"low \(1\) must not be above high \(0\)"):
        mg.clip(model, 1, 0)


def test_disjoint_mean_by_hand(opened):
    base = opened("base", w=np.zeros(5, np.float32))
    columns = np.array([[1, 2, -3, 0, 1], [3, -1, -1, 0, -1], [-1, 2, 4, 5, 0]], np.float32)
    vectors = [opened(f"m{k}", w=row) - base for k, row in enumerate(columns)]
    sign = mg.elect_sign(vectors)
    assert mg.compute(sign, "w").tolist() == [1, 1, 0, 1, 0]
    assert mg.compute(mg.elect_sign(vectors, tie=1.0), "w").tolist() == [1, 1, 1, 1, 1]
    assert mg.compute(mg.disjoint_mean(vectors, sign), "w").tolist() == [2, 2, 0, 5, 0]
    weighted = mg.disjoint_mean(vectors, sign, [1.0, 3.0, 1.0])
    assert mg.compute(weighted, "w").tolist() == [2.5, 2, 0, 5, 0]
    for divisor, wanted in {
        "none": [6, 4, 0, -5, 0],  # 3*1 + 1*3; 3*2 - 1*2; nobody; -1*5
        "count": [3, 2, 0, -5, 0],
        "magnitudes": [1.5, 1, 0, -5, 0],
        "weights": [1.5, 2, 0, 5, 0],
    }.items():
        found = mg.disjoint_mean(vectors, sign, [3.0, 1.0, -1.0], divisor=divisor)
        assert mg.compute(found, "w").tolist() == wanted, divisor


def test_as_many_weights_as_models(models):
    with pytest.raises(RequestError, match="2 weights for 3 models"):
        mg.weighted_sum(models, [0.5, 0.5])
    with pytest.raises(RequestError, match="mean of nothing"):
        mg.mean()


def test_a_bare_file_is_a_model_too(tmp_path):
    path = write_file(tmp_path / "one.safetensors", {"w": normal(5)})
    mg.open(path).save(tmp_path / "out", sync=False)
    assert same_bytes(read_model(tmp_path / "out")["w"], normal(5))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["merganser.json", "model.safetensors"]
