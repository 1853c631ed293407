"""The command line: one file per command. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer

from merganser._version import __version__
from merganser.cli import diff, explain, info, merge, methods, verify
from merganser.cli.console import fail

app = typer.Typer(
    name="merganser",
    help="Trained weights are data: merge, inspect and verify checkpoints, streamed and sealed.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog="Exit status: 0 done, 1 the work failed, 2 the request is wrong.",
)
for module in (merge, explain, info, diff, verify, methods):
    app.command(name=module.NAME, epilog=module.EXAMPLE)(module.command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"merganser {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


def main() -> NoReturn:
    """The console script. Every failure ends here, as one message and an exit status."""
    as_json = "--json" in sys.argv
    try:
        status = app(standalone_mode=False)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        status = 1
    except BaseException as error:
        status = fail(error, as_json)
    sys.exit(status if isinstance(status, int) else 0)
