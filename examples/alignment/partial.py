"""PLeaS on MLPs for digits: sizes from one to two, beside averages and the ensemble; a table of docs/alignment.md.

Two settings: both nets saw all digits, or the first saw 0 to 4 and the second 5 to 9. Calibration is on the training
images without their labels; accuracy on the test images, all ten digits. Nothing is chosen by the numbers reported.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

import merganser as mg
from alignment import digits
from merganser.algebra.rearranged import Array
from merganser.algebra.weights import Entry
from merganser.methods.align.activation_matching import align_activations
from merganser.methods.align.pleas import pleas

PAGE = Path(__file__).parents[2] / "docs" / "alignment.md"
BEGIN, END = "<!-- partial: begin -->\n", "<!-- partial: end -->\n"
PAIRS, SIZES, WIDTHS = 5, (1.0, 1.25, 1.5, 2.0), (32, 128)
LINEAR = (0, 2, 4)


def main() -> None:
    """Train, merge, score, and write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the table into docs/alignment.md")
    write = parser.parse_args().write
    torch.set_num_threads(1)
    rows = [
        "| right, % | " + " | ".join(f"{s}, {w}" for s in ("all digits", "halves") for w in WIDTHS) + " |"
    ]
    rows.append("|" + "---|" * (1 + 2 * len(WIDTHS)))
    columns = [_column(width, halves) for halves in (False, True) for width in WIDTHS]
    for name in columns[0]:
        rows.append(f"| {name} | " + " | ".join(_spread(column[name]) for column in columns) + " |")
    found = "\n".join(rows)
    print(found)
    if write:
        page = PAGE.read_text()
        before, after = page.split(BEGIN)[0], page.split(END)[1]
        PAGE.write_text(before + BEGIN + "\n" + found + "\n\n" + END + after)


def _column(width: int, halves: bool) -> Mapping[str, Sequence[float]]:
    found: dict[str, list[float]] = {}
    for k in range(PAIRS):
        with tempfile.TemporaryDirectory() as folder:
            digits_of = ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9)) if halves else (tuple(range(10)),) * 2
            a, b = (_train(width, 2 * k + i, digits_of[i], Path(folder) / str(i)) for i in (0, 1))
            for name, value in _scores(a, b).items():
                found.setdefault(name, []).append(100 * value)
    return found


def _train(width: int, seed: int, kept: Sequence[int], path: Path) -> mg.Weights:
    torch.manual_seed(seed)
    model = digits.mlp(width)
    images, labels, _, _ = digits.data()
    chosen = torch.isin(labels, torch.tensor(kept))
    images, labels = images[chosen], labels[chosen]
    optimizer = torch.optim.Adam(model.parameters(), digits.RATE)
    for _ in range(digits.EPOCHS):
        for batch in torch.randperm(len(labels)).split(digits.BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    path.mkdir()
    save_file(model.state_dict(), path / "model.safetensors")
    return mg.open(path)


def _scores(a: mg.Weights, b: mg.Weights) -> Mapping[str, float]:
    images, _, test, labels = digits.data()

    def right(outputs: np.ndarray) -> float:
        return float(np.mean(outputs.argmax(1) == labels.numpy()))

    def run(weights: mg.Weights) -> np.ndarray:
        return _inputs(weights, test.numpy())["outputs"]

    moments = _moments(a, b, images.numpy())
    aligned = align_activations(b, to=a, statistics=moments, inferred=True)
    one, two = run(a), run(b)
    found = {
        "the two parents, mean": (right(one) + right(two)) / 2,
        "the ensemble: mean of outputs, 2x": right(one + two),
        "mean of weights": right(run((a + b) / 2)),
        "mean of weights, aligned by activations": right(run((a + aligned) / 2)),
    }
    for fit in (False, True):
        for size in SIZES:
            merged = pleas(a, other=b, statistics=moments, size=size, fit=fit, inferred=True)
            found[f"{'PLeaS' if fit else 'the same without the fit'}, {size:g}x"] = right(run(merged))
    return found


def _inputs(weights: mg.Weights, x: np.ndarray) -> dict[str, np.ndarray]:
    found = {}
    for k in LINEAR:
        found[f"{k}.weight"] = x
        x = x @ weights.compute(f"{k}.weight").T + weights.compute(f"{k}.bias")
        x = np.maximum(x, 0) if k != LINEAR[-1] else x
    return found | {"outputs": x}


def _moments(a: mg.Weights, b: mg.Weights, x: np.ndarray) -> mg.Weights:
    """What `merganser observe-pair` writes, for nets that transformers does not know."""
    one, two = _inputs(a, x), _inputs(b, x)
    entries = {}
    for name in (f"{k}.weight" for k in LINEAR):
        v = np.concatenate([one[name], two[name], np.ones((len(x), 1))], 1).astype(np.float64)
        entries[name] = Entry(Array(v.T @ v / len(x)), 1.0)
    return mg.Weights(entries, label="moments", origin=None, notes=({"statistics": {"kind": "paired"}},))


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}"


if __name__ == "__main__":
    main()
