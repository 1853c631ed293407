"""`merganser architecture`: how a model is read, or a draft for a family without a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from merganser.cli import console

if TYPE_CHECKING:
    from merganser.architectures import Reading

NAME = "architecture"
EXAMPLE = "Example: merganser architecture models/base"


def command(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="A model directory. Without one the known families are listed."),
    ] = None,
    allow_pickle: console.ALLOW_PICKLE = False,
    as_json: console.JSON = False,
) -> None:
    """Show the axes of a model by name: every tensor, every axis, its size and config key.

    For a model of an unknown family a draft of its file is printed, with what could not be decided. Reads headers only.
    """
    from merganser.architectures import families, family_of, read
    from merganser.checkpoint import open_checkpoint
    from merganser.errors import RequestError

    if model is None:
        known = families()
        if as_json:
            console.print_json({"families": {f.name: list(f.model_types) for f in known.values()}})
        else:
            console.table(
                ("family", "model types", "axes"),
                [
                    (f.name, ", ".join(f.model_types), ", ".join((*f.indices, *f.axes)))
                    for f in known.values()
                ],
            )
        return
    checkpoint = open_checkpoint(model, allow_pickle=allow_pickle)
    if checkpoint.is_adapter:
        raise RequestError(
            f"{checkpoint.name} is a LoRA adapter, a change of a model, and has no axes of its own; "
            "`merganser info` shows what it changes"
        )
    checkpoint.refuse_factors()
    kind = str((checkpoint.config or {}).get("model_type"))
    if checkpoint.config is None or family_of(kind) is None:
        _draft(checkpoint, as_json)
        return
    reading = read(checkpoint)
    found = document(reading)
    if as_json:
        console.print_json(found)
        return
    console.say(
        f"{checkpoint.path}: family {reading.family.name}, {len(reading.tensors)} tensors, each named once\n"
    )
    console.table(
        ("axis", "of each", "size", "config", "elements"),
        [(a["axis"], a["scope"], a["size"], a["config"], a["elements"]) for a in found["axes"]],
    )
    console.say()
    console.table(
        ("tensors", "count", "kind", "axes", "shape"),
        [(t["pattern"], t["count"], t["kind"], t["axes"], t["shape"]) for t in found["tensors"]],
    )
    if found["tied"]:
        console.say("tied: " + ", ".join(f"{head} is {shared}" for head, shared in found["tied"].items()))


def document(reading: Reading) -> dict[str, Any]:
    """The document that --json prints."""
    family = reading.family
    axes = []
    for spec in (*family.indices.values(), *family.axes.values()):
        instances = reading.instances(spec.name)
        if not instances:
            continue
        sizes = sorted({reading.sizes[one] for one in instances})
        kind = (
            "copies"
            if spec.name in family.indices
            else "fixed places"
            if spec.name in family.fixed
            else "free"
        )
        axes.append(
            {
                "axis": spec.name,
                "scope": ", ".join(spec.scope) or "model",
                "size": sizes[0] if len(sizes) == 1 else sizes,
                "config": str(spec.size),
                "elements": kind,
            }
        )
    groups: dict[str, list[str]] = {}
    for name, named in reading.tensors.items():
        groups.setdefault(named.spec.pattern, []).append(name)
    tensors = []
    for pattern, names in groups.items():
        named = reading.tensors[names[0]]
        shapes = {reading.shape(reading.tensors[name]) for name in names}
        tensors.append(
            {
                "pattern": (reading.prefix if pattern not in family.heads else "") + pattern,
                "count": len(names),
                "kind": named.spec.kind,
                "axes": " ".join(map(str, named.spec.dims)),
                "shape": list(shapes.pop()) if len(shapes) == 1 else "differs",
            }
        )
    return {"family": family.name, "axes": axes, "tensors": tensors, "tied": reading.left_out}


def _draft(checkpoint: Any, as_json: bool) -> None:
    from merganser.architectures.draft import draft

    made = draft(checkpoint)
    if as_json:
        console.print_json({"family": None, "draft": made.text, "undecided": made.questions})
        return
    console.say(f"# {checkpoint.path}: no family file knows this model. A draft:\n")
    console.say(made.text)
    console.say("# Undecided:")
    for question in dict.fromkeys(made.questions):
        console.say(f"# - {question}")
