"""Small checkpoints for tests, and the formulas of methods in plain NumPy (f64)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

import merganser
from merganser.algebra import Weights

Arrays = dict[str, np.ndarray]


def write(directory: Path, arrays: Arrays) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    save_file(arrays, directory / "model.safetensors")
    return directory


def opened(root: Path, **models: Arrays) -> dict[str, Weights]:
    return {name: merganser.open(write(root / name, arrays)) for name, arrays in models.items()}


def random_models(count: int, seed: int = 0) -> list[Arrays]:
    """A base and `count` siblings, with a tensor of zeros, a shared one, a scalar-like one and integers."""
    rng = np.random.default_rng(seed)
    base = {
        "m": rng.standard_normal((4, 4)).astype(np.float32),
        "long": rng.standard_normal(997).astype(np.float32),
        "one": rng.standard_normal(1).astype(np.float32),
        "zero": np.zeros(5, np.float32),
        "ids": np.arange(6),
    }
    models = [base]
    for _ in range(count):
        changed = {
            k: (v + 0.1 * rng.standard_normal(v.shape)).astype(np.float32)
            for k, v in base.items()
            if k != "ids"
        }
        changed["zero"] = np.zeros(5, np.float32)
        models.append(changed | {"ids": base["ids"] + 100})
    return models


def keep_largest(v: np.ndarray, density: float, *, at_least: int = 1, top: int = 0) -> np.ndarray:
    """Zero all but `int(density n)` entries of largest magnitude after the first `top`; ties with them stay."""
    if density >= 1:
        return v
    count = max(at_least, int(density * v.size))
    if density <= 0 or count == 0:
        return np.zeros_like(v)
    ranked = np.sort(np.abs(v).ravel())[::-1]
    top = min(top, v.size - count)
    inside = (np.abs(v) >= ranked[top + count - 1]) & (np.abs(v) <= ranked[top])
    if top == 0:
        inside = np.abs(v) >= ranked[count - 1]
    return np.where(inside, v, 0.0)


def to_l1(kept: np.ndarray, v: np.ndarray) -> np.ndarray:
    before, after = np.abs(v).sum(), np.abs(kept).sum()
    return kept if before < 1e-7 or after < 1e-7 else kept * (before / after)
