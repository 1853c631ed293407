"""The command line: one file per command. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from merganser._version import __version__
from merganser.cli import (
    adapter_combine,
    adapter_compress,
    adapter_extract,
    adapter_port,
    architecture,
    compare,
    console,
    diagnose,
    diff,
    evaluate,
    explain,
    info,
    learn,
    localize,
    merge,
    methods,
    observe,
    observe_pair,
    rank_mixtures,
    relate,
    reshape,
    search,
    soup,
    steps,
    verify,
)
from merganser.cli.console import fail

ADAPTERS = (adapter_extract, adapter_combine, adapter_port, adapter_compress)
app = typer.Typer(
    name="merganser",
    help="Trained weights are data: merge, inspect and verify checkpoints, streamed and sealed.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog="Exit status: 0 done, 1 the work failed, 2 the request is wrong, 130 interrupted.",
)
for module in (
    merge,
    reshape,
    explain,
    info,
    architecture,
    diff,
    diagnose,
    evaluate,
    compare,
    relate,
    observe,
    observe_pair,
    verify,
    localize,
    search,
    soup,
    learn,
    rank_mixtures,
    methods,
    steps,
    *ADAPTERS,
):
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
    """The console script: `run` on the arguments of the process."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    gc.set_threshold(200_000)  # a plan is many small objects that all live to the end
    sys.exit(run(sys.argv[1:] or ["--help"]))


def run(arguments: Sequence[str]) -> int:
    """Run one command and give its exit status. Every failure ends here, as one message."""
    as_json = "--json" in arguments
    try:
        status = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        return _reader_gone()
    except BaseException as error:
        return fail(error, as_json)
    return status


def _run(arguments: Sequence[str]) -> int:
    try:
        with console.warnings_told():
            status = app(list(arguments), prog_name="merganser", standalone_mode=False)
    except SystemExit as leaving:
        if leaving.code == 1:  # what typer makes of a broken pipe
            raise BrokenPipeError from leaving
        raise
    if status == 130:  # what typer makes of Ctrl-C
        raise KeyboardInterrupt
    return status if isinstance(status, int) else 0


def _reader_gone() -> int:
    """Whoever read the output left. Commands print when their work is done, so that is no failure."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
