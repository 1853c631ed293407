"""The place where an output grows until it is whole: a hidden sibling directory with a journal.

`.OUT.merganser-partial/` holds `journal.jsonl` (first line: the fingerprint of the run; then one line per finished
tensor), `lock`, and `model/`, which becomes OUT by one rename. A process that dies leaves it behind, and the same
command takes over the finished tensors after comparing their digests.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from merganser.checkpoint import Checkpoint, StoredFile, StoredTensor
from merganser.checkpoint.digest import digest_tensor
from merganser.checkpoint.header import read_header
from merganser.checkpoint.layout import MANIFEST_NAME
from merganser.engine.files import Shard
from merganser.engine.plan import Output
from merganser.errors import CheckpointError, OutputError, RequestError

_AT_FDCWD = -100
_NO_REPLACE, _EXCHANGE = 1, 2


def is_file_name(out: Path) -> bool:
    """Whether an output is to be one file and not a directory, by its name."""
    return out.suffix == ".safetensors"


class Workspace:
    """The partial output of one run. Use as a context manager; `seal` makes it the output."""

    def __init__(self, out: Path, *, overwrite: bool, parents: Sequence[Checkpoint], sync: bool) -> None:
        self.out = Path(os.path.abspath(out))
        self.partial = self.out.parent / f".{self.out.name}.merganser-partial"
        self.model = self.partial / "model"
        self.overwrite = overwrite
        self.sync = sync
        self.finished: dict[str, dict[str, Any]] = {}
        self._journal: Any = None
        self._lock_file: Any = None
        self._descriptors: dict[str, int] = {}
        self._places: dict[str, tuple[int, int]] = {}
        self._journal_lock = threading.Lock()
        self._stop = threading.Event()
        self._syncer: threading.Thread | None = None
        _check_target(self.out, overwrite, parents)

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if error is not None and self._journal is not None:
            kept = sum(not name.startswith(" ") and bool(name) for name in self.finished)
            error.add_note(
                f"what was finished ({kept} of {len(self._places)} tensors) is kept in {self.partial}: the same "
                "command goes on from there, and --no-resume starts over; delete it if you do neither"
            )
        self._stop_syncing()
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()
        for file in (self._journal, self._lock_file):
            if file is not None:
                file.close()

    def open(
        self, fingerprint: str, shards: Sequence[Shard], outputs: Sequence[Output], *, resume: bool
    ) -> None:
        """Take the directory for this run: continue in it where the fingerprint is the same, else start over."""
        with naming(self.partial):
            self.partial.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            journal = self.partial / "journal.jsonl"
            found = _read_journal(journal, fingerprint) if resume and self.model.is_dir() else None
            if found is None:
                shutil.rmtree(self.model, ignore_errors=True)
                journal.unlink(missing_ok=True)
                self.model.mkdir()
            for shard in shards:
                self._open_shard(shard)
        by_name = {output.name: output for output in outputs}
        for name, record in (found or {}).items():
            if name in by_name and self._holds(by_name[name], record["digest"]):
                self.finished[name] = record
        with naming(self.partial):
            self._start_journal(journal, fingerprint)

    def _start_journal(self, path: Path, fingerprint: str) -> None:
        """A fresh journal of what was taken over: a line that a dying process left half-written must not stay."""
        fresh = path.with_suffix(".new")
        self._journal = fresh.open("w")
        self._write_line({"fingerprint": fingerprint})
        for name, record in self.finished.items():
            self._write_line({"tensor": name, **record})
        os.replace(fresh, path)

    def _take_lock(self) -> None:
        self._lock_file = (self.partial / "lock").open("w")
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OutputError(f"{self.out}: another process is writing it") from error

    def _open_shard(self, shard: Shard) -> None:
        descriptor = os.open(self.model / shard.name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._descriptors[shard.name] = descriptor
        os.ftruncate(descriptor, shard.size)
        os.pwrite(descriptor, shard.header, 0)
        for name, offset in shard.offsets.items():
            self._places[name] = (descriptor, offset)

    def _holds(self, output: Output, digest: str) -> bool:
        """Whether a tensor that the journal calls finished is really on disk (power may have failed since)."""
        try:
            return self.digest(output) == digest
        except CheckpointError:
            return False

    def digest(self, output: Output) -> str:
        """The digest of a tensor as it lies on the disk."""
        descriptor, offset = self._places[output.name]
        shard = next(name for name, held in self._descriptors.items() if held == descriptor)
        stored = StoredFile(self.model / shard)
        return digest_tensor(StoredTensor(output.name, output.dtype, output.shape, stored, offset, "output"))

    # Writing ----------------------------------------------------------------------------------------------------------

    def write(self, output: Output, start: int, data: memoryview) -> None:
        """Put elements from flat index `start` on at their final place. Called from any thread."""
        descriptor, offset = self._places[output.name]
        position = offset + output.dtype.nbytes(start)
        with naming(self.out):
            while data:
                written = os.pwrite(descriptor, data, position)
                position += written
                data = data[written:]

    def finish(self, name: str, record: Mapping[str, Any]) -> None:
        """Note that a tensor is whole."""
        with self._journal_lock, naming(self.out):
            self.finished[name] = dict(record)
            self._write_line({"tensor": name, **record})

    def _write_line(self, line: Mapping[str, Any]) -> None:
        self._journal.write(json.dumps(line) + "\n")
        self._journal.flush()

    def start_syncing(self) -> None:
        """Send written pages to the disk while computing goes on, so that the last fsync is short."""
        if self.sync:
            self._syncer = threading.Thread(target=self._sync_loop, daemon=True)
            self._syncer.start()

    def _sync_loop(self) -> None:
        while not self._stop.wait(0.2):
            for descriptor in list(self._descriptors.values()):
                with suppress(OSError):
                    os.fdatasync(descriptor)

    def _stop_syncing(self) -> None:
        self._stop.set()
        if self._syncer is not None:
            self._syncer.join()
            self._syncer = None

    # Sealing ----------------------------------------------------------------------------------------------------------

    def add_file(self, name: Path | str, content: bytes) -> None:
        """A small file of the output."""
        path = self.model / name
        with naming(self.out):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                file.write(content)
                if self.sync:
                    file.flush()
                    os.fsync(file.fileno())

    def copy_file(self, name: str, source: Path) -> None:
        """A file of a parent, as it is, a piece at a time."""
        path = self.model / name
        with naming(self.out):
            path.parent.mkdir(parents=True, exist_ok=True)
            with source.open("rb") as read, path.open("wb") as file:
                shutil.copyfileobj(read, file, 1 << 20)
                if self.sync:
                    file.flush()
                    os.fsync(file.fileno())

    def rewrite_header(self, shard: str, header: bytes) -> None:
        """Put a header of the same length in place of the one that a file began with."""
        with naming(self.out):
            os.pwrite(self._descriptors[shard], header, 0)

    def seal(self) -> None:
        """Make the output appear, whole, under its name."""
        made = self.model / self.out.name if is_file_name(self.out) else self.model
        self._stop_syncing()
        with naming(self.out):
            for descriptor in self._descriptors.values():
                if self.sync:
                    os.fsync(descriptor)
            if self.sync:
                _sync_directory(self.model)
            _check_target(self.out, self.overwrite, ())
            if self.out.exists():
                exchange(made, self.out)
            else:
                rename_new(made, self.out)
            if self.sync:
                _sync_directory(self.out.parent)
            shutil.rmtree(self.partial, ignore_errors=True)


def _check_target(out: Path, overwrite: bool, parents: Sequence[Checkpoint]) -> None:
    """Refuse to touch what is there: an output that exists, a directory that is no checkpoint, a parent."""
    for parent in parents:
        home = parent.path.resolve()
        if out.exists() and (out.resolve() == home or out.resolve() in home.parents):
            raise RequestError(
                f"{out}: is or contains the parent {parent.name!r}; choose another place for the result"
            )
        if home.is_dir() and home in out.resolve().parents:
            raise RequestError(
                f"{out}: lies inside the parent {parent.name!r}; choose another place for the result"
            )
    if not out.exists() and not out.is_symlink():
        return
    if not overwrite:
        raise RequestError(
            f"{out}: already exists. Choose another name, or pass --overwrite to replace it at the end"
        )
    if is_file_name(out):
        if out.is_symlink() or not out.is_file():
            raise RequestError(f"{out}: is not a file, so it is not replaced by one; remove it yourself")
        try:
            read_header(StoredFile(out), "output")
        except CheckpointError as error:
            raise RequestError(
                f"{out}: is no checkpoint, so it is not replaced; remove it yourself"
            ) from error
        return
    if out.is_symlink() or not out.is_dir():
        raise RequestError(f"{out}: is not a directory, so it is not replaced; remove it yourself")
    if not (out / MANIFEST_NAME).exists() and not any(out.glob("*.safetensors")) and any(out.iterdir()):
        raise RequestError(
            f"{out}: does not look like a checkpoint, so it is not replaced; remove it yourself"
        )


def _read_journal(path: Path, fingerprint: str) -> dict[str, dict[str, Any]] | None:
    """The finished tensors of an interrupted run with this fingerprint; None if it was another run."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    finished: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(lines):
        try:
            entry = json.loads(line)
        except ValueError:
            break  # the line that was being written when the process died
        if not isinstance(entry, dict) or (number == 0 and entry.get("fingerprint") != fingerprint):
            return None
        if isinstance(entry.get("tensor"), str) and isinstance(entry.get("digest"), str):
            finished[entry.pop("tensor")] = entry
    return finished if lines else None


@contextmanager
def naming(path: Path, kept: str = "Finished tensors are kept") -> Iterator[None]:
    """Turn failures of the file system into errors that say what to do; `kept` is what a full disk leaves."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(
                f"{path}: the disk is full. {kept} beside it; free space and run the same command "
                "again to go on from there"
            ) from error
        if error.errno == errno.EFBIG:
            raise OutputError(
                f"{path}: a file would pass the size limit; use a smaller --shard-size"
            ) from error
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error


def rename_new(source: Path, target: Path) -> None:
    """Rename that fails rather than replace something that has just appeared."""
    if not _renameat2(source, target, _NO_REPLACE):
        os.rename(source, target)


def exchange(source: Path, target: Path) -> None:
    """Swap the new directory in; the old one goes with the partial directory."""
    if _renameat2(source, target, _EXCHANGE):
        return
    aside = source.parent / "replaced"
    os.rename(target, aside)
    try:
        os.rename(source, target)
    except OSError:
        os.rename(aside, target)
        raise


def _renameat2(source: Path, target: Path, flags: int) -> bool:
    """Linux's atomic rename with flags. False where the system or the file system has none."""
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    if function(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS):
        return False
    raise OSError(code, os.strerror(code), str(target))


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
