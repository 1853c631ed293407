"""The k-th largest magnitude is exact, whatever the data and whatever the sample made of it."""

from __future__ import annotations

import numpy as np
import pytest
from makers import BF16, normal, read_model, write_model

import merganser as mg
from merganser.algebra.expression import Reduce
from merganser.algebra.vocabulary import keep_count
from merganser.engine.select import Selection

SIZE = 300_007
"""Above the 65,536 elements up to which the sample is everything."""


def exact(array: np.ndarray, rank: int) -> np.ndarray:
    """By the order of the bits of |x|, in which NaN is above all."""
    bits = np.abs(array).view(np.uint64 if array.dtype == np.float64 else np.uint32)
    return np.partition(bits, len(bits) - rank)[len(bits) - rank : len(bits) - rank + 1].view(array.dtype)[0]


def ranks(size: int) -> list[int]:
    wanted = {1, 2, size // 1000 + 1, size // 5, size // 2, size - size // 7, size - 1, size}
    return sorted(rank for rank in wanted if 1 <= rank <= size)


def check(array: np.ndarray, model: mg.Weights, threads: int = 2) -> None:
    targets = {str(k): [mg.kth_magnitude(model["w"], k)] for k in ranks(array.size)}
    found = mg.compute_scalars(targets, model.checkpoints, threads=threads)
    for rank, values in found.items():
        wanted = float(exact(array, int(rank)))
        assert values == [wanted] or (np.isnan(wanted) and np.isnan(values[0])), (rank, values, wanted)


def in_unsampled_places() -> np.ndarray:
    """64 runs of 1024 spread evenly are what a sample looks at. Ten times larger values everywhere but there."""
    array = normal(SIZE, seed=1) * 100
    for k in range(64):
        start = int(k * (SIZE - 1024) / 63)
        array[start : start + 1024] = normal(1024, seed=k)
    return array


def small_in_unsampled_places() -> np.ndarray:
    array = in_unsampled_places()
    return np.where(np.abs(array) > 10, np.float32(1e-30) * array, array).astype(np.float32)


def mostly(value: float) -> np.ndarray:
    array = np.full(SIZE, value, np.float32)
    array[::97] = normal(len(array[::97]))
    return array


def with_specials() -> np.ndarray:
    array = normal(SIZE)
    array[::5000], array[1::9000], array[2::8000] = np.nan, np.inf, -np.inf
    return array


CASES = {
    "normal": lambda: normal(SIZE),
    "all zero": lambda: np.zeros(SIZE, np.float32),
    "zeros of both signs": lambda: np.where(np.arange(SIZE) % 2, -0.0, 0.0).astype(np.float32),
    "all equal": lambda: np.full(SIZE, -0.3, np.float32),
    "two values": lambda: np.where(np.arange(SIZE) % 3, 1.0, -2.0).astype(np.float32),
    "mostly zero": lambda: mostly(0.0),
    "mostly one": lambda: mostly(1.0),
    "bf16 grid, massive ties": lambda: normal(SIZE).astype(BF16).astype(np.float32),
    "sorted": lambda: np.sort(normal(SIZE)),
    "sorted by magnitude": lambda: np.sort(np.abs(normal(SIZE)))[::-1].copy(),
    "steps": lambda: np.repeat(np.arange(1, 32, dtype=np.float32), 10_000)[:SIZE],
    "large where nobody looks": in_unsampled_places,
    "small where nobody looks": small_in_unsampled_places,
    "neighbours in the last bit": lambda: np.arange(0x3F800000, 0x3F800000 + SIZE, dtype=np.uint32).view(
        np.float32
    ),
    "all magnitudes": lambda: (
        (np.arange(SIZE, dtype=np.uint32) * 7001 % 0x7F800000).astype(np.uint32).view(np.float32)
    ),
    "subnormal": lambda: np.arange(SIZE, dtype=np.uint32)[::-1].copy().view(np.float32),
    "not finite here and there": with_specials,
    "all NaN": lambda: np.full(SIZE, np.nan, np.float32),
    "one outlier": lambda: np.where(np.arange(SIZE) == 123_457, 1e30, normal(SIZE)).astype(np.float32),
}


@pytest.mark.parametrize("case", CASES)
def test_large_tensors(case, opened):
    array = CASES[case]()
    check(array, opened("m", w=array))


@pytest.mark.parametrize("case", ["normal", "all equal", "mostly zero", "sorted", "large where nobody looks"])
def test_f64(case, opened):
    array = CASES[case]().astype(np.float64)
    array *= 1 + 1e-12 * np.arange(SIZE)
    check(array, opened("m", w=array))


def test_f64_neighbours_in_the_last_bit(opened):
    array = (np.uint64(0x3FF0000000000000) + np.arange(SIZE, dtype=np.uint64)[::-1]).view(np.float64)
    check(array, opened("m", w=array))


@pytest.mark.parametrize("size", [1, 2, 3, 255, 257, 65_536, 65_537])
def test_small_tensors(size, opened):
    array = normal(size, seed=size)
    check(array, opened("m", w=array))


def test_ranks_past_the_end_give_the_smallest(opened):
    model = opened("m", w=np.array([3.0, -1.0, 2.0], np.float32))
    assert mg.compute(mg.kth_magnitude(model, 99), "w") == 1.0


def test_little_memory_means_fewer_bins_and_the_same_value(opened):
    array = normal(SIZE)
    model = opened("m", w=array)
    target = {"w": [mg.kth_magnitude(model["w"], 1000)]}
    needed = 24 * 2**20 + 15 * 2**20
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * 4096
    assert mg.compute_scalars(target, model.checkpoints, threads=1, memory=resident + needed)["w"] == [
        exact(array, 1000)
    ]


@pytest.mark.parametrize("density", [0.01, 0.2, 0.5, 0.99])
def test_trim_keeps_what_equals_the_threshold(density, opened):
    array = normal(SIZE).astype(BF16).astype(np.float32)
    found = mg.compute(opened("m", w=array).map(lambda _, e: mg.trim(e, density)), "w")
    threshold = exact(array, keep_count(SIZE, density))
    assert np.array_equal(found, np.where(np.abs(array) >= threshold, array, 0))
    assert int(density * SIZE) <= np.count_nonzero(found)


def test_trim_keeps_nan(opened):
    array = with_specials()
    found = mg.compute(opened("m", w=array).map(lambda _, e: mg.trim(e, 0.1)), "w")
    assert np.array_equal(np.isnan(found), np.isnan(array))


def test_a_band_leaves_out_the_outliers(opened):
    array = normal(SIZE)
    found = mg.compute(opened("m", w=array).map(lambda _, e: mg.trim_band(e, 0.5, 0.1)), "w")
    order = np.sort(np.abs(array))[::-1]
    top, keep = int(0.1 * SIZE), int(0.5 * SIZE)
    size = np.abs(array)
    wanted = np.where((size <= order[top]) & (size >= order[top + keep - 1]), array, 0)
    assert np.array_equal(found, wanted) and np.count_nonzero(found) == keep


@pytest.mark.parametrize("threads", [1, 3])
def test_whole_model_scope_has_one_threshold(threads, opened, tmp_path):
    """Tensors of very different sizes and scales: the threshold is that of all their entries together."""
    changes = {
        "large": normal(SIZE, seed=1),
        "tiny": normal(7, seed=2, scale=50),
        "quiet": normal(100, 900, seed=3, scale=1e-4),
        "ties": np.full(40_000, 0.25, np.float32),
        "empty": np.zeros((0, 3), np.float32),
    }
    base = opened("base", {n: np.zeros_like(c) for n, c in changes.items()})
    vector = opened("tune", changes) - base
    out = base + mg.trim(vector, 0.3, scope="model")
    out.save(tmp_path / "out", threads=threads, sync=False)
    every = np.concatenate([c.ravel() for c in changes.values()])
    threshold = exact(every, int(0.3 * len(every)))
    for name, found in read_model(tmp_path / "out").items():
        assert np.array_equal(found, np.where(np.abs(changes[name]) >= threshold, changes[name], 0)), name


def test_whole_model_scope_over_f32_and_f64(opened):
    changes = {"single": normal(SIZE, seed=1), "double": normal(70_000, seed=2, dtype="float64")}
    model = opened("m", changes)
    every = np.concatenate([c.astype(np.float64) for c in changes.values()])
    for rank in ranks(len(every)):
        threshold = Reduce("kth_magnitude", (model["single"], model["double"]), rank)
        assert mg.compute_scalars({"w": [threshold]}, model.checkpoints)["w"] == [exact(every, rank)]


def counted(values: np.ndarray, selection: Selection) -> tuple[int, np.ndarray, np.ndarray]:
    """What a kernel finds in one pass."""
    bits = values.view(np.uint32).astype(np.int64) & 0x7FFFFFFF
    low, shift, width = selection.bracket()
    places = (bits - low) >> shift
    inside = (bits >= low) & (places < width)
    counts, marks = np.zeros(width, np.uint32), np.zeros(width, np.uint32)
    np.add.at(counts, places[inside], 1)
    distance = (bits - low)[inside]
    np.bitwise_or.at(
        marks, places[inside], (distance & 0xFFFF | (~distance & 0xFFFF) << 16).astype(np.uint32)
    )
    return int((places >= width)[bits >= low].sum()), counts, marks


@pytest.mark.parametrize("grid", [True, False])
def test_a_bin_of_equal_values_ends_the_search(grid):
    """On a coarse grid the first pass over the whole range, 2**15 patterns a bin, is enough."""
    array = normal(SIZE)
    values = array.astype(BF16).astype(np.float32) if grid else array
    selection = Selection(SIZE // 5, SIZE, wide=False, bins=1 << 16)
    selection.learn(*counted(values, selection))
    assert selection.done == grid
    while not selection.done:
        selection.learn(*counted(values, selection))
    assert selection.value == exact(values, SIZE // 5)


def test_a_stage_that_goes_round_again_leaves_alone_what_it_knows(tmp_path):
    """Two thresholds and a sum of a whole model in one pass, of which one threshold needs another round."""
    rng = np.random.default_rng(3)
    arrays = {
        # Many patterns in one bin of the first round, so that the middle is found in the second.
        "close": (1 + rng.integers(0, 1 << 14, 300_000) / (1 << 23)).astype(np.float32),
        "far": np.array([1e-30, 2.0, 3e30], np.float32),
        "few": rng.standard_normal(5).astype(np.float32),
    }
    weights = mg.open(write_model(tmp_path / "m", arrays))
    whole = tuple(weights[name] for name in arrays)
    magnitudes = np.sort(np.abs(np.concatenate([a.ravel() for a in arrays.values()])))[::-1]
    targets = [Reduce("kth_magnitude", whole, rank) for rank in (1, 2, 150_000, len(magnitudes))]
    targets += [Reduce("sum", whole), Reduce("max", whole)]
    found = mg.compute_scalars({"x": targets}, weights.checkpoints)["x"]
    assert found[:4] == [float(magnitudes[rank - 1]) for rank in (1, 2, 150_000, len(magnitudes))]
    exact = sum(a.astype(np.float64).sum() for a in arrays.values())
    assert found[4] == pytest.approx(exact, rel=1e-12)
    assert found[5] == float(magnitudes[0])
