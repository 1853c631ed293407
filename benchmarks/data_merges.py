"""Time and peak memory of Fisher averaging and RegMean: merganser beside plain torch with everything in memory.

    python benchmarks/data_merges.py WORK [--layers 2] [--hidden 768] [--models 2] [--rounds 3]

Makes random siblings and statistics in WORK (kept for the next time), runs both tools in processes of their own, in
turns, with one thread each, and writes WORK/data_merges.json and a table in Markdown: medians of the rounds with the
least and the most, and the most memory. The results are compared: they must agree to 1e-4 of the largest entry of each
tensor. Needs the `models` extra.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from measure import Sample, must_work, timed

ROOT = Path(__file__).resolve().parent.parent

MAKE = r"""
import json, sys
from pathlib import Path
import numpy as np
from merganser import save
from merganser.algebra import Entry, Weights
from merganser.algebra.rearranged import Array
from merganser.checkpoint import open_checkpoint
from merganser.checkpoint.digest import identity

work, layers, hidden, models = Path(sys.argv[1]), *map(int, sys.argv[2:])
wide, vocabulary = 8 * hidden // 3, 8000
config = {"model_type": "llama", "vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": wide,
          "num_hidden_layers": layers, "num_attention_heads": 12, "tie_word_embeddings": True}
square = (hidden, hidden)
layer = {"self_attn.q_proj": square, "self_attn.k_proj": square, "self_attn.v_proj": square,
         "self_attn.o_proj": square, "mlp.gate_proj": (wide, hidden), "mlp.up_proj": (wide, hidden),
         "mlp.down_proj": (hidden, wide), "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,)}
shapes = {f"model.layers.{k}.{n}.weight": s for k in range(layers) for n, s in layer.items()}
shapes |= {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}

def write(path, tensors, note=None):
    entries = {n: Entry(Array(a), 1.0) for n, a in tensors.items()}
    notes = () if note is None else ({"step": "observe", "statistics": note},)
    files = {"config.json": json.dumps(config).encode()} if note is None else {}
    made = Weights(entries, label=path.name, origin=None, notes=notes, files=files)
    save(made, path, dtype="float32", overwrite=True, memory=8 * 2**30)

for k in range(models):
    rng = np.random.default_rng(k)
    write(work / f"m{k}", {n: rng.standard_normal(s, dtype=np.float32) for n, s in shapes.items()})
    note = {"model": f"m{k}", "identity": identity(open_checkpoint(work / f"m{k}").tensors), "tokens": 4096}
    write(work / "stats" / f"m{k}" / "fisher", {n: rng.random(s, dtype=np.float32) for n, s in shapes.items()},
          note | {"kind": "fisher"})
    grams = {}
    for n, s in shapes.items():
        if "proj" in n:
            x = rng.standard_normal((2 * s[1], s[1]), dtype=np.float32)
            grams[n] = x.T @ x / len(x)
    write(work / "stats" / f"m{k}" / "gram", grams, note | {"kind": "gram"})
"""

TORCH = r"""
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file

method, work, count, out = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
kind = {"fisher": "fisher", "regmean": "gram"}[method]
models = [load_file(work / f"m{k}" / "model.safetensors") for k in range(count)]
found = [load_file(work / "stats" / f"m{k}" / kind / "model.safetensors") for k in range(count)]
merged = {}
for name in models[0]:
    tensors = [model[name] for model in models]
    own = [one[name] for one in found if name in one]
    if len(own) < count:
        merged[name] = sum(tensors) / count
    elif method == "fisher":
        own = [f.clamp(min=1e-6) for f in own]
        merged[name] = sum(f * t for f, t in zip(own, tensors)) / sum(own)
    else:
        grams = [0.9 * g.double() + 0.1 * torch.diag(torch.diagonal(g.double())) for g in own]
        right = sum(g @ t.double().T for g, t in zip(grams, tensors))
        merged[name] = torch.linalg.solve(sum(grams), right).T.float().contiguous()
out.mkdir(exist_ok=True)
save_file(merged, out / "model.safetensors")
"""

COMPARE = r"""
import sys
from safetensors.numpy import load_file
a, b = (load_file(f"{path}/model.safetensors") for path in sys.argv[1:])
assert a.keys() == b.keys()
print(max(float(abs(a[n] - b[n]).max() / abs(b[n]).max()) for n in a))
"""


def runs(work: Path, count: int, rounds: int) -> Iterator[tuple[str, str, Sample, float]]:
    """Method, tool, what a run took, and its seconds of processor time, in turns."""
    models = [
        {"model": str(work / f"m{k}"), "statistics": str(work / "stats" / f"m{k}")} for k in range(count)
    ]
    for method in ("fisher", "regmean"):
        recipe = work / f"{method}.yaml"
        recipe.write_text(json.dumps({"method": method, "models": models}))
        ours = [sys.executable, "-m", "merganser", "merge", str(recipe), str(work / f"{method}-merganser")]
        ours += ["--overwrite", "--no-resume", "--no-sync", "--quiet", "--memory", "4GiB", "--threads", "1"]
        torch = [sys.executable, "-c", TORCH, method, str(work), str(count), str(work / f"{method}-torch")]
        for _ in range(rounds):
            for tool, command in (("merganser", ours), ("torch", torch)):
                log = work / f"{method}-{tool}.log"
                before = spent()
                sample = must_work(timed(command, log, environment=environment()), tool, log)
                yield method, tool, sample, spent() - before


def spent() -> float:
    """Seconds of processor time of all children that ended: what other work on the machine disturbs least."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def environment() -> dict[str, str]:
    """Where the children find the package."""
    return {
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    for name, default in (("layers", 2), ("hidden", 768), ("models", 2), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    size = [asked.layers, asked.hidden, asked.models]
    made = asked.work / "made.json"
    if not made.exists() or json.loads(made.read_text()) != size:
        log = asked.work / "make.log"
        command = [sys.executable, "-c", MAKE, str(asked.work), *map(str, size)]
        must_work(timed(command, log, environment=environment()), "making the models", log)
        made.write_text(json.dumps(size))
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for method, tool, sample, processor in runs(asked.work, asked.models, asked.rounds):
        one = {"seconds": sample.seconds, "processor_seconds": processor, "peak_bytes": sample.peak_bytes}
        found.setdefault(method, {}).setdefault(tool, []).append(one)
    differences = {}
    for method in found:
        log = asked.work / "compare.log"
        places = [str(asked.work / f"{method}-{tool}") for tool in ("merganser", "torch")]
        must_work(
            timed([sys.executable, "-c", COMPARE, *places], log, environment=environment()), "comparing", log
        )
        differences[method] = float(log.read_text())
        if not differences[method] <= 1e-4:
            raise SystemExit(f"{method}: the results differ by {differences[method]}")
    parents = sum(
        path.stat().st_size
        for k in range(asked.models)
        for path in (asked.work / f"m{k}").glob("*.safetensors")
    )
    document = {
        "layers": asked.layers, "hidden": asked.hidden, "models": asked.models, "rounds": asked.rounds,
        "bytes_of_models": parents, "cores": os.cpu_count(), "load": os.getloadavg()[0], "runs": found,
        "largest_difference": differences,
    }  # fmt: skip
    (asked.work / "data_merges.json").write_text(json.dumps(document, indent=2) + "\n")
    print(
        "| method | tool | seconds | of processor time | torch / merganser | peak memory | largest difference |\n"
        "|---|---|--:|--:|--:|--:|--:|"
    )
    for method, tools in found.items():
        pairs = zip(tools["torch"], tools["merganser"], strict=True)
        ratio = shown([one["seconds"] / other["seconds"] for one, other in pairs])
        for tool, samples in tools.items():
            seconds, processor = (
                shown([one[key] for one in samples]) for key in ("seconds", "processor_seconds")
            )
            peak = max(one["peak_bytes"] for one in samples) / 1e6
            ours = (ratio, f"{differences[method]:.1g}") if tool == "merganser" else ("", "")
            print(f"| {method} | {tool} | {seconds} | {processor} | {ours[0]} | {peak:.0f} MB | {ours[1]} |")


def shown(values: list[float]) -> str:
    """The median, with the least and the most."""
    return f"{median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


if __name__ == "__main__":
    main()
