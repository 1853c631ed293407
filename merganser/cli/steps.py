"""`merganser steps`: what can be done to one model."""

from __future__ import annotations

import inspect
from typing import Annotated

import typer

from merganser.cli import console

NAME = "steps"
EXAMPLE = "Example: merganser steps widen"


def command(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A step, for what it does and its parameters.")
    ] = None,
    as_json: console.JSON = False,
) -> None:
    """List the steps of recipes and of `merganser reshape`, or explain one."""
    from merganser.methods import Step, all_steps, get_step

    def document(step: Step) -> dict[str, object]:
        return {
            "name": step.name,
            "summary": step.summary,
            "paper": step.paper,
            "function": str(step.claim),
            "parameters": [
                {
                    "name": p.name,
                    "kind": p.words,
                    "required": p.required,
                    "default": p.default,
                }
                for p in step.parameters
            ],
        }

    if name is None:
        found = all_steps()
        if as_json:
            console.print_json({"steps": [document(step) for step in found.values()]})
        else:
            console.table(("step", "what it does"), [(step.name, step.summary) for step in found.values()])
        return
    step = get_step(name)
    text = inspect.getdoc(step.function) or ""
    if as_json:
        console.print_json(document(step) | {"documentation": text})
        return
    console.say(f"{step.name}\n\n{text}\n\nThe function {step.claim}.\n")
    console.table(
        ("parameter", "default", "kind"),
        [(p.name, "required" if p.required else str(p.default), p.words) for p in step.parameters],
    )
