"""`merganser extract-lora`: a LoRA adapter from a fine-tune."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from merganser.cli import _saving, console
from merganser.cli.adapter_combine import DTYPE, ENERGY, RANK
from merganser.errors import RequestError

NAME = "extract-lora"
EXAMPLE = "Example: merganser extract-lora models/base models/tuned adapter --rank 32"


@_saving.options("seed", "shard_size", "no_proof", "check")
def command(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model that was fine-tuned.")],
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The fine-tune.")],
    out: _saving.OUT,
    rank: RANK = None,
    energy: ENERGY = None,
    include: Annotated[list[str] | None, typer.Option(help="Tensors to take, by name pattern.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Tensors to leave, by name pattern.")] = None,
    embeddings: Annotated[bool, typer.Option("--embeddings", help="Take embeddings too.")] = False,
    allow_loss: Annotated[
        bool, typer.Option("--allow-loss", help="Leave out changes that a LoRA cannot carry, and list them.")
    ] = False,
    task_type: Annotated[str | None, typer.Option(help="For the config, CAUSAL_LM for instance.")] = None,
    architecture: Annotated[
        str | None,
        typer.Option(
            help="The class of transformers that the adapter is for, BertForSequenceClassification for instance. "
            "Default: what config.json says."
        ),
    ] = None,
    dtype: DTYPE = "float32",
    *,
    saving: _saving.Saving,
) -> None:
    """Make a LoRA adapter of what MODEL changed in BASE, by truncated SVD, of rank 32 unless said otherwise."""
    from merganser import open as open_weights
    from merganser.methods.adapters import difference, extract

    limit = console.parse_size(saving.memory, "--memory")
    first, second = (open_weights(path, allow_pickle=saving.allow_pickle) for path in (base, model))
    if abs(second.degree) < 1e-6:
        raise RequestError(f"{model} is a change and not a fine-tune; combine-lora --rank resizes adapters")
    change, unlike = difference(second, first)
    adapter = extract(
        change,
        unlike=unlike,
        rank=rank,
        energy=energy,
        include=include or (),
        exclude=exclude or (),
        embeddings=embeddings,
        allow_loss=allow_loss,
        base=base,
        task_type=task_type,
        architecture=architecture,
        threads=saving.threads,
        memory=limit,
    )
    recipe = {"base": base, "model": model, "rank": rank, "energy": energy, "embeddings": embeddings}
    fields = {"degree": 0.0, "dtype": dtype, "recipe": recipe}
    report = _saving.write(adapter, fields, out, saving, NAME, "extracting")
    if not saving.quiet and not saving.as_json:
        _tell_kept(out, next(note for note in report.notes if note.get("step") == "extract_lora"))


def _tell_kept(out: Path, note: Mapping[str, Any]) -> None:
    """What share of the change the adapter holds, and where least of it."""
    from merganser import open as open_weights
    from merganser.methods.adapters import kept_energy

    kept = kept_energy(open_weights(out))
    whole = math.fsum(norm**2 for norm in note["norms"].values())
    live = {f"{module}.weight": name for name, module in note["live_modules"].items()}
    shares = {name: held / note["norms"][live.get(name, name)] ** 2 for name, held in kept.items()}
    least = min(shares, key=lambda name: shares[name])
    lost = f"; without the {len(note['lost'])} tensors that are lost" if note["lost"] else ""
    console.say(
        f"kept {math.fsum(kept.values()) / whole:.2%} of the squared norm of the change, least in {least} "
        f"({shares[least]:.2%}){lost}"
    )
    console.say(
        f"its modules are those of {note['live_class']}"
        if note["live_class"]
        else "its modules are called as in the files: what transformers calls them is not known for this model, so see "
        "in PEFT that no keys are missing"
    )
