"""Files that hold tensor bytes: opened once, read by position from any thread, and noticed when they change."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

from merganser.errors import CheckpointError


def shown(path: str | os.PathLike[str]) -> str:
    r"""A path as text that UTF-8 can hold: bytes of a name that are no UTF-8 become `\xff`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What tells that a file is still the file that was opened, without reading it."""

    device: int
    inode: int
    size: int
    mtime_ns: int


class StoredFile:
    """One file of a checkpoint. The descriptor is opened on first use and shared by all threads (positional reads)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None
        self._lock = threading.Lock()
        try:
            self.identity = _identity(os.stat(path))
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error

    @property
    def size(self) -> int:
        """Size in bytes when the file was opened."""
        return self.identity.size

    def fd(self) -> int:
        """The open descriptor."""
        if self._fd is None:
            with self._lock:
                if self._fd is None:
                    try:
                        self._fd = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
                    except OSError as error:
                        raise CheckpointError(f"{self.path}: cannot be read: {error.strerror}") from error
        return self._fd

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` with the bytes at `offset`; a file that has become shorter is an error."""
        done = 0
        while done < len(buffer):
            try:
                got = os.preadv(self.fd(), [buffer[done:]], offset + done)
            except OSError as error:
                raise CheckpointError(f"{self.path}: reading failed: {error.strerror}") from error
            if got == 0:
                raise CheckpointError(
                    f"{self.path}: ends before byte {offset + done} while {len(buffer) - done} more were due; "
                    "the file was cut while it was read"
                )
            done += got

    def read(self, offset: int, count: int) -> bytearray:
        """`count` bytes at `offset`."""
        buffer = bytearray(count)
        self.read_into(memoryview(buffer), offset)
        return buffer

    def fetch(self) -> None:
        """Bring the file here; one that lies on this machine is."""

    def check_unchanged(self) -> None:
        """Raise `CheckpointError` if the path no longer holds the file that was opened."""
        try:
            now = _identity(os.stat(self.path))
        except OSError as error:
            raise CheckpointError(f"{self.path}: was lost while it was in use: {error.strerror}") from error
        if now != self.identity:
            raise CheckpointError(
                f"{self.path}: was changed while it was in use; run again with the file at rest"
            )

    def close(self) -> None:
        """Give the descriptor back."""
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None

    def __del__(self) -> None:
        self.close()


def _identity(stat: os.stat_result) -> FileIdentity:
    return FileIdentity(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)


def foreign(start: bytes) -> str | None:
    """What a file is by its first bytes, where it is plainly something else than weights or JSON, and the way out."""
    text = bytes(start[:512]).lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return (
            "is a git-lfs pointer, a few lines that stand for the file: fetch it with `git lfs pull` in the clone, or "
            "download the model again"
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "is a web page, not the file: what was saved is an error or a log-in page. Download it again"
    return None


def other_weights(start: bytes) -> str | None:
    """As `foreign`, for weights in a form other than safetensors."""
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04")):
        return "is a torch file (a pickle) under this name: call it .bin and open it with --allow-pickle"
    if start.startswith(b"GGUF"):
        return "is a GGUF file under this name, a form that is not read; open the model that it was made of"
    if start.startswith(b"\x89HDF"):
        return "is an HDF5 file under this name, a form that is not read; save the model as safetensors"
    return None
