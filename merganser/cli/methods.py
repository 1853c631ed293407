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
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A method, for its formula and parameters.")
    ] = None,
    as_json: console.JSON = False,
) -> None:
    """List the merge methods, or explain one: formula, parameters, defaults, paper."""
    from merganser.methods.registry import Method, all_methods, broken, get

    def document(method: Method) -> dict[str, object]:
        return {
            "name": method.name,
            "summary": method.summary,
            "paper": method.paper,
            "base": method.base,
            "min_models": method.min_models,
            "max_models": method.max_models,
            "statistics": method.statistics,
            "parameters": [
                {
                    "name": p.key,
                    "kind": p.kind,
                    "choices": list(p.choices),
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
            console.say(f"{method.name}\n\n{text}\n")
            console.table(
                ("parameter", "default", "kind", "may differ by"),
                [
                    (
                        p.key,
                        "required" if p.required else str(p.default),
                        " or ".join(p.choices) or p.kind,
                        "model and tensor" if p.per_model else "tensor" if p.kind == "coefficient" else "-",
                    )
                    for p in method.parameters
                ],
            )
        return
    found = all_methods()
    if as_json:
        console.print_json({"methods": [document(m) for m in found.values()], "broken": broken()})
        return
    console.table(("method", "base", "what it does"), [(m.name, m.base, m.summary) for m in found.values()])
    for reason in broken().values():
        print(console.clean(f"warning: {reason}"), file=sys.stderr)
