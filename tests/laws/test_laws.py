"""The laws that hold for every checkpoint, whatever its numbers."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from makers import BF16, DTYPES, normal, random_bits, read_model, same_bytes, write_model

import merganser as mg
from merganser.errors import AlgebraError, RequestError

FEW = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
MODERATE = st.floats(-1000, 1000, width=32)
TENSOR = arrays(np.float32, st.integers(1, 40), elements=MODERATE)


@st.composite
def several(draw, count=2, elements=MODERATE):
    """`count` tensors of one shape."""
    size = draw(st.integers(1, 40))
    return [draw(arrays(np.float32, size, elements=elements)) for _ in range(count)]


def computed(function, *tensors):
    """`function(*weights)` of one-tensor models, in f32."""
    with tempfile.TemporaryDirectory() as home:
        models = [mg.open(write_model(Path(home) / f"m{k}", {"w": t})) for k, t in enumerate(tensors)]
        return mg.compute(function(*models), "w")


def ulps(a, b):
    """How many f32 numbers lie between, entry by entry (equal numbers, +0 and -0 too, are 0 apart)."""
    bits = [x.astype(np.float32).view(np.int32).astype(np.int64) for x in (a, b)]
    x, y = (np.where(v < 0, -(v & 0x7FFFFFFF), v) for v in bits)
    return np.abs(x - y)


# identity


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", [(7,), (3, 5, 2), (), (0, 4), (300_000,)])
def test_open_and_save_keeps_every_bit(name, shape, tmp_path):
    tensors = {"a": random_bits(DTYPES[name], shape, 1), "b": random_bits(DTYPES[name], (2, 3), 2)}
    report = mg.open(write_model(tmp_path / "m", tensors)).save(tmp_path / "out", sync=False, threads=2)
    found = read_model(tmp_path / "out")
    assert found.keys() == tensors.keys() and report.tensors == 2
    assert all(same_bytes(found[n], tensors[n]) for n in tensors)


def test_open_and_save_keeps_minus_zero_and_subnormals_of_mixed_dtypes(tmp_path):
    tensors = {"x." + name: random_bits(dtype, (11, 3), k) for k, (name, dtype) in enumerate(DTYPES.items())}
    tensors["zero"] = np.array([-0.0, 0.0, 1e-45, -1e-40], np.float32)
    tensors["half"] = np.arange(0x400, dtype=np.uint16).view(np.float16)
    mg.open(write_model(tmp_path / "m", tensors)).save(tmp_path / "out", sync=False, shard_size=100)
    found = read_model(tmp_path / "out")
    assert all(same_bytes(found[n], tensors[n]) for n in tensors) and found.keys() == tensors.keys()
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1


# averages


@FEW
@given(TENSOR)
def test_the_mean_of_equal_models_is_the_model(a):
    assert np.array_equal(computed(mg.mean, a, a), a)


@FEW
@given(several(elements=st.integers(-(2**22), 2**22).map(float)))
def test_base_plus_change_is_the_model_where_the_difference_is_exact(tensors):
    """Integers below 2**22: both the difference and the sum are exact in f32."""
    base, a = tensors
    assert np.array_equal(computed(lambda b, m: b + (m - b), base, a), a)


@FEW
@given(several())
def test_base_plus_change_is_the_model_within_one_unit_of_the_largest(tensors):
    """a - b is rounded to half a unit of its own size, the sum to half a unit of a: together at most one unit in the
    last place of the larger of |a| and |a - b|."""
    base, a = tensors
    found = computed(lambda b, m: b + (m - b), base, a)
    unit = np.spacing(np.maximum(np.abs(a), np.abs(a - base)).astype(np.float32))
    assert np.all(np.abs(found.astype(np.float64) - a) <= unit)


@FEW
@given(TENSOR, st.floats(0.5, 2.0, width=32))
def test_base_plus_change_is_the_model_where_they_are_near(base, factor):
    """Sterbenz: a difference of numbers within a factor of two of one another is exact, and so is coming back."""
    a = (base * np.float32(factor)).astype(np.float32)
    near = (np.abs(a) <= 2 * np.abs(base)) & (np.abs(base) <= 2 * np.abs(a))
    found = computed(lambda b, m: b + (m - b), base, a)
    assert np.array_equal(found[near], a[near])


@FEW
@given(several())
def test_removing_what_was_added_gives_the_parent_back(tensors):
    """(a + v) - v: the one rounding of a + v is the only loss, half a unit of |a + v|, and half a unit of a."""
    a, v = tensors
    found = computed(lambda m, n: (m + (n - m) * 2.0) - (n - m) * 2.0, a, v).astype(np.float64)
    size = np.abs(a).astype(np.float64) + 2 * np.abs(v.astype(np.float64) - a)
    assert np.all(np.abs(found - a) <= 2.0**-23 * size + 1e-44)


# interpolation


@FEW
@given(several())
def test_slerp_at_its_ends_gives_the_parents(tensors):
    """sin(theta) / sin(theta) is 1 and sin(0) is 0, so the ends are exact."""
    a, b = tensors
    assert np.array_equal(computed(lambda x, y: mg.slerp(x, y, 0.0), a, b), a)
    assert np.array_equal(computed(lambda x, y: mg.slerp(x, y, 1.0), a, b), b)


@FEW
@given(several())
def test_linear_at_its_ends_gives_the_parents(tensors):
    a, b = tensors
    for t, wanted in ((0.0, a), (1.0, b)):
        found = computed(lambda x, y, t=t: mg.weighted_sum([x, y], [1 - t, t]), a, b)
        assert np.array_equal(found, wanted)


@FEW
@given(TENSOR, st.floats(0, 1))
def test_slerp_of_equal_models_is_the_model(a, t):
    """Along the straight line (1-t) a + t a: three roundings at most, so two units."""
    assert np.all(ulps(computed(lambda x, y: mg.slerp(x, y, t), a, a), a) <= 2)


# order


def ties(base, models, density=0.5):
    vectors = [mg.trim(m - base, density) for m in models]
    return base + mg.disjoint_mean(vectors, mg.elect_sign(vectors))


@pytest.mark.parametrize("merge", [lambda b, ms: mg.mean(*ms), ties], ids=["mean", "ties"])
def test_the_order_of_models_with_equal_weights_does_not_matter_in_bf16(merge, tmp_path):
    """Sums of bf16 numbers of like size are exact in f32 up to far below a bf16 unit: one rounding, one result.

    The numbers are multiples of 1/64 below 4, so the sums themselves are exact in f32 and so is the law.
    """
    tensors = [(np.round(normal(6, 700, seed=k) * 32).clip(-255, 255) / 64).astype(BF16) for k in range(4)]
    parents = [mg.open(write_model(tmp_path / f"m{k}", {"w": t})) for k, t in enumerate(tensors)]
    base, models = parents[0], parents[1:]
    found = []
    for k, order in enumerate([(0, 1, 2), (2, 0, 1), (1, 0, 2)]):
        merge(base, [models[i] for i in order]).save(tmp_path / f"out{k}", sync=False, dtype="bf16")
        found.append(read_model(tmp_path / f"out{k}")["w"])
    assert same_bytes(found[0], found[1]) and same_bytes(found[0], found[2])


# things that do nothing


@FEW
@given(several())
def test_density_one_and_outliers_zero_do_nothing(tensors):
    vector = computed(lambda b, m: m - b, *tensors)
    for word in (
        lambda b, m: mg.trim(m - b, 1.0),
        lambda b, m: mg.trim(m - b, 1.0, scope="model"),
        lambda b, m: mg.trim_band(m - b, 1.0, 0.0),
        lambda b, m: mg.random_drop(m - b, 1.0, seed=3),
        lambda b, m: mg.random_drop(m - b, 1.0, seed=3, rescale="l1"),
    ):
        assert np.array_equal(computed(word, *tensors), vector)


@FEW
@given(several(), st.floats(0.05, 0.95))
def test_a_band_without_outliers_is_a_trim(tensors, density):
    a = computed(lambda b, m: mg.trim(m - b, density), *tensors)
    assert np.array_equal(computed(lambda b, m: mg.trim_band(m - b, density, 0.0), *tensors), a)


@FEW
@given(several())
def test_a_zero_amount_of_change_is_the_base(tensors):
    assert np.array_equal(computed(lambda b, m: b + 0.0 * (m - b), *tensors), tensors[0])


@FEW
@given(several())
def test_density_zero_keeps_nothing(tensors):
    for word in (
        lambda b, m: mg.trim(m - b, 0.0),
        lambda b, m: mg.trim_band(m - b, 0.0, 0.1),
        lambda b, m: mg.random_drop(m - b, 0.0, seed=3),
    ):
        assert not computed(word, *tensors).any()


# produced once, used or listed


def test_every_output_is_made_once_and_every_input_used_or_listed(tmp_path):
    base = mg.open(write_model(tmp_path / "base", {n: normal(5, seed=k) for k, n in enumerate("abc")}))
    tune = mg.open(write_model(tmp_path / "tune", {n: normal(5, seed=k) for k, n in enumerate("abcde")}))
    only = mg.open(write_model(tmp_path / "only", {"a": normal(5, seed=7), "z": normal(5, seed=9)}))
    out = base + (tune.drop("d", "e") - base).select("a", "b") + 0.5 * (only.select("a") - base.select("a"))
    report = out.save(tmp_path / "out", sync=False, shard_size=30)
    found = read_model(tmp_path / "out")
    assert sorted(found) == ["a", "b", "c"] and report.tensors == 3
    assert {k: sorted(v) for k, v in report.unused.items()} == {"tune": ["c", "d", "e"], "only": ["z"]}
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())["weight_map"]
    assert sorted(index) == ["a", "b", "c"]
    used = json.loads((tmp_path / "out/merganser.json").read_text())["parents"]
    for parent, opened in zip(used, (base, tune, only), strict=True):
        assert parent["tensors_read"] + len(report.unused.get(parent["name"], [])) == len(opened)


def test_a_tensor_of_the_base_that_the_result_lacks_is_an_error(tmp_path):
    base = mg.open(write_model(tmp_path / "base", {"a": normal(5), "b": normal(5)}))
    with pytest.raises(AlgebraError, match=r"lack 1 tensors that 'base' has.*b.*partial=True"):
        base.select("a").save(tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["base"]
    base.select("a").save(tmp_path / "out", partial=True, sync=False)
    assert list(read_model(tmp_path / "out")) == ["a"]


# degree


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda a, b: 0.5 * a + 0.3 * b, r"sums to 0\.8 of a model.*degree=0\.8"),
        (lambda a, b: a + b, r"sums to 2 of a model"),
        (lambda a, b: b - a, r"task vector.*degree=0"),
        (lambda a, b: a * {"w": 1.0, "*": 0.25} + b * {"w": 0.5, "*": 0.75}, r"sums to 1\.5.*\(tensors w\)"),
    ],
)
def test_a_wrong_degree_is_an_error_before_anything_is_written(make, words, tmp_path):
    tensors = {"w": normal(5), "v": normal(5)}
    a, b = (mg.open(write_model(tmp_path / n, tensors)) for n in "ab")
    with pytest.raises(AlgebraError, match=words):
        make(a, b).save(tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_a_wrong_degree_can_be_meant(tmp_path):
    a, b = (mg.open(write_model(tmp_path / n, {"w": normal(5, seed=ord(n))})) for n in "ab")
    (b - a).save(tmp_path / "out", degree=0.0, sync=False)
    wanted = normal(5, seed=ord("b")) - normal(5, seed=ord("a"))
    assert same_bytes(read_model(tmp_path / "out")["w"], wanted)


@pytest.mark.parametrize("tile", [-1, 64, 100_000])
def test_a_tile_is_made_of_whole_blocks_of_a_sum(tmp_path, tile):
    model = mg.open(write_model(tmp_path / "a", {"w": normal(2, 2)}))
    with pytest.raises(RequestError, match="tile must be a multiple of 65,536"):
        model.save(tmp_path / "out", tile=tile)


def test_an_unknown_option_is_an_error_with_the_nearest_name(tmp_path):
    model = mg.open(write_model(tmp_path / "a", {"w": normal(5)}))
    with pytest.raises(RequestError, match=r"'overwrit'.*did you mean 'overwrite'"):
        model.save(tmp_path / "out", overwrit=True)
