"""The folder in which results grow until they are whole: a hidden sibling that becomes OUT by one rename."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from merganser.engine.workspace import exchange, naming, rename_new
from merganser.errors import OutputError, RequestError

RESULTS = "results.json"
_JOURNAL = "journal.json"


def check_target(out: Path, overwrite: bool) -> None:
    """Raise `RequestError` where OUT cannot be made: it exists, or what is there does not look like results."""
    if not next(place for place in out.absolute().parents if place.exists()).is_dir():
        raise RequestError(f"{out}: a file is in the place of its folder")
    if not out.exists() and not out.is_symlink():
        return
    if not overwrite:
        raise RequestError(
            f"{out}: already exists. Choose another name, or pass --overwrite to replace it at the end"
        )
    if out.is_symlink() or not out.is_dir():
        raise RequestError(f"{out}: is not a directory, so it is not replaced; remove it yourself")
    if not (out / RESULTS).is_file() and any(out.iterdir()):
        raise RequestError(f"{out}: does not look like results, so it is not replaced; remove it yourself")


class Workspace:
    """The results of one run as they grow. Use as a context manager; `seal` makes them OUT.

    What an interrupted or killed run had finished is kept beside OUT; after any other error nothing is.
    """

    def __init__(self, out: Path, *, overwrite: bool, fingerprint: str = "", resume: bool = False) -> None:
        self.out = Path(os.path.abspath(out))
        self.partial = self.out.parent / f".{self.out.name}.merganser-partial"
        self.folder = self.partial / "results"
        self.overwrite = overwrite
        self.fingerprint = fingerprint
        self.finished: dict[str, dict[str, Any]] = {}
        check_target(self.out, overwrite)
        with naming(self.out, "Finished tasks are kept"):
            self.partial.mkdir(parents=True, exist_ok=True)
            self._lock = (self.partial / "lock").open("w")
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self._lock.close()
                raise OutputError(f"{self.out}: another process is writing it") from None
            self.finished = self._found() if resume else {}
            if not self.finished:
                (self.partial / _JOURNAL).unlink(missing_ok=True)
                shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(exist_ok=True)

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if isinstance(error, KeyboardInterrupt) and self.finished:
            error.add_note(
                f"the results of {len(self.finished)} finished tasks are kept in {self.partial}: the same command goes "
                "on from there, and --no-resume starts over; delete it if you do neither"
            )
        elif self.partial.exists():
            shutil.rmtree(self.partial, ignore_errors=True)
        self._lock.close()  # last: what is removed may not be another run's

    def add(self, name: str, content: bytes) -> None:
        """A file of the output."""
        with naming(self.out, "Finished tasks are kept"):
            _write(self.folder / name, content)

    def finish(self, task: str, record: Mapping[str, Any]) -> None:
        """Note that the files of a task are whole."""
        self.finished[task] = dict(record)
        document = {"fingerprint": self.fingerprint, "finished": self.finished}
        with naming(self.out, "Finished tasks are kept"):
            fresh = self.partial / f"{_JOURNAL}.new"
            _write(fresh, json.dumps(document).encode())
            os.replace(fresh, self.partial / _JOURNAL)

    def seal(self) -> None:
        """Make the output appear, whole, under its name."""
        with naming(self.out, "Finished tasks are kept"):
            check_target(self.out, self.overwrite)
            if self.out.exists():
                exchange(self.folder, self.out)
            else:
                rename_new(self.folder, self.out)

    def _found(self) -> dict[str, dict[str, Any]]:
        """What an interrupted run with this fingerprint had finished."""
        with suppress(OSError, ValueError):
            document = json.loads((self.partial / _JOURNAL).read_bytes())
            if document.get("fingerprint") == self.fingerprint and isinstance(document.get("finished"), dict):
                return dict(document["finished"])
        return {}


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
