"""Law: a parent that holds a NaN or Inf is refused by name, whatever a method would make of that entry.

The entry is one that methods leave out: every model has there what the base has, but for a trace.
"""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from hand_statistics import write_statistics
from makers import BF16, F8_E4M3, F8_E5M2, normal, read_model, write_adapter, write_file, write_model

import merganser as mg
from merganser.errors import MerganserError, NonFiniteError
from merganser.methods import all_methods

SHAPES = {"layers.0.up.weight": (6, 10), "layers.1.up.weight": (8, 6), "norm.weight": (7,)}
NAME = "layers.1.up.weight"
PLACE = (5, 2)
VALUES = (np.nan, np.inf, -np.inf)
PARENTS = ("base", "a", "b", "c")
BUILT_IN = [n for n, m in all_methods().items() if m.function.__module__.startswith("merganser.")]


def tensors(which):
    base = {name: normal(*shape, seed=k) for k, (name, shape) in enumerate(SHAPES.items())}
    if which == 0:
        return base
    changes = {name: 0.1 * normal(*shape, seed=10 * which) for name, shape in SHAPES.items()}
    changes[NAME][PLACE] = 1e-7 * which
    return {name: base[name] + changes[name] for name in SHAPES}


def statistics(kind, which):
    rng = np.random.default_rng(which)
    if kind == "mask":
        found = {name: (rng.random(shape) < 0.3).astype(np.float32) for name, shape in SHAPES.items()}
        found[NAME][PLACE] = 0.0
        return found
    if kind == "fisher":
        return {name: rng.random(shape).astype(np.float32) for name, shape in SHAPES.items()}
    rows = {name: rng.standard_normal((30, shape[1])) for name, shape in SHAPES.items() if len(shape) == 2}
    return {name: (x.T @ x).astype(np.float32) for name, x in rows.items()}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("not finite")
    for which, name in enumerate(PARENTS):
        write_model(home / name, tensors(which))
    for kind in ("fisher", "gram", "mask"):
        for which, name in enumerate(PARENTS[1:], 1):
            write_statistics(home / f"{kind}-{name}", kind, statistics(kind, which), home / name)
    return home


def poisoned(source, to, value):
    """A copy of a model or of statistics with one entry that is not finite."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(source, to)
    (to / "merganser.json").unlink(missing_ok=True)
    found = {name: array.copy() for name, array in read_model(source).items()}
    at = PLACE if found[NAME].shape == SHAPES[NAME] else (3, 2)
    found[NAME][at] = value
    write_file(to / "model.safetensors", found)
    return to


def merged(home, name, swapped, options):
    """The method over the parents of `home`, those of `swapped` in place of their namesakes."""
    method = all_methods()[name]
    models = PARENTS[1 : 1 + min(3, method.max_models or 3)]

    def opened(parent):
        return mg.open(swapped.get(parent, home / parent), name=parent)

    base = opened("base") if method.base in ("required", "origin") else None
    more = {"statistics": [opened(f"{method.statistics}-{m}") for m in models]} if method.statistics else {}
    return method(base, [opened(m) for m in models], **options, **more)


def options_of(name):
    found = {p.name: 0.3 for p in all_methods()[name].parameters if p.required}
    return [found | ({"steps": 3} if name == "wudi" else {})] + [
        found | {p.name: choice}
        for p in all_methods()[name].parameters
        for choice in p.choices
        if p.name in ("scope", "filters", "floored") and choice != p.default
    ]


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_method_refuses_a_parent_that_holds_one_by_tensor_and_parent(home, tmp_path, name):
    method = all_methods()[name]
    parents = [] if method.base not in ("required", "origin") else ["base"]
    models = PARENTS[1 : 1 + min(3, method.max_models or 3)]
    parents += models
    if method.statistics:
        parents.append(f"{method.statistics}-{models[-1]}")
    for options in options_of(name):
        for k in range(max(3, len(parents))):
            parent, value = parents[k % len(parents)], VALUES[k % 3]
            wrong = poisoned(home / parent, tmp_path / "wrong", value)
            weights = merged(home, name, {parent: wrong}, options)
            with pytest.raises(NonFiniteError) as error:
                weights.save(tmp_path / "out", sync=False, threads=1, resume=False)
            assert f"tensor {NAME!r} of parent {parent!r} holds {'NaN' if k % 3 == 0 else 'Inf'} at" in str(
                error.value
            )
            assert "--allow-nonfinite" in str(error.value)
            assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", BUILT_IN)
def test_on_request_it_passes_in_every_method_or_is_refused_with_a_reason(home, tmp_path, name):
    wrong = poisoned(home / "a", tmp_path / "wrong", np.nan)
    weights = merged(home, name, {"a": wrong}, options_of(name)[0])
    try:
        weights.save(tmp_path / "out", sync=False, threads=1, allow_nonfinite=True)
    except MerganserError as error:
        assert not isinstance(error, NonFiniteError)
        return
    assert set(read_model(tmp_path / "out")) == set(SHAPES)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, BF16, F8_E4M3, F8_E5M2])
def test_in_every_dtype_and_at_both_ends_of_a_tile(opened, tmp_path, dtype):
    size = 300_001
    for at in (0, 262_143, 262_144, size - 1):
        base, tune = normal(size, seed=1).astype(dtype), normal(size, seed=2).astype(dtype)
        tune[at] = np.nan
        vector = opened(f"tune{at}", w=tune) - opened(f"base{at}", w=base)
        with pytest.raises(NonFiniteError, match=rf"tensor 'w' of parent 'tune{at}' holds NaN at \[{at}\]"):
            mg.trim(vector, 0.01).save(
                tmp_path / "out", degree=0.0, dtype="float32", sync=False, resume=False
            )


@pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
def test_a_factor_of_an_adapter_is_named_and_not_the_product(opened, tmp_path, factor):
    left, right = normal(6, 2, seed=1), normal(2, 5, seed=2)
    (right if factor == "lora_A" else left)[1, 1] = np.inf
    adapter = mg.open(write_adapter(tmp_path / "lora", {"w": (left, right)}), name="lora")
    base = opened("base", {"w.weight": normal(6, 5, seed=3)})
    with pytest.raises(NonFiniteError, match=rf"{factor}.*parent 'lora' holds Inf at \[1, 1\]"):
        (base + mg.trim(adapter, 0.1)).save(tmp_path / "out", sync=False)


@pytest.mark.parametrize(
    "word",
    [
        lambda x: x * (mg.norm(x) > 0.0),
        lambda x: x * (mg.kth_magnitude(x, 2) >= 0.0),
        lambda x: mg.clip(x, -1.0, 1.0),
        lambda x: mg.sign(x),
        lambda x: mg.where(x > 0.0, x * 0.0 + 1.0, x * 0.0),
    ],
    ids=["norm", "rank", "clip", "sign", "where"],
)
def test_a_formula_in_which_it_would_vanish(opened, tmp_path, word):
    values = normal(5, 5, seed=4)
    values[3, 4] = np.nan
    found = opened("m", w=values).map(lambda _, x: word(x), degree=1.0)
    with pytest.raises(NonFiniteError, match=r"tensor 'w' of parent 'm' holds NaN at \[3, 4\]"):
        found.save(tmp_path / "out", sync=False)


def test_what_only_shows_numbers_shows_them_as_they_are_unless_asked_to_refuse(opened):
    model = opened("m", w=np.array([1.0, np.nan], np.float32))
    assert np.isnan(mg.compute(model, "w")[1])
    assert np.isnan(mg.compute_scalars({"w": [mg.norm(model["w"])]}, model.checkpoints)["w"][0])
    for ask in (
        lambda: mg.compute(model, "w", allow_nonfinite=False),
        lambda: mg.compute_scalars({"w": [mg.norm(model["w"])]}, model.checkpoints, allow_nonfinite=False),
    ):
        with pytest.raises(NonFiniteError, match=r"'w' of parent 'm'"):
            ask()


def test_what_nothing_computes_with_passes(opened, tmp_path):
    held = {"h.position_ids": np.array([-1, 2**62]), "h.masked_bias": np.array(-np.inf, np.float32)}
    a, b = (opened(name, held | {"w": normal(3, 3, seed=k)}) for k, name in enumerate("ab"))
    (0.5 * a + 0.5 * b).save(tmp_path / "out", sync=False)
    found = read_model(tmp_path / "out")
    assert found["h.masked_bias"] == -np.inf
    assert found["h.position_ids"].tolist() == [-1, 2**62]


def test_what_was_finished_while_they_could_pass_is_not_taken_over_by_a_run_that_refuses(opened, tmp_path):
    """One tensor's NaN shows, another's is dropped: neither may come out of the interrupted run's directory."""
    base, tune = ({f"w{k}": normal(300, 300, seed=10 * j + k) for k in range(6)} for j in range(2))
    tune["w0"][7, 7] = tune["w1"][3, 3] = np.nan
    first, second = opened("base", base), opened("tune", tune)
    dropped = (second.select("w1") - first.select("w1")).map(lambda _, x: mg.where(x > 1e9, x, 0.0))
    merged = 0.5 * first + 0.5 * second.override(first.select("w1") + dropped)
    journal = tmp_path / ".out.merganser-partial/journal.jsonl"

    class Stop(Exception):
        pass

    def stop(done, total):
        if journal.exists() and sum(f'"tensor": "w{k}"' in journal.read_text() for k in range(2)) == 2:
            raise Stop

    try:
        merged.save(tmp_path / "out", threads=1, sync=False, allow_nonfinite=True, progress=stop)
        shutil.rmtree(tmp_path / "out")  # it was done before it could be stopped
    except Stop:
        assert journal.exists()
    with pytest.raises(NonFiniteError, match="of parent 'tune' holds NaN"):
        merged.save(tmp_path / "out", threads=1, sync=False)
    assert not (tmp_path / "out").exists()
