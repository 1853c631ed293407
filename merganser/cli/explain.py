"""`merganser explain`: the plan of a recipe, from headers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from merganser.cli import console

NAME = "explain"
EXAMPLE = "Example: merganser explain recipe.yaml"


def command(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe.")],
    memory: Annotated[str, typer.Option(help="What the whole process may hold.")] = "1GiB",
    threads: Annotated[int, typer.Option(help="Worker threads; 0 is one a core.", min=0)] = 0,
    shard_size: Annotated[str, typer.Option(help="What one file may hold.")] = "5GB",
    allow_pickle: console.ALLOW_PICKLE = False,
    as_json: console.JSON = False,
) -> None:
    """Show what a merge would do: formulas, passes, bytes, memory, files. Reads no tensor bytes."""
    limit = console.parse_size(memory, "--memory")
    shard = console.parse_size(shard_size, "--shard-size")
    from merganser import explain
    from merganser.recipe import build, load

    read = load(recipe)
    summary = read.method.summary.rstrip(".")
    weights, fields = build(read, allow_pickle=allow_pickle)
    plan = explain(weights, memory=limit, threads=threads, shard_size=shard, **fields)
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
    said = fields["recipe"]
    console.say(f"\nmethod   {said['method']} ({summary})")
    for name, value in said["parameters"].items():
        console.say(f"         {name} {value}")
    for model in said["models"]:
        own = "".join(f", {name} {value}" for name, value in model["parameters"].items())
        base = ", the base" if model["name"] == said["base"] else ""
        console.say(f"         {model['name']}{base}{own}")
    for one in said.get("steps", []):
        console.say(f"step     {', '.join(f'{name} {settings}' for name, settings in one.items())}")
    console.say("\nformulas (--json has them in full)")
    for formula, count in plan["forms"].items():
        console.say(f"  {count} tensors: {formula if len(formula) <= 150 else formula[:147] + '...'}")
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
    for parent, names in plan["unused"].items():
        console.say(f"not used of {parent}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}")
