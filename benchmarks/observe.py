"""Time of a plain forward pass over time of `observe`, for statistics of inputs: in turns, in one process.

    python benchmarks/observe.py WORK [--model DIR] [--rows 256] [--batch 16] [--length 64] [--repeats 5]

Without --model, a Llama of about 100 million random weights is made in WORK (kept for the next time); an encoder such
as MiniLM is given with --model. Rows are random words. Both sides run the same batches on the same open model with one
thread: the plain side all of the model, its output head included; observe's side what `observe` does between opening
the model and sealing its sums, keeping them on the disk included. Writes WORK/observe.json and prints a table in
Markdown: medians of the repeats, and the least and most of their ratios. Goal: at least 0.5 of processor time, which
other work on the machine changes least; the ratio on the wall, with waiting for the disk, stands beside it. Needs the
`models` extra.
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
CLOCKS = ("cpu", "wall")
COLLECTIONS = ("absmax", "second_moment", "mean", "absmax,second_moment,mean", "gram")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--model", type=Path)
    for name, default in (("rows", 256), ("batch", 16), ("length", 64), ("repeats", 5)):
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
        pairs = [(_times(plain), _times(lambda kinds=kinds: observed(kinds))) for _ in range(repeats)]
        record: dict[str, Any] = {"collect": collection}
        for number, clock in enumerate(CLOCKS):
            ratios = [one[number] / other[number] for one, other in pairs]
            record[clock] = {
                "forward": statistics.median(one[number] for one, _ in pairs),
                "observe": statistics.median(other[number] for _, other in pairs),
                "ratio": statistics.median(ratios),
                "least": min(ratios),
                "most": max(ratios),
            }
        records.append(record)
    return records


def _times(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds of the processor and on the wall, as in CLOCKS."""
    began = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - began[0], time.perf_counter() - began[1]


def table(name: str, records: list[dict[str, Any]]) -> str:
    """The records in Markdown."""
    lines = [
        f"| {name}: collected | forward, CPU s | observe, CPU s | forward / observe | on the wall | goal {GOAL:g} |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for record in records:
        cpu, wall = (
            f"{one['ratio']:.2f} ({one['least']:.2f}-{one['most']:.2f})" for one in map(record.get, CLOCKS)
        )
        verdict = "met" if record["cpu"]["ratio"] >= GOAL else "**missed**"
        seconds = f"{record['cpu']['forward']:.2f} | {record['cpu']['observe']:.2f}"
        lines.append(f"| {record['collect']} | {seconds} | {cpu} | {wall} | {verdict} |")
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
