"""What TIES trims and where signs disagree, against NumPy."""

from __future__ import annotations

import json

import numpy as np
import pytest
from makers import normal, write_model

import merganser as mg
from merganser.cli import run
from merganser.methods.merge.conflicts import conflicts

DENSITY = (0.2, 0.5, 1.0)


@pytest.fixture
def arrays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = {}
    for k, name in enumerate(("base", "a", "b", "c")):
        found[name] = {n: normal(7, 9, seed=10 * k + j) for j, n in enumerate(("x", "y"))}
        found[name]["y"][0] = 0.0  # nothing changes there
        write_model(tmp_path / name, found[name])
    return found


def by_hand(arrays, name):
    kept = []
    for model, share in zip("abc", DENSITY, strict=True):
        change = (arrays[model][name] - arrays["base"][name]).ravel()
        count = max(1, int(share * change.size))
        least = np.sort(np.abs(change))[-count]
        kept.append(np.where(np.abs(change) >= least, change, 0))
    up, down = ((np.array(kept) * sign > 0).any(axis=0) for sign in (1, -1))
    return np.count_nonzero(kept), int((up | down).sum()), int((up & down).sum())


def test_counts_are_those_of_numpy(arrays):
    base, *models = (mg.open(name) for name in ("base", "a", "b", "c"))
    found = conflicts(base, models, density=list(DENSITY))
    for name in ("x", "y"):
        row = found["tensors"][name]
        assert (row["kept"], row["touched"], row["opposed"]) == by_hand(arrays, name)
        assert row["entries"] == 3 * 63
    kept, touched, opposed = (sum(by_hand(arrays, name)[k] for name in ("x", "y")) for k in range(3))
    assert (found["kept"], found["touched"], found["opposed"]) == (kept, touched, opposed)
    assert found["trimmed"] == 1 - kept / found["entries"]
    assert found["conflicts"] == opposed / touched


@pytest.mark.parametrize("form", ["method", "merge_method"])
def test_the_command_reports_them_at_the_recipes_densities(arrays, form, capsys):
    models = ", ".join(
        f"{{model: {n}, parameters: {{weight: 1, density: {d}}}}}"
        for n, d in zip("abc", DENSITY, strict=True)
    )
    with open("r.yaml", "w") as file:
        file.write(f"{form}: ties\nbase_model: base\nmodels: [{models}]\n")
    assert run(["merge", "r.yaml", "out", "--conflicts", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["conflicts"]
    assert found["opposed"] == sum(by_hand(arrays, name)[2] for name in ("x", "y"))
    assert run(["merge", "r.yaml", "again", "--conflicts"]) == 0
    assert "have changes of both signs" in capsys.readouterr().out
    with open("other.yaml", "w") as file:
        file.write("method: linear\nmodels: [{model: a}, {model: b}]\n")
    assert run(["merge", "other.yaml", "none", "--conflicts"]) == 2
    assert "this is linear" in capsys.readouterr().err
