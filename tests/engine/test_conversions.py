"""Stored numbers become f32 or f64 exactly, and are rounded once, to nearest with ties to even, when stored.

The reference is a table of every value of the type and a search in it; ml_dtypes and NumPy where they round once.
"""

from __future__ import annotations

import numpy as np
import pytest
from makers import DTYPES, read_model, write_model

import merganser as mg

SHORT = ("F16", "BF16", "F8_E4M3", "F8_E5M2")
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
HAS_INFINITY = {"F16": True, "BF16": True, "F8_E5M2": True, "F8_E4M3": False}


def patterns(name: str) -> np.ndarray:
    """Every value of a short type, by its bits."""
    dtype = DTYPES[name]
    return np.arange(2 ** (8 * dtype.itemsize)).astype(UNSIGNED[dtype.itemsize]).view(dtype)


def magnitudes(name: str) -> np.ndarray:
    """The finite magnitudes of a short type in order, as f64: index = bits."""
    values = patterns(name)
    with np.errstate(invalid="ignore"):
        values = values[: len(values) // 2].astype(np.float64)
    return values[np.isfinite(values)]


def nearest(values: np.ndarray, name: str) -> np.ndarray:
    """f64 numbers rounded once to a short type, by search among its values: the bits of the result."""
    table = magnitudes(name)
    top = table[-1] + (table[-1] - table[-2])  # what would follow the largest
    steps = np.append(table, top)
    with np.errstate(invalid="ignore"):
        size = np.minimum(np.abs(values), 2 * top)
        size[np.isnan(values)] = 0
    below = np.clip(np.searchsorted(steps, size, side="right") - 1, 0, len(steps) - 2)
    low, high = size - steps[below], steps[below + 1] - size
    up = (high < low) | ((high == low) & (below % 2 == 1))
    bits = np.minimum(below + up, len(table))  # one past the largest: Inf, or NaN where there is none
    bits[np.isnan(values)] = -1
    sign = np.where(np.signbit(values), 1 << (8 * DTYPES[name].itemsize - 1), 0)
    return np.where(bits < 0, -1, bits + sign)


def stored(values: np.ndarray, name: str, tmp_path) -> np.ndarray:
    """What merganser makes of f32 or f64 numbers."""
    model = mg.open(write_model(tmp_path / "in", {"w": values}))
    model.save(tmp_path / "out", dtype=name, allow_nonfinite=True, sync=False, threads=1)
    return read_model(tmp_path / "out")["w"]


def check(found: np.ndarray, values: np.ndarray, name: str) -> None:
    bits = found.view(UNSIGNED[found.dtype.itemsize]).astype(np.int64)
    with np.errstate(invalid="ignore"):
        wanted = nearest(values.astype(np.float64), name)
    with np.errstate(invalid="ignore"):
        nan = np.isnan(found.astype(np.float64))
    expected_nan = wanted < 0
    if not HAS_INFINITY[name]:
        expected_nan |= ~np.isfinite(patterns(name).astype(np.float64))[np.maximum(wanted, 0)]
    assert np.array_equal(nan, expected_nan)
    wrong = np.flatnonzero(~nan & (bits != wanted))
    assert not len(wrong), (values[wrong[:3]], found[wrong[:3]])


def boundaries(name: str, kind: type) -> np.ndarray:
    """Every value of the type, every midpoint of neighbours, and the numbers of `kind` next to both."""
    table = magnitudes(name)
    top = table[-1] + (table[-1] - table[-2])
    steps = np.append(table, [top, 2 * top]) if name != "BF16" else np.append(table, top)
    with np.errstate(over="ignore", invalid="ignore"):
        middle = (steps[1:] / 2 + steps[:-1] / 2) if name == "BF16" else (steps[1:] + steps[:-1]) / 2
        exact = np.concatenate([steps, middle]).astype(kind)
        around = np.concatenate(
            [exact, np.nextafter(exact, kind(np.inf)), np.nextafter(exact, kind(-np.inf))]
        )
    special = np.array([np.inf, np.nan, 0.0, np.finfo(kind).max, np.finfo(kind).smallest_subnormal], kind)
    around = np.concatenate([around, special])
    return np.concatenate([around, -around])


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("wide", [False, True], ids=["f32", "f64"])
def test_every_pattern_widens_exactly(name, wide, tmp_path):
    values = patterns(name)
    tensors = {"w": values, "one": np.ones(len(values), np.float64)}
    model = mg.open(write_model(tmp_path / "in", tensors))
    if wide:
        model = model.map(lambda _, e: model["one"] * e)
    found = mg.compute(model, "w")
    with np.errstate(invalid="ignore"):
        wanted = values.astype(np.float32).astype(np.float64 if wide else np.float32)
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)
    assert np.array_equal(np.signbit(found[~np.isnan(found)]), np.signbit(wanted[~np.isnan(wanted)]))


@pytest.mark.parametrize("name", SHORT)
def test_every_pattern_comes_back(name, tmp_path):
    values = patterns(name)
    found = stored(values.astype(np.float32), name, tmp_path)
    finite = ~np.isnan(values.astype(np.float32))
    assert found[finite].tobytes() == values[finite].tobytes()
    assert np.isnan(found[~finite].astype(np.float32)).all()


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_boundaries_round_to_the_nearest_and_ties_to_even(name, kind, tmp_path):
    values = boundaries(name, kind)
    check(stored(values, name, tmp_path), values, name)


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_random_bits_round_to_the_nearest(name, kind, tmp_path):
    rng = np.random.default_rng(5)
    bits = np.frombuffer(rng.bytes(300_000 * kind(0).itemsize), kind)
    near = (rng.standard_normal(300_000) * 10.0 ** rng.uniform(-8, 5, 300_000)).astype(kind)
    values = np.concatenate([bits, near])
    check(stored(values, name, tmp_path), values, name)


@pytest.mark.parametrize("name", SHORT)
def test_f32_rounds_as_ml_dtypes_and_numpy_do(name, tmp_path):
    rng = np.random.default_rng(6)
    values = np.concatenate([np.frombuffer(rng.bytes(800_000), np.float32), boundaries(name, np.float32)])
    found = stored(values, name, tmp_path)
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = values.astype(DTYPES[name])
        nan = np.isnan(wanted.astype(np.float32))
        assert np.array_equal(np.isnan(found.astype(np.float32)), nan)
    assert found[~nan].tobytes() == wanted[~nan].tobytes()


def test_f64_to_f32_and_back(tmp_path):
    rng = np.random.default_rng(7)
    values = np.concatenate([np.frombuffer(rng.bytes(800_000), np.float64), rng.standard_normal(100_000)])
    values = values[~np.isnan(values)]
    with np.errstate(over="ignore", under="ignore"):
        wanted = values.astype(np.float32)
    found = stored(values, "F32", tmp_path)
    assert found.tobytes() == wanted.tobytes()
    assert stored(found, "F64", tmp_path / "back").tobytes() == wanted.astype(np.float64).tobytes()


@pytest.mark.parametrize("name", ("F32", *SHORT))
def test_cast_in_the_middle_rounds_and_widens(name, tmp_path):
    values = np.random.default_rng(8).standard_normal(5000).astype(np.float32)
    model = mg.open(write_model(tmp_path / "in", {"w": values}))
    found = mg.compute(mg.cast(model, name).map(lambda _, e: e + 0.125), "w")
    assert np.array_equal(found, values.astype(DTYPES[name]).astype(np.float32) + np.float32(0.125))
