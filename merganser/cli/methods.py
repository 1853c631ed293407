"""`merganser methods`: what can be merged how."""

from __future__ import annotations

import inspect
import sys
from typing import Annotated

import typer

from merganser.cli import console

NAME = "methods"
EXAMPLE = "Example: merganser methods ties"


def command(
    name: Annotated[str | None, typer.Argument(help="A method, for its formula and parameters.")] = None,
    as_json: console.JSON = False,
) -> None:
    """List the merge methods, or explain one: formula, parameters, defaults, paper."""
    from merganser.methods.registry import Method, all_methods, broken, get

    def document(method: Method) -> dict[str, object]:
        return {
            "name": method.name,
            "summary": method.summary,
            "paper": method.paper,
            "parameters": [
                {
                    "name": p.key,
                    "per_model": p.per_model,
                    "required": p.required,
                    "default": None if p.required else p.default,
                }
                for p in method.parameters
            ],
        }

    if name is not None:
        method = get(name)
        text = inspect.getdoc(method.function) or ""
        if as_json:
            console.print_json(document(method) | {"documentation": text})
        else:
            print(f"{method.name}\n\n{text}")
        return
    found = all_methods()
    if as_json:
        console.print_json({"methods": [document(m) for m in found.values()], "broken": broken()})
        return
    console.table(
        ("method", "paper", "what it does"), [(m.name, m.paper or "-", m.summary) for m in found.values()]
    )
    for entry, reason in broken().items():
        print(f"warning: the method {entry!r} cannot be loaded: {reason}", file=sys.stderr)
