"""Measure the lines between independent nets, before and after alignment, and write the table of docs/alignment.md.

Settings were fixed before anything was measured; nothing is chosen by the numbers that are reported.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from demo.fetch import cache_folder

from alignment import digits, proteins, text
from alignment.line import STARTS, Pair, pair

PAGE = Path(__file__).parents[2] / "docs" / "alignment.md"
BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"
PAIRS, POINTS = 5, 11
TEXT_PAIRS = 3
PROTEIN_PAIRS, PROTEIN_POINTS = 4, 5


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["digits", "text", "proteins"])
    parser.add_argument("--write", action="store_true", help="write the tables into docs/alignment.md")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    parts = {"digits": _digits, "text": _text, "proteins": _proteins}
    found = []
    for name in chosen.parts:
        start = time.time()
        found.append(parts[name]())
        print(f"{found[-1]}\n({name}: {time.time() - start:.0f} s)\n", flush=True)
    if chosen.write:
        page = PAGE.read_text()
        before, after = page.split(BEGIN)[0], page.split(END)[1]
        PAGE.write_text(before + BEGIN + "\n" + "\n\n".join(found) + "\n\n" + END + after)


def _digits() -> str:
    nets: dict[str, Callable[[], torch.nn.Module]] = {
        f"MLP, width {width}": lambda width=width: digits.mlp(width)  # type: ignore[misc]
        for width in (32, 128, 512)
    }
    nets |= {f"CNN, width {width}": lambda width=width: digits.cnn(width) for width in (8, 32)}  # type: ignore[misc]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, make in nets.items():
            score = digits.scorer(make)
            pairs = []
            for k in range(PAIRS):
                a, b = (
                    digits.train(make, seed, Path(folder) / name / str(seed)) for seed in (2 * k, 2 * k + 1)
                )
                pairs.append(pair(a, b, score, POINTS, seed=k, inferred=True))
            rows += _rows(name, pairs)
    return _table("Digits", rows)


def _text() -> str:
    with tempfile.TemporaryDirectory() as folder:
        score = text.scorer()
        pairs = []
        for k in range(TEXT_PAIRS):
            a, b = (text.train(seed, Path(folder) / str(seed)) for seed in (2 * k, 2 * k + 1))
            pairs.append(pair(a, b, score, POINTS, seed=k))
    return _table("Python text", _rows("Llama, 2 layers", pairs))


def _proteins() -> str:
    cache = cache_folder()
    code, models = proteins.models(cache)
    score = proteins.scorer(code, proteins.structures(cache))
    chosen = itertools.pairwise(proteins.CHECKPOINTS[: 2 * PROTEIN_PAIRS])
    pairs = [
        pair(models[a], models[b], score, PROTEIN_POINTS, seed=k, family=proteins.FAMILY)
        for k, (a, b) in enumerate(itertools.islice(chosen, 0, None, 2))
    ]
    return _table("Protein residues", _rows("ProteinMPNN", pairs))


def _rows(name: str, pairs: Sequence[Pair]) -> list[str]:
    ends = [score for p in pairs for score in p.ends]
    parents = f"{_spread([s.loss for s in ends])} | {_spread([100 * s.right for s in ends], 1)}"
    lines = {"as they are": [p.before for p in pairs]} | {
        f"aligned ({start})": [p.after[start] for p in pairs] for start in STARTS
    }
    rows = [f"| {name}, {len(pairs)} pairs | the parents | | {parents} | |"]
    for label, found in lines.items():
        cells = (
            _spread([line.distance for line in found], 1),
            _spread([line.middle.loss for line in found]),
            _spread([100 * line.middle.right for line in found], 1),
            _spread([line.barrier for line in found]),
        )
        rows.append(f"| | {label} | {' | '.join(cells)} |")
    worst = max(p.changed for p in pairs)
    rows.append(f"| | largest change of an output by permuting | {worst:.1e} | | | |")
    return rows


def _spread(values: Sequence[float], digits: int = 3) -> str:
    mean = statistics.fmean(values)
    return (
        f"{mean:.{digits}f} ± {statistics.stdev(values):.{digits}f}"
        if len(values) > 1
        else f"{mean:.{digits}f}"
    )


def _table(title: str, rows: Sequence[str]) -> str:
    head = f"| {title} | line | L2 distance | loss in the middle | right in the middle, % | barrier |"
    return "\n".join([head, "|---|---|---|---|---|---|", *rows])


if __name__ == "__main__":
    main()
