"""The place where statistics grow until they are whole: a hidden sibling of OUT, with what was done so far.

`.OUT.merganser-observe/` holds `state.json` (the fingerprint of the run and what is finished), files of sums, hidden
states of a run layer by layer, and `out/`, which becomes OUT by one rename.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from merganser.checkpoint.digest import digest_file
from merganser.checkpoint.layout import MANIFEST_NAME
from merganser.engine.workspace import exchange, naming, rename_new
from merganser.errors import NonFiniteError, OutputError, RequestError

Array = np.ndarray[Any, Any]
KEPT = "What was finished is kept"


class Partial:
    """What one run has done. Use as a context manager; `seal` makes it the output."""

    def __init__(self, out: Path, *, overwrite: bool) -> None:
        self.out = Path(os.path.abspath(out))
        self.home = self.out.parent / f".{self.out.name}.merganser-observe"
        self.made = self.home / "out"
        self.overwrite = overwrite
        self.state: dict[str, Any] = {}
        self.resumed = False
        self._lock: Any = None
        _check_target(self.out, overwrite)

    def __enter__(self) -> Partial:
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        useless = isinstance(error, RequestError | NonFiniteError)  # the same command would end there again
        if error is not None and self._lock is not None and len(self.state) > 1 and not useless:
            error.add_note(
                f"what was finished is kept in {self.home}: the same command goes on from there, and --no-resume "
                "starts over; delete it if you do neither"
            )
        elif error is not None and self._lock is not None:
            shutil.rmtree(self.home, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()

    def open(self, fingerprint: Mapping[str, Any], *, resume: bool) -> None:
        """Take the directory: go on in it where the fingerprint is the same, else start over."""
        with naming(self.out, KEPT):
            self.home.mkdir(parents=True, exist_ok=True)
            lock = (self.home / "lock").open("w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                lock.close()
                raise OutputError(f"{self.out}: another process is writing it") from error
            self._lock = lock
            mark = json.loads(json.dumps(fingerprint))
            found = self._read() if resume else None
            if found is not None and found.get("fingerprint") == mark:
                self.state, self.resumed = found, len(found) > 1
            else:
                for path in self.home.iterdir():
                    if path.name != "lock":
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
                self.state = {"fingerprint": mark}
            shutil.rmtree(self.made, ignore_errors=True)

    def _read(self) -> dict[str, Any] | None:
        try:
            found = json.loads((self.home / "state.json").read_text())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def note(self, **changes: Any) -> None:
        """Change the state, all at once."""
        state = self.state | changes
        with naming(self.out, KEPT):
            fresh = self.home / "state.new"
            with fresh.open("w") as file:
                json.dump(state, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, self.home / "state.json")
        self.state = state

    def keep(self, name: str, arrays: Mapping[str, Array]) -> dict[str, str]:
        """Write arrays to a file of their own and give what finds it again."""
        path = self.home / f"{name}.npz"
        fresh = self.home / f"{name}.new"
        with naming(self.out, KEPT):
            with fresh.open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
                file.flush()
                os.fsync(file.fileno())
            digest = digest_file(fresh)
            os.replace(fresh, path)
        return {"file": path.name, "digest": digest}

    def kept(self, record: Mapping[str, Any]) -> dict[str, Array] | None:
        """What `keep` wrote, or None where the file is not as it was."""
        path = self.home / str(record.get("file"))
        if not path.is_file() or digest_file(path) != record.get("digest"):
            return None
        with np.load(path, allow_pickle=False) as held:
            return {key: held[key] for key in held.files}

    def seal(self) -> None:
        """Make the output appear under its name."""
        with naming(self.out, KEPT):
            _check_target(self.out, self.overwrite)
            (exchange if self.out.exists() else rename_new)(self.made, self.out)
            shutil.rmtree(self.home, ignore_errors=True)


def _check_target(out: Path, overwrite: bool) -> None:
    if not out.exists() and not out.is_symlink():
        return
    if not overwrite:
        raise RequestError(
            f"{out}: already exists. Choose another name, or pass --overwrite to replace it at the end"
        )
    if out.is_symlink() or not out.is_dir():
        raise RequestError(f"{out}: is not a directory, so it is not replaced; remove it yourself")
    strange = [path.name for path in out.iterdir() if not (path / MANIFEST_NAME).is_file()]
    if strange:
        raise RequestError(f"{out}: holds {strange[0]!r}, which is no statistics, so it is not replaced")
