"""Time of a plain forward pass over time of `observe`, for statistics of inputs: in turns, in one process.

    python benchmarks/observe.py WORK [--model DIR] [--rows 64] [--batch 8] [--length 64] [--repeats 5]

Without --model, a Llama of about 100 million random weights is made in WORK (kept for the next time); an encoder such
as MiniLM is given with --model. Rows are random words. Both sides run the same batches on the same open model with one
thread: the plain side all of the model, its output head included; observe's side what `observe` does between opening
the model and sealing its sums, keeping them on the disk included. Writes WORK/observe.json and prints a table in
Markdown. Goal: at least 0.5. Needs the `models` extra.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GOAL = 0.5
COLLECTIONS = ("absmax", "second_moment", "mean", "absmax,second_moment,mean", "gram")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--model", type=Path)
    for name, default in (("rows", 64), ("batch", 8), ("length", 64), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N")
    return parser.parse_args()


def make_llama(folder: Path) -> Path:
    """About 100 million parameters in 12 layers of width 768, random."""
    import torch
    import transformers as t

    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        sizes = {"vocab_size": 16_000, "hidden_size": 768, "intermediate_size": 2048}
        config = t.LlamaConfig(
            **sizes, num_hidden_layers=12, num_attention_heads=12, tie_word_embeddings=True
        )
        t.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def measure(model: Any, order: Any, repeats: int) -> list[dict[str, Any]]:
    """One record a collection: seconds of both sides, their ratio in each repeat."""
    import torch

    from merganser.observe import inputs
    from merganser.observe.layers import layers
    from merganser.observe.pace import Pace
    from merganser.observe.partial import Partial

    found, _ = layers(model)
    more = {"use_cache": False} if model.kind == "causal" else {}

    def plain() -> None:
        with torch.no_grad():
            for rows in order.order:
                model.module(**order.batch(rows).arguments, **more)

    def observed(kinds: list[str]) -> None:
        with tempfile.TemporaryDirectory() as place, Partial(Path(place) / "out", overwrite=False) as partial:
            partial.open({}, resume=False)
            inputs.collect(model, order, found, kinds, partial, Pace(order.rows, None, 30.0))

    records = []
    plain()
    for collection in COLLECTIONS:
        kinds = collection.split(",")
        observed(kinds)
        pairs = [(_seconds(plain), _seconds(lambda kinds=kinds: observed(kinds))) for _ in range(repeats)]
        ratios = [one / other for one, other in pairs]
        records.append(
            {
                "collect": collection,
                "forward_seconds": statistics.median(one for one, _ in pairs),
                "observe_seconds": statistics.median(other for _, other in pairs),
                "ratio": statistics.median(ratios),
                "least": min(ratios),
                "most": max(ratios),
            }
        )
    return records


def _seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def table(name: str, records: list[dict[str, Any]]) -> str:
    """The records in Markdown."""
    lines = [
        f"| {name}: collected | forward s | observe s | forward / observe | at least {GOAL:g} |",
        "|---|--:|--:|--:|--:|",
    ]
    for one in records:
        spread = f"{one['ratio']:.2f} ({one['least']:.2f}-{one['most']:.2f})"
        verdict = "met" if one["ratio"] >= GOAL else "**missed**"
        seconds = f"{one['forward_seconds']:.2f} | {one['observe_seconds']:.2f}"
        lines.append(f"| {one['collect']} | {seconds} | {spread} | {verdict} |")
    return "\n".join(lines)


def main() -> None:
    """Open, measure, write."""
    chosen = arguments()
    sys.path.insert(0, str(ROOT))
    import torch

    from merganser.observe.feed import Texts
    from merganser.running import open_model

    torch.set_num_threads(1)
    chosen.work.mkdir(parents=True, exist_ok=True)
    folder = chosen.model or make_llama(chosen.work / "llama-100M")
    model = open_model(folder)
    draw = random.Random(0)
    vocabulary = model.config.vocab_size
    ids = [
        [draw.randrange(10, vocabulary) for _ in range(draw.randint(chosen.length // 2, chosen.length))]
        for _ in range(chosen.rows)
    ]
    records = measure(model, Texts(ids, 0, chosen.batch), chosen.repeats)
    name = f"{folder.name} ({sum(p.numel() for p in model.module.parameters()) / 1e6:.0f}M)"
    result = {"model": name, "torch": torch.__version__, "rows": chosen.rows, "batch": chosen.batch}
    result |= {"tokens": sum(map(len, ids)), "repeats": chosen.repeats, "goal": GOAL, "records": records}
    path = chosen.work / "observe.json"
    held = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**held, name: result}, indent=1) + "\n")
    print(table(name, records))


if __name__ == "__main__":
    main()
