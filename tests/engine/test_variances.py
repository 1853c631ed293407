"""A variance below 0 is never written into a model, and each remedy that the error names works."""

from __future__ import annotations

import numpy as np
import pytest
from makers import write_model

import merganser as mg
from merganser.cli import run
from merganser.errors import VarianceError

NAME = "features.norm1.running_var"


@pytest.fixture
def models(tmp_path):
    """Two fine-tunes whose variances are both far smaller than the base's."""
    for name, variance in (("base", 1.0), ("a", 0.25), ("b", 0.125)):
        tensors = {
            NAME: np.full(3, variance, np.float32),
            "features.norm1.running_mean": np.full(3, -variance, np.float32),
            "features.conv.weight": np.full((3, 2), variance, np.float32),
        }
        write_model(tmp_path / name, tensors)
    return tmp_path


def merged(home, method, weight):
    models = "".join(f"  - {{model: {name}, parameters: {{weight: {weight}}}}}\n" for name in "ab")
    base = "" if method == "linear" else "base_model: base\n"
    (home / "r.yaml").write_text(f"method: {method}\n{base}models:\n{models}")
    return run(["merge", str(home / "r.yaml"), str(home / "out")])


def test_a_sum_of_changes_that_makes_a_negative_variance_is_refused(models, capsys):
    assert merged(models, "task_arithmetic", 1.0) == 1
    told = capsys.readouterr().err
    assert NAME in told
    assert "-0.625" in told
    assert "filter: running_" in told
    assert not (models / "out").exists()


def test_the_base_keeps_its_running_statistics(models):
    assert merged(models, "task_arithmetic", "[{filter: running_, value: 0}, {value: 1.0}]") == 0
    out = mg.open(models / "out")
    np.testing.assert_array_equal(mg.compute(out, NAME), np.ones(3))
    np.testing.assert_array_equal(mg.compute(out, "features.conv.weight"), np.full((3, 2), -0.625))


def test_a_mean_of_variances_is_one(models):
    assert merged(models, "linear", 0.5) == 0
    np.testing.assert_array_equal(mg.compute(mg.open(models / "out"), NAME), np.full(3, 0.1875))


def test_a_change_of_a_variance_may_be_negative(models):
    """A task vector is no model: its changes of variances are saved as they are."""
    base, a = mg.open(models / "base"), mg.open(models / "a")
    (a - base).save(models / "vector", degree=0)
    np.testing.assert_array_equal(mg.compute(mg.open(models / "vector"), NAME), np.full(3, -0.75))
    with pytest.raises(VarianceError, match="running_var"):
        (base + 2 * (a - base)).save(models / "far")
