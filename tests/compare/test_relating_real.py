"""Singular vectors of published checkpoints: folds that share a start, models that do not."""

from __future__ import annotations

import pytest
from test_real_controls import pocketnet, proteinmpnn  # noqa: F401

import merganser as mg
from merganser.compare import singular

pytestmark = pytest.mark.models


def test_folds_of_one_start_agree(pocketnet: list[mg.Weights]) -> None:  # noqa: F811
    found = singular.between(pocketnet[0], pocketnet[1])
    assert found["weighted"] > 0.5 and found["large"] > 0.5 and found["relative_distance"] < 0.3


def test_independent_models_do_not(proteinmpnn: list[mg.Weights]) -> None:  # noqa: F811
    found = singular.between(proteinmpnn[0], proteinmpnn[1])
    assert abs(found["weighted"]) < 0.05 and abs(found["large"]) < 0.05
    assert found["relative_distance"] > 0.9
