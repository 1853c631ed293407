"""The mean of models' probabilities out of results per sample, beside NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from merganser.errors import RequestError
from merganser.evaluate import Results, TaskResult, ensemble

pytest.importorskip("pyarrow")
NAMES = ["no", "yes", "maybe"]


def results(seed: int, kind: str = "classification", rows: int = 40, digest: str = "") -> Results:
    draws = np.random.default_rng(seed)
    logs = draws.standard_normal((rows, 3)) * 3 - 20
    answers = np.random.default_rng(9).integers(0, 3, rows)
    best = logs.argmax(1)
    columns = {
        "id": [str(n) for n in range(rows)],
        "input_digest": [f"{digest}{n}" for n in range(rows)],
        "answer": [NAMES[a] for a in answers],
        "prediction": [NAMES[b] for b in best],
        "right": [bool(b == a) for a, b in zip(answers, best, strict=True)],
        "loss": (-logs[np.arange(rows), answers]).tolist(),
        "choices": [NAMES] * rows,
        "log_probabilities": logs.tolist(),
    }
    return Results(
        {"label": f"m{seed}", "identity": None}, {"name": "s"}, {"t": TaskResult.of(kind, columns)}
    )


@pytest.mark.parametrize("kind", ["classification", "multiple_choice"])
@pytest.mark.parametrize("weights", [None, [3.0, 1.0, 0.0]])
def test_it_is_the_weighted_mean_of_probabilities(kind: str, weights: list[float] | None) -> None:
    parts = [results(seed, kind) for seed in range(3)]
    made = ensemble(parts, weights).tasks["t"]
    shares = np.array(weights or [1, 1, 1]) / sum(weights or [1, 1, 1])
    logs = np.array([part.tasks["t"].column("log_probabilities") for part in parts])
    mixed = np.einsum("k,kij->ij", shares, softmax(logs, axis=2))
    answers = np.array([NAMES.index(a) for a in made.column("answer")])
    assert np.allclose(np.exp(made.column("log_probabilities")), mixed, atol=1e-12)
    assert made.column("prediction") == [NAMES[n] for n in mixed.argmax(1)]
    assert made.metrics["accuracy"] == pytest.approx((mixed.argmax(1) == answers).mean())
    assert made.metrics["loss"] == pytest.approx(-np.log(mixed[np.arange(len(mixed)), answers]).mean())
    assert made.kind == kind and made.rows == 40


def test_one_model_stays_as_it_is() -> None:
    one = results(3)
    made = ensemble([one]).tasks["t"]
    assert made.column("prediction") == one.tasks["t"].column("prediction")


@pytest.mark.parametrize(
    ("parts", "weights", "told"),
    [
        ([], None, "ensemble of 0 models"),
        ([results(0), results(1)], [1.0], "as many weights"),
        ([results(0), results(1)], [1.0, -1.0], "numbers from 0"),
        ([results(0), results(1)], [0.0, 0.0], "all 0"),
        ([results(0), results(1, digest="x")], None, "not of the same samples"),
        ([results(0), results(1, rows=39)], None, "not of the same samples"),
        ([results(0), Results({"label": "b"}, {}, {})], None, "results on one suite"),
    ],
)
def test_wrong_requests_are_told(parts: list[Results], weights: list[float] | None, told: str) -> None:
    with pytest.raises(RequestError, match=told):
        ensemble(parts, weights)


def test_other_kinds_have_no_choices() -> None:
    columns = {"id": ["0"], "input_digest": ["0"], "nats": [3.0], "tokens": [2], "bytes": [5]}
    one = Results({"label": "m"}, {}, {"t": TaskResult.of("perplexity", columns)})
    with pytest.raises(RequestError, match=r"task 't' \(perplexity\) has no probabilities of choices"):
        ensemble([one, one])
