"""Functions as nodes: of rows, of columns, of whole tensors, of numbers; any tile, any threads, in stated memory."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
from makers import BF16, normal, python, read_model, write_adapter, write_model

import merganser as mg
from merganser.algebra.computed import by_rows, column_sums, derive, whole
from merganser.algebra.expression import Reduce, apply
from merganser.algebra.rearranged import reshaped, spread, taken
from merganser.algebra.weights import Entry
from merganser.engine import sources
from merganser.errors import AlgebraError, NonFiniteError, RequestError

CHUNK = 1 << 18
SHAPES = [(0, CHUNK), (2, CHUNK), (1, 0), (3, 4 * CHUNK)]
calls: list[int] = []
"""One entry for each call of a counting function in this process."""
lock = threading.Lock()


def saved(weights, path, **options):
    weights.save(path, sync=False, partial=True, degree=1.0, **options)
    return read_model(path)


def one(weights, expression, name="x"):
    return weights._with({name: Entry(expression, 1.0)})


def opened_pair(tmp_path, *shape, dtype=np.float32):
    a, b = normal(*shape, dtype=dtype), normal(*shape, seed=1, dtype=dtype)
    return mg.open(write_model(tmp_path / "m", {"a": a, "b": b})), a, b


# the functions


def ranked(block, other, factor):
    """Ranks within a row of the sum, times a constant."""
    return np.argsort(np.argsort(block + other, axis=1), axis=1).astype(block.dtype) * block.dtype.type(
        factor
    )


def shares(block):
    """Sums, roots and exponentials within a row."""
    powers = np.exp(block - block.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True) + block / np.sqrt(
        (block * block).sum(axis=1, keepdims=True)
    )


def longest(block):
    return np.abs(block).max(axis=1)


def counted_rows(block):
    with lock:
        calls.append(len(block))
    return block * 2


def too_few_rows(block):
    return block[:-1]


def inverse(a, shift):
    calls.append(1)
    return np.linalg.inv(a.astype(np.float64) + shift * np.eye(len(a)))


def factors(a, b, length, note):
    """Three results of two tensors, a number and constants."""
    assert isinstance(length, float)
    assert note == "note"
    calls.append(1)
    left, values, right = np.linalg.svd(a + b, full_matrices=False)
    return left * length, values.copy(), right


def transposed(a):
    return a.T


def just_one(a):
    return (a,)


def doubled_f64(a):
    assert a.dtype == np.float64
    return a * 2


def mean_and_spread(*numbers):
    *values, power = numbers
    calls.append(1)
    return np.mean(values), max(values) ** power


# rows


@pytest.mark.parametrize("dtype", [np.float32, BF16, np.float64])
@pytest.mark.parametrize("shape", [(7,), (50, 9), (3, 4, 5), (6, 1), (1, 12)])
def test_rows_are_what_the_function_makes_of_each(tmp_path, shape, dtype):
    weights, a, b = opened_pair(tmp_path, *shape, dtype=dtype)
    wide = np.float64 if dtype == np.float64 else np.float32
    rows = [array.astype(wide).reshape(-1, shape[-1]) for array in (a, b)]
    found = mg.compute(one(weights, by_rows(ranked, [weights["a"], weights["b"]], 0.5)), "x")
    assert found.dtype == wide
    assert np.array_equal(found, ranked(*rows, 0.5).reshape(shape))
    node = by_rows(longest, [weights["a"]], reduces=True)
    assert node.shape == (len(rows[0]),)
    assert np.array_equal(mg.compute(one(weights, node), "x"), np.abs(rows[0]).max(axis=1))


def test_rows_of_another_width_and_of_formulas_and_back_to_the_shape(tmp_path):
    weights, a, b = opened_pair(tmp_path, 4, 3, 5)
    change = weights["b"] - weights["a"]
    node = by_rows(longest, [change], width=15, reduces=True)
    found = mg.compute(one(weights, change / spread(node, (4, 3, 5), 0)), "x")
    expected = (b - a) / np.abs((b - a).reshape(4, 15)).max(axis=1)[:, None, None]
    assert np.array_equal(found, expected.astype(np.float32))
    columns = reshaped(by_rows(longest, [change], reduces=True), (4, 3))
    assert np.array_equal(mg.compute(one(weights, columns), "x"), np.abs(b - a).max(axis=2))


def test_rows_have_the_same_bytes_for_any_tile_and_threads(tmp_path):
    weights, a, b = opened_pair(tmp_path, 900, 1100, dtype=BF16)
    node = by_rows(ranked, [weights["a"], weights["b"] - weights["a"]], 1.0)
    norms = spread(by_rows(longest, [weights["a"]], reduces=True), (900, 1100), 0)
    made = [
        saved(one(weights, node / norms), tmp_path / f"o{k}", threads=threads, tile=tile)["x"].tobytes()
        for k, (threads, tile) in enumerate(SHAPES)
    ]
    wide = [array.astype(np.float32) for array in (a, b)]
    expected = ranked(wide[0], wide[1] - wide[0], 1.0) / longest(wide[0])[:, None]
    assert made == [expected.astype(BF16).tobytes()] * len(SHAPES)


@pytest.mark.parametrize("shape", [(3001, 97), (130_001, 3), (5, 70_001)])
def test_sums_within_rows_do_not_depend_on_their_neighbours(tmp_path, shape):
    weights, a, _ = opened_pair(tmp_path, *shape)
    node = by_rows(shares, [weights["a"]])
    made = [
        saved(one(weights, node), tmp_path / f"o{k}", threads=threads, tile=tile)["x"].tobytes()
        for k, (threads, tile) in enumerate([(1, CHUNK), (2, CHUNK), (1, 4 * CHUNK)])
    ]
    assert made == [b"".join(shares(row[None]).tobytes() for row in a)] * 3


def test_rows_longer_than_what_is_held_are_made_once(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "HELD", 1000)
    weights, a, _ = opened_pair(tmp_path, 3, 100_003)
    calls.clear()
    node = by_rows(counted_rows, [weights["a"]])
    found = saved(one(weights, node), tmp_path / "o", tile=CHUNK, threads=2)["x"]
    assert np.array_equal(found, a * 2)
    assert sum(calls) == 3


def test_rows_that_are_not_as_said_are_errors(tmp_path):
    weights, _, _ = opened_pair(tmp_path, 4, 6)
    with pytest.raises(AlgebraError, match=r"too_few_rows made \[3, 6\] of 4 rows of 6"):
        mg.compute(one(weights, by_rows(too_few_rows, [weights["a"]])), "x")
    with pytest.raises(AlgebraError, match=r"one shape, not \[4, 6\], \[6, 4\]"):
        by_rows(ranked, [weights["a"], reshaped(weights["b"], (6, 4))], 1.0)
    with pytest.raises(AlgebraError, match="no rows of 5"):
        by_rows(longest, [weights["a"]], width=5)
    with pytest.raises(AlgebraError, match="not a lambda"):
        by_rows(lambda block: block, [weights["a"]])


# columns


@pytest.mark.parametrize("dtype", [np.float32, BF16, np.float64])
def test_column_sums_are_added_up_in_f64(tmp_path, dtype):
    weights, a, _ = opened_pair(tmp_path, 3000, 70, dtype=dtype)
    found = mg.compute(one(weights, column_sums(weights["a"] * weights["a"])), "x")
    wide = a.astype(np.float64 if dtype == np.float64 else np.float32)
    expected = (wide * wide).astype(np.float64).sum(axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-6 if wide.dtype == np.float32 else 1e-13)
    assert found.dtype == wide.dtype


def test_column_sums_have_the_same_bytes_for_any_tile_and_threads(tmp_path):
    weights, a, b = opened_pair(tmp_path, 1000, 700)
    change = weights["b"] - weights["a"]
    node = change * spread(column_sums(abs(change)), (1000, 700), 1)
    made = [
        saved(one(weights, node), tmp_path / f"o{k}", threads=threads, tile=tile)["x"]
        for k, (threads, tile) in enumerate(SHAPES)
    ]
    expected = (b - a) * np.abs(b - a).astype(np.float64).sum(axis=0)
    np.testing.assert_allclose(made[0], expected, rtol=1e-6, atol=1e-6)
    assert len({array.tobytes() for array in made}) == 1
    with pytest.raises(AlgebraError, match="no rows of 3"):
        column_sums(weights["a"], width=3)


# whole tensors


def test_whole_takes_tensors_numbers_and_constants_and_gives_several(tmp_path):
    weights, a, b = opened_pair(tmp_path, 20, 12)
    length = apply("sqrt", Reduce("sum", (weights["a"] * weights["a"],)))
    left, values, right = whole(
        factors,
        [weights["a"], weights["b"] - weights["a"], length],
        "note",
        shapes=[(20, 12), (12,), (12, 12)],
    )
    calls.clear()
    entries = {n: Entry(e, 1.0) for n, e in {"left": left, "values": values, "right": right}.items()}
    found = saved(weights._with(entries), tmp_path / "o", threads=2)
    assert len(calls) == 1
    norm = np.linalg.norm(a.astype(np.float64))
    product = (found["left"] / norm * found["values"]) @ found["right"]
    np.testing.assert_allclose(product, b, atol=1e-5)
    np.testing.assert_allclose(found["values"], np.linalg.svd(b.astype(np.float64))[1], rtol=1e-5)


def test_whole_is_made_once_for_a_tensor_though_it_is_read_twice(tmp_path):
    """Its norm must be known before it is stored."""
    weights, a, _ = opened_pair(tmp_path, 300, 300)
    node = whole(inverse, [weights["a"]], 30.0, shapes=[(300, 300)], workspace=10**7)[0]
    norm = apply("sqrt", Reduce("sum", (node * node,)))
    calls.clear()
    found = saved(one(weights, node / norm), tmp_path / "o", threads=2, tile=CHUNK)["x"]
    assert len(calls) == 1
    expected = np.linalg.inv(a + 30.0 * np.eye(300))
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), rtol=1e-4, atol=1e-7)


def test_whole_inside_other_nodes_and_other_nodes_inside_it(tmp_path):
    weights, a, b = opened_pair(tmp_path, 40, 30)
    index = np.array([3, 3, 0, 39])
    inner = taken(weights["a"] + weights["b"], [index, None])
    node = whole(transposed, [inner], shapes=[(30, 4)])[0]
    found = mg.compute(one(weights, taken(node * 2.0, [np.array([29, 1]), None])), "x")
    assert np.array_equal(found, 2 * (a + b)[index].T[[29, 1]])
    assert np.array_equal(
        mg.compute(one(weights, whole(just_one, [inner], shapes=[(4, 30)])[0]), "x"), (a + b)[index]
    )


def test_whole_works_in_f64_where_a_parent_is(tmp_path):
    a = normal(5, 4, dtype=np.float64)
    weights = mg.open(write_model(tmp_path / "m", {"a": a, "b": a.astype(np.float32)}))
    node = whole(doubled_f64, [weights["a"]], shapes=[(5, 4)])[0]
    assert node.dtype.name == "F64"
    assert np.array_equal(mg.compute(one(weights, node), "x"), a * 2)


def test_whole_of_an_adapter_and_of_large_operands(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "HELD", 1000)
    left, right = normal(70, 4, seed=1), normal(4, 50, seed=2)
    adapter = mg.open(write_adapter(tmp_path / "lora", {"w": (left, right)}, alpha=8.0))
    node = whole(transposed, [adapter["w.weight"]], shapes=[(50, 70)])[0]
    found = mg.compute(adapter._with({"x": Entry(node, 0.0)}), "x")
    np.testing.assert_allclose(found, 2.0 * (left @ right).T, rtol=1e-5, atol=1e-5)


def test_whole_has_the_same_bytes_for_any_tile_and_threads(tmp_path):
    arrays = {f"w{k}": normal(600, 500 + k, seed=k, dtype=BF16) for k in range(4)}
    weights = mg.open(write_model(tmp_path / "m", arrays))
    entries = {}
    for name, array in arrays.items():
        made = whole(
            factors,
            [weights[name], weights[name] * 0.5, Reduce("max", (weights[name],))],
            "note",
            shapes=[array.shape, (array.shape[1],), (array.shape[1], array.shape[1])],
            workspace=10**7,
        )
        entries |= {f"{name}.{k}": Entry(node, 1.0) for k, node in enumerate(made)}
    results = [
        saved(weights._with(entries), tmp_path / f"o{k}", threads=threads, tile=tile)
        for k, (threads, tile) in enumerate(SHAPES[:3])
    ]
    for name in entries:
        assert len({result[name].tobytes() for result in results}) == 1, name


def test_whole_that_is_not_as_said_is_an_error(tmp_path):
    weights, _, _ = opened_pair(tmp_path, 4, 6)
    with pytest.raises(AlgebraError, match=r"transposed made \[\[6, 4\]\], not \[\[4, 6\]\]"):
        mg.compute(one(weights, whole(transposed, [weights["a"]], shapes=[(4, 6)])[0]), "x")
    node = whole(just_one, [weights["a"]], shapes=[(4, 6), (4, 6)])[1]
    with pytest.raises(AlgebraError, match=r"just_one made \[\[4, 6\]\], not \[\[4, 6\], \[4, 6\]\]"):
        mg.compute(one(weights, node), "x")
    with pytest.raises(AlgebraError, match="not a lambda or an inner function"):
        whole(lambda x: x, [weights["a"]], shapes=[(4, 6)])


def test_nodes_refuse_integers(tmp_path):
    weights = mg.open(write_model(tmp_path / "m", {"ids": np.arange(6)[None]}))
    for make in (lambda x: by_rows(longest, [x]), lambda x: whole(transposed, [x], shapes=[(6, 1)])):
        with pytest.raises(AlgebraError, match="only carried"):
            make(weights["ids"])


def test_a_function_that_fails_stops_the_run_and_seals_nothing(tmp_path):
    weights = mg.open(write_model(tmp_path / "m", {"a": np.zeros((3, 3), np.float32)}))
    node = whole(inverse, [weights["a"]], 0.0, shapes=[(3, 3)])[0]
    with pytest.raises(np.linalg.LinAlgError):
        saved(one(weights, node), tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_a_nan_inside_names_tensor_and_parent(tmp_path):
    a = normal(6, 5)
    a[2, 3] = np.nan
    weights = mg.open(write_model(tmp_path / "m", {"a": a, "b": normal(6, 5)}), name="broken")
    node = whole(just_one, [weights["a"] - weights["b"]], shapes=[(6, 5)])[0]
    with pytest.raises(NonFiniteError, match=r"'a' of parent 'broken' holds NaN at \[2, 3\]"):
        saved(one(weights, weights["b"] + node), tmp_path / "o")


# what is made is kept no longer than it is wanted


def counted_pair(a, number):
    """Two results; notes how many of its like are alive."""
    with lock:
        calls.append(number)
    return a + number, np.full(3, number, a.dtype)


def test_several_results_of_one_making_follow_one_another(tmp_path, monkeypatch):
    """However large the other results are: what was made must not wait for them."""
    from merganser.engine.ledger import Ledger

    kept = []
    real = Ledger.made

    def watched(self, load, make):
        found = real(self, load, make)
        kept.append(len(self._kept))
        return found

    monkeypatch.setattr(Ledger, "made", watched)
    weights, a, _ = opened_pair(tmp_path, 50, 60)
    entries = {}
    for k in range(8):
        large, small = whole(counted_pair, [weights["a"]], k, shapes=[(50, 60), (3,)])
        entries |= {f"large{k}": Entry(large, 1.0), f"small{k}": Entry(small, 1.0)}
    calls.clear()
    found = saved(weights._with(entries), tmp_path / "o", threads=1)
    assert sorted(calls) == list(range(8))
    assert max(kept) <= 2
    for k in range(8):
        assert np.array_equal(found[f"large{k}"], a + np.float32(k))
        assert found[f"small{k}"].tolist() == [k] * 3


def test_nothing_is_kept_after_a_whole_model_reduction(tmp_path, monkeypatch):
    """A stage that reduces over the model makes its tensors, and they are made again where they are stored."""
    from merganser.engine.ledger import Ledger

    alive = []
    real = Ledger.made

    def watched(self, load, make):
        found = real(self, load, make)
        alive.append(len(self._made))
        return found

    monkeypatch.setattr(Ledger, "made", watched)
    arrays = {f"w{k}": normal(20, 20, seed=k) for k in range(9)}
    weights = mg.open(write_model(tmp_path / "m", arrays))
    nodes = {n: whole(inverse, [weights[n]], 10.0, shapes=[(20, 20)])[0] for n in arrays}
    norm = apply("sqrt", Reduce("sum", tuple(node * node for node in nodes.values())))
    calls.clear()
    found = saved(
        weights._with({n: Entry(e / norm, 1.0) for n, e in nodes.items()}), tmp_path / "o", threads=1
    )
    assert len(calls) == 18
    assert max(alive) <= 2
    expected = {n: np.linalg.inv(v + 10.0 * np.eye(20)) for n, v in arrays.items()}
    length = np.sqrt(sum((v**2).sum() for v in expected.values()))
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array / length, rtol=1e-4, atol=1e-7)


# memory


PEAK = """
import json, sys
import numpy as np
import merganser as mg
sys.path.insert(0, sys.argv[4])
from big_functions import busy
from merganser.algebra.computed import whole
from merganser.algebra.weights import Entry
model = mg.open(sys.argv[1])
entries = {}
for name in model:
    node = whole(busy, [model[name], model[name] * 2.0], shapes=[(1500, 1000)], workspace=5 * 1500 * 1000 * 8)[0]
    entries[name] = Entry(model[name] + node, 1.0)
made = model._with(entries)
memory, threads = int(sys.argv[3]), 2
try:
    needed = mg.explain(made, memory=memory, threads=threads)["memory"]["needed"]
    made.save(sys.argv[2], memory=memory, threads=threads, sync=False, degree=1.0)
except mg.MerganserError as error:
    print(error)
    sys.exit(2)
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:")) * 1024
print(json.dumps({"peak": peak, "needed": needed}))
"""
BUSY = """
import numpy as np

def busy(a, b):
    held = [np.full(a.shape, k, np.float64) for k in range(4)]
    return sum(held[1:], held[0]) * 0.0 + a + b
"""


def test_the_workspace_is_asked_for_and_enough(tmp_path):
    (tmp_path / "big_functions.py").write_text(BUSY)
    array = normal(1500, 1000, dtype=BF16)
    write_model(tmp_path / "m", {f"w{k}": array for k in range(6)})
    refused = python(PEAK, tmp_path / "m", tmp_path / "o", 150 * 2**20, tmp_path)
    assert refused.returncode == 2, refused.stderr
    assert "is too little" in refused.stdout
    assert not (tmp_path / "o").exists()
    need = (int(refused.stdout.rsplit("raise it to ", 1)[1].split()[0]) + 2) * 2**20
    assert need > 2 * (5 * 1500 * 1000 * 8)
    done = python(PEAK, tmp_path / "m", tmp_path / "o", need, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["peak"] <= need
    expected = (4 * array.astype(np.float32)).astype(BF16)
    assert read_model(tmp_path / "o")["w3"].tobytes() == expected.tobytes()


def test_too_little_memory_is_refused_before_anything_is_read(tmp_path):
    weights, _, _ = opened_pair(tmp_path, 4, 6)
    node = whole(just_one, [weights["a"]], shapes=[(4, 6)], workspace=10**12)[0]
    with pytest.raises(RequestError, match="is too little"):
        saved(one(weights, node), tmp_path / "o", memory=2**30)
    assert not (tmp_path / "o").exists()


# numbers


def test_derived_numbers_are_computed_once_from_reductions(tmp_path):
    weights, a, b = opened_pair(tmp_path, 300, 1000)
    norms = [apply("sqrt", Reduce("sum", (weights[n] * weights[n],))) for n in "ab"]
    mean, power = derive(mean_and_spread, norms, 3, count=2)
    calls.clear()
    made = one(weights, weights["a"] * mean + weights["b"] / power)
    found = saved(made, tmp_path / "o", threads=2, tile=CHUNK)["x"]
    lengths = [np.linalg.norm(x.astype(np.float64)) for x in (a, b)]
    np.testing.assert_allclose(found, a * np.mean(lengths) + b / max(lengths) ** 3, rtol=1e-6, atol=1e-5)
    assert len(calls) == 1
    assert mg.compute(weights._with({"n": Entry(mean, 1.0)}), "n") == pytest.approx(
        np.mean(lengths), rel=1e-7
    )
    with pytest.raises(AlgebraError, match="of numbers, not of tensors"):
        derive(mean_and_spread, [weights["a"]], 1, count=2)


def test_derived_numbers_of_derived_numbers_and_of_the_whole_model(tmp_path):
    weights, a, b = opened_pair(tmp_path, 30, 10)
    total = Reduce("sum", (abs(weights["a"]), abs(weights["b"])))
    first, _ = derive(mean_and_spread, [total, total * 3.0], 1, count=2)
    _, second = derive(mean_and_spread, [first, Reduce("max", (weights["a"] * first,))], 2, count=2)
    found = mg.compute(one(weights, weights["a"] * 0.0 + second), "x")
    sums = float(np.abs(a).astype(np.float64).sum() + np.abs(b).astype(np.float64).sum())
    biggest = max(2 * sums, float(np.abs(a * np.float32(2 * sums)).max())) ** 2
    np.testing.assert_allclose(found, np.full((30, 10), biggest), rtol=1e-5)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_numbers_that_several_tensors_share(tmp_path, threads):
    """Whichever task comes first, and whoever was finished before, every task knows them, and parents are digested."""
    from merganser.lineage import read_manifest

    weights, a, b = opened_pair(tmp_path, 50, 60)
    norm = apply("sqrt", Reduce("sum", (weights["a"] * weights["b"],)) + 1e4)
    third = Reduce("kth_magnitude", (weights["b"],), 3)
    shapes = [(k + 1, 3) for k in range(8)]
    entries = {"a": Entry(weights["a"] / norm, 1.0)}
    for k, shape in enumerate(shapes):
        entries[f"w{k}"] = Entry(taken(weights["b"], [np.arange(shape[0]), np.arange(3)]) * norm + third, 1.0)
    found = saved(weights._with(entries), tmp_path / "o", threads=threads)
    length = np.sqrt(float((a.astype(np.float64) * b).sum()) + 1e4)
    np.testing.assert_allclose(found["a"], a / length, rtol=1e-6)
    for k, (rows, columns) in enumerate(shapes):
        expected = b[:rows, :columns] * length + np.sort(np.abs(b).ravel())[-3]
        np.testing.assert_allclose(found[f"w{k}"], expected, rtol=1e-5)
    parent = read_manifest(tmp_path / "o")["parents"][0]
    assert parent["tensors_read"] == 2
    saved(weights, tmp_path / "copy")
    assert parent["digest"] == read_manifest(tmp_path / "copy")["parents"][0]["digest"]


# what a run is known by


def test_functions_and_constants_are_part_of_what_a_run_is_known_by(tmp_path):
    from merganser.engine.plan import plan_weights

    weights, _, _ = opened_pair(tmp_path, 4, 4)

    def known_by(node):
        return plan_weights(one(weights, node), partial=True).fingerprint()

    a, number = weights["a"], Reduce("max", (weights["a"],))
    prints = [
        known_by(whole(inverse, [a], 1.0, shapes=[(4, 4)])[0]),
        known_by(whole(inverse, [a], 2.0, shapes=[(4, 4)])[0]),
        known_by(whole(transposed, [a], shapes=[(4, 4)])[0]),
        known_by(by_rows(counted_rows, [a])),
        known_by(by_rows(counted_rows, [a], width=2)),
        known_by(reshaped(by_rows(ranked, [a, a], 1.0), (4, 4))),
        known_by(a * derive(mean_and_spread, [number], 1, count=2)[0]),
        known_by(a * derive(mean_and_spread, [number], 1, count=2)[1]),
        known_by(a * derive(mean_and_spread, [number], 2, count=2)[1]),
    ]
    assert len(set(prints)) == len(prints)
    assert prints[0] == known_by(whole(inverse, [a], 1.0, shapes=[(4, 4)])[0])


def test_explain_names_the_functions(tmp_path):
    weights, _, _ = opened_pair(tmp_path, 4, 4)
    norm = Reduce("max", (weights["a"],))
    node = weights["a"] * derive(mean_and_spread, [norm], 1, count=2)[1]
    node = node + by_rows(ranked, [weights["a"], weights["b"]], 1.0)
    node = node + whole(inverse, [weights["b"]], 1.0, shapes=[(4, 4)])[0]
    (form,) = mg.explain(one(weights, node), degree=1.0, partial=True)["forms"]
    for text in ("mean_and_spread(...)[1]", "ranked(m, m)", "inverse(m)"):
        assert text in form


# killed and resumed


KILLED = """
import os, sys
import numpy as np
import merganser as mg
sys.path.insert(0, sys.argv[4])
from pair_functions import pair
from merganser.algebra.computed import whole
from merganser.algebra.weights import Entry
from merganser.engine import workspace
model = mg.open(sys.argv[1])
entries = {}
for k in range(6):
    left, right = whole(pair, [model["a"]], k, shapes=[(40, 30), (30, 40)])
    entries |= {f"left{k}": Entry(left, 1.0), f"right{k}": Entry(right, 1.0)}
left_to_do = int(sys.argv[3])
real = workspace.Workspace.finish
def finish(self, name, record):
    global left_to_do
    real(self, name, record)
    left_to_do -= 1
    if left_to_do == 0:
        os.kill(os.getpid(), 9)
workspace.Workspace.finish = finish
report = model._with(entries).save(sys.argv[2], threads=1, sync=False, partial=True, degree=1.0)
print(report.resumed)
"""
PAIR = """
def pair(a, k):
    return a + k, a.T * k
"""


@pytest.mark.parametrize("lines", [1, 4, 7])
def test_killed_between_two_results_of_one_making_it_ends_with_the_same_bytes(tmp_path, lines):
    (tmp_path / "pair_functions.py").write_text(PAIR)
    a = normal(40, 30)
    write_model(tmp_path / "m", {"a": a})
    done = python(KILLED, tmp_path / "m", tmp_path / "o", lines, tmp_path)
    assert done.returncode == -9, done.stderr
    assert not (tmp_path / "o").exists()
    done = python(KILLED, tmp_path / "m", tmp_path / "o", 0, tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == lines
    found = read_model(tmp_path / "o")
    for k in range(6):
        assert np.array_equal(found[f"left{k}"], a + np.float32(k))
        assert np.array_equal(found[f"right{k}"], a.T * np.float32(k))
