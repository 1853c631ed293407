"""Pages that commands write."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from merganser.cli import console
from merganser.errors import OutputError, RequestError


def check(html: Path | None, overwrite: bool) -> None:
    """Before the work: can the page be written where it is wanted?"""
    if html is None:
        return
    if html.is_dir():
        raise RequestError(f"--html {html}: is a directory")
    if not next(place for place in html.absolute().parents if place.exists()).is_dir():
        raise RequestError(f"--html {html}: a file is in the place of its folder")
    if html.exists() and not overwrite:
        raise RequestError(f"{html}: already exists. Choose another name, or pass --overwrite to replace it")


def write(html: Path, content: str) -> None:
    """Beside its place first, so that the page appears whole; a folder that is missing is made."""
    partial = None
    try:
        html.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=html.parent, prefix=f".{html.name}.", delete=False
        ) as file:
            partial = file.name
            file.write(content)
        os.chmod(partial, 0o666 & ~_umask())
        os.replace(partial, html)
    except OSError as error:
        raise OutputError(f"{html}: cannot be written: {error.strerror or error}") from error
    finally:
        if partial is not None and os.path.exists(partial):
            os.unlink(partial)


def tell(
    found: dict[str, Any],
    report: Callable[[dict[str, Any]], None],
    html: Path | None,
    page: str,
    as_json: bool,
) -> None:
    """Write the page where one is wanted, then give the finding as JSON or as a report."""
    if html is not None:
        write(html, page)
    if as_json:
        console.print_json(found)
        return
    report(found)
    if html is not None:
        console.say(f"\npage: {html}")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
