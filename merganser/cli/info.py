"""`merganser info`: what is in a checkpoint, from headers alone."""

from __future__ import annotations

import contextlib
import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from merganser.cli import console

if TYPE_CHECKING:
    from merganser.checkpoint import Checkpoint

NAME = "info"
EXAMPLE = "Example: merganser info models/base"
_CONFIG_KEYS = (
    "model_type",
    "architectures",
    "dtype",
    "torch_dtype",
    "hidden_size",
    "num_hidden_layers",
    "vocab_size",
    "tie_word_embeddings",
)

_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")


def command(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="A model directory, a weights file or a PEFT adapter.")
    ],
    allow_pickle: console.ALLOW_PICKLE = False,
    as_json: console.JSON = False,
) -> None:
    """Show tensors, dtypes, shapes and files of a checkpoint. Reads headers only."""
    from merganser.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(path, allow_pickle=allow_pickle)
    found = describe(checkpoint)
    if as_json:
        console.print_json(found)
        return
    dtypes = ", ".join(f"{name} {count:,}" for name, count in found["dtypes"].items())
    console.say(f"{found['path']}: {found['format']}, {found['parameters']:,} parameters ({dtypes})")
    if found["quantized"]:
        console.say(f"  quantized: {found['quantized']['format']} ({found['quantized']['told_by']})")
    for key, value in found["config"].items():
        console.say(f"  {key}: {value}")
    if checkpoint.factors is not None:
        console.say(f"  no model: holds {checkpoint.factors}. {checkpoint.factors.way_out}")
    console.say()
    if found["deltas"]:
        console.table(
            ("changes", "rank", "scale", "shape"),
            [(d["tensor"], d["rank"], round(d["scale"], 6), d["shape"]) for d in found["deltas"]],
        )
    else:
        console.table(
            ("tensors", "count", "dtype", "shape"),
            [(g["covers"], g["count"], g["dtype"], g["shape"]) for g in found["groups"]],
        )
    console.say("\nfiles: " + ", ".join(f"{f['name']} ({console.size(f['bytes'])})" for f in found["files"]))
    if found["parts"]:
        console.say("parts with weights of their own: " + ", ".join(found["parts"]))
    if found["left_out"]:
        console.say("not read, and not taken over by a merge: " + ", ".join(found["left_out"]))
    for remark in found["remarks"]:
        console.say(f"note: {remark}")
    if found["manifest"]:
        m = found["manifest"]
        parents = f" from {', '.join(m['parents'])}" if m["parents"] else ""
        console.say(f"sealed by merganser {m['version']}{parents}; digest {m['digest']}")
    if found["statistics"]:
        s = found["statistics"]
        of = f"{s['model']} ({s['identity']})" if s["identity"] else s["model"]
        console.say(f"statistics: {s['kind']} of {of} over {s['rows']} rows of {s['data']}")


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """The document that --json prints."""
    from merganser.architectures.ties import aliases
    from merganser.errors import CheckpointError
    from merganser.lineage import statistics_note

    config = checkpoint.config or {}
    note = None
    with contextlib.suppress(CheckpointError):  # a malformed note hides nothing else
        note = statistics_note(checkpoint)
    dtypes: dict[str, int] = {}
    groups: dict[tuple[str, str, tuple[int, ...]], list[str]] = {}
    for name, tensor in checkpoint.tensors.items():
        dtypes[tensor.dtype.name] = dtypes.get(tensor.dtype.name, 0) + tensor.size
        groups.setdefault((_LAYER.sub("*", name), tensor.dtype.name, tensor.shape), []).append(name)
    deltas = [
        {"tensor": name, "rank": d.rank, "scale": d.scale, "shape": list(d.shape)}
        for name, d in checkpoint.deltas.items()
    ]
    for delta in checkpoint.deltas.values():
        for factor in (delta.left, delta.right):
            dtypes[factor.dtype.name] = dtypes.get(factor.dtype.name, 0) + factor.size
    return {
        "path": checkpoint.where,
        "format": checkpoint.format,
        "tensors": len(checkpoint.tensors) or 2 * len(deltas),
        "parameters": sum(dtypes.values()),
        "dtypes": dtypes,
        "quantized": None
        if checkpoint.encoding is None
        else {"format": checkpoint.encoding.name, "told_by": checkpoint.encoding.told_by},
        "config": {key: config[key] for key in _CONFIG_KEYS if key in config},
        "groups": [
            {
                "pattern": pattern,
                "covers": _covers(names),
                "count": len(names),
                "dtype": dtype,
                "shape": list(shape),
            }
            for (pattern, dtype, shape), names in groups.items()
        ],
        "deltas": deltas,
        "factors": None if checkpoint.factors is None else str(checkpoint.factors),
        "files": [{"name": file.path.name, "bytes": file.size} for file in checkpoint.files],
        "tied": aliases(checkpoint),
        "parts": list(checkpoint.belongings.parts) if checkpoint.format in ("safetensors", "torch") else [],
        "left_out": list(checkpoint.belongings.left_out)
        if checkpoint.format in ("safetensors", "torch")
        else [],
        "remarks": list(checkpoint.remarks),
        "manifest": _manifest(checkpoint),
        "statistics": None if note is None else asdict(note),
    }


def _covers(names: list[str]) -> str:
    """The names of a group as one, the numbers in them as ranges: `model.layers.{0-21}.mlp.up_proj.weight`."""
    numbers = zip(*([int(number) for number in _LAYER.findall(name)] for name in names), strict=True)
    ranges = iter([_ranges(sorted(set(found))) for found in numbers])
    return _LAYER.sub(lambda _: next(ranges), names[0])


def _ranges(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    texts = [str(low) if low == high else f"{low}-{high}" for low, high in runs]
    return texts[0] if len(numbers) == 1 else "{" + ",".join(texts) + "}"


def _manifest(checkpoint: Checkpoint) -> dict[str, Any] | None:
    from merganser.lineage import read_manifest

    if checkpoint.sealed is None:
        return None
    manifest = read_manifest(checkpoint.path)
    parents = [str(parent.get("name")) for parent in manifest["parents"] if isinstance(parent, dict)]
    return {"version": manifest.get("version"), "digest": manifest["digest"], "parents": parents}
