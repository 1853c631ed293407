"""`merganser explain`: the plan of a recipe, from headers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from merganser.cli import _saving, console

NAME = "explain"
EXAMPLE = "Example: merganser explain recipe.yaml"


def command(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML recipe.")],
    memory: console.MEMORY = "1GiB",
    threads: Annotated[int, typer.Option(help="Worker threads; 0 is one a core.", min=0)] = 0,
    shard_size: Annotated[str, typer.Option(help="What one file may hold.")] = "5GB",
    allow_pickle: console.ALLOW_PICKLE = False,
    strict: _saving.STRICT = False,
    as_json: console.JSON = False,
) -> None:
    """Show what a merge would do: formulas, passes, bytes, memory, files. Reads no tensor bytes."""
    limit = console.parse_size(memory, "--memory")
    shard = console.parse_size(shard_size, "--shard-size")
    from merganser import explain
    from merganser.recipe import build, load

    read = load(recipe, strict=strict)
    summary = read.summary.rstrip(".")
    weights, fields = build(read, allow_pickle=allow_pickle)
    plan = explain(weights, memory=limit, threads=threads, shard_size=shard, **fields)
    for note in weights.notes:
        if "warning" in note:
            console.warn(str(note["warning"]))
    if as_json:
        console.print_json(plan)
        return
    console.say("parents")
    console.table(
        ("name", "tensors", "size", "dtypes", "path"),
        [
            (p["name"], p["tensors"], console.size(p["bytes"]), ", ".join(p["dtypes"]), p["path"])
            for p in plan["parents"]
        ],
    )
    _said(fields["recipe"], summary)
    console.say("\nformulas (--json has them in full)")
    for formula, count in plan["forms"].items():
        console.say(
            f"  {console.counted(count, 'tensor')}: {formula if len(formula) <= 150 else formula[:147] + '...'}"
        )
    held = plan["memory"]
    console.say(
        f"\npasses   {plan['passes']} over the largest tensors, {plan['kernels']} kernels, {plan['threads']} threads"
    )
    console.say(f"read     {console.size(plan['bytes_read'])}")
    console.say(f"write    {console.size(plan['bytes_written'])} in {len(plan['shards'])} files")
    console.say(
        f"memory   {console.size(held['needed'])} of {console.size(held['limit'])} "
        f"({console.size(held['per_thread'])} a thread, tiles of {held['tile_elements']:,} elements)"
    )
    console.say(f"time     about {plan['estimate_seconds']} s if the parents are in memory")
    for note in plan["notes"]:
        console.say(_saving.note_line({key: value for key, value in note.items() if key != "warning"}))
    for parent, names in plan["unused"].items():
        console.say(f"not used of {parent}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}")


def _said(recipe: dict[str, Any], summary: str) -> None:
    """What the recipe asks for."""
    for name, document in recipe.get("documents", {}).items():
        console.say(f"\ndocument {name}")
        _said(document, "")
    console.say(f"\nmethod   {recipe['method']}{f' ({summary})' if summary else ''}")
    for key in ("vocabulary", "mismatch"):
        if key in recipe:
            console.say(f"{key:<8} {recipe[key]}")
    for name, value in recipe.get("parameters", {}).items():
        console.say(f"         {name} {value}")
    for model in recipe["models"]:
        base = ", the base" if model["name"] == recipe.get("base") else ""
        observed = f", statistics {model['statistics']}" if "statistics" in model else ""
        console.say(f"         {model['name']}{base}{_listed(model.get('parameters', {}))}{observed}")
    for part in recipe.get("parts", []):
        if part["module"]:
            console.say(f"module   {part['module']}{_listed(part['parameters'])}")
        for one in part["slices"]:
            sources = [
                f"{source['model']}{_range(source['layers'])}{_listed(source['parameters'])}"
                + (f", statistics {source['statistics']}" if "statistics" in source else "")
                for source in one["sources"]
            ]
            console.say(f"slice    {' | '.join(sources)}{_listed(one['parameters'])}")
    for one in recipe.get("steps", []):
        console.say(f"step     {', '.join(f'{name} {settings}' for name, settings in one.items())}")


def _listed(parameters: dict[str, Any]) -> str:
    return "".join(f", {name} {value}" for name, value in parameters.items())


def _range(layers: list[int] | None) -> str:
    return "" if layers is None else f" layers {layers[0]} to {layers[1] - 1}"
