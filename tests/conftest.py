"""Fixtures for all tests. Makers are in makers.py, so that tests can import them by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from makers import write_model

import merganser as mg

os.environ["MERGANSER_MEMORY"] = "8GiB"  # commands run in a process that holds torch and the tests before
Opened = Callable[..., mg.Weights]


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    """`opened("name", tensor=array, ...)` writes a model and opens it; names may also come as a mapping."""

    def make(name: str, tensors: dict[str, np.ndarray] | None = None, **more: np.ndarray) -> mg.Weights:
        return mg.open(write_model(tmp_path / "parents" / name, (tensors or {}) | more), name=name)

    return make
