"""Models on the Hugging Face hub: headers by range requests, so that whatever is wrong shows before a download.

A revision is pinned to its commit first. Small files are fetched into the library's own cache; of the weights only
headers are asked for, until a tensor is read or `fetch` is called. What was fetched is compared with the digest that
the hub has for it. Tokens are the library's business: they are neither stored nor shown.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from merganser.checkpoint import layout
from merganser.checkpoint.files import FileIdentity, StoredFile
from merganser.checkpoint.names import role
from merganser.errors import CheckpointError, MerganserError, RequestError

T = TypeVar("T")
PREFIX = "hf://"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}(@[^@\s\x00-\x1f]{1,200})?")
TRIES = 3
"""How often a connection may break before a download is left for another run."""
_FIRST = 1 << 17
"""Bytes asked for first: nearly every header is shorter."""
MOST_FOLDERS_DEEP = 4
MAX_SMALL_FILE = 200_000_000


@dataclass(frozen=True)
class Entry:
    """A file of a repository: its size in bytes and the digests that the hub has, SHA-256 or that of its git blob."""

    name: str
    size: int
    sha256: str | None
    blob: str | None


@dataclass(frozen=True)
class Repository:
    """A model repository at one commit."""

    name: str
    commit: str
    entries: Mapping[str, Entry]

    def __str__(self) -> str:
        return f"{PREFIX}{self.name}@{self.commit}"

    def cached(self, name: str) -> Path | None:
        """The file in the local cache, if it is there and as long as it should be."""
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.name, name, revision=self.commit)
        if isinstance(found, str) and os.path.getsize(found) == self.entries[name].size:
            return Path(found)
        return None

    def fetch(self, name: str) -> Path:
        """The file in the local cache, downloaded (or its download continued) unless it is there, and checked."""
        held = self.cached(name)
        if held is not None:
            return held
        if self.entries[name].sha256 is not None:
            return self._large(name)
        from huggingface_hub import hf_hub_download

        path = Path(asked(f"{self}/{name}", lambda: hf_hub_download(self.name, name, revision=self.commit)))
        _check(path, self.entries[name], f"{self}/{name}")
        return path

    @property
    def home(self) -> Path:
        """The repository's directory in the library's cache."""
        from huggingface_hub import constants

        return Path(constants.HF_HUB_CACHE) / f"models--{self.name.replace('/', '--')}"

    def remember(self, revision: str) -> None:
        """Note what a branch or tag is, as the library does, so that it is known without the network."""
        if not pinned(f"@{revision}") and ".." not in revision:
            place = self.home / "refs" / revision
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(self.commit)

    def _large(self, name: str) -> Path:
        """A file of weights, into the library's cache; the library itself starts over what another process left."""
        entry, blobs = self.entries[name], self.home / "blobs"
        assert entry.sha256 is not None
        blobs.mkdir(parents=True, exist_ok=True)
        blob, part = blobs / entry.sha256, blobs / f"{entry.sha256}.merganser-part"
        with part.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not blob.exists():
                self._download(name, file)
                _check(part, entry, f"{self}/{name}")
                os.replace(part, blob)
        link = self.home / "snapshots" / self.commit / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
        return link

    def _download(self, name: str, file: Any) -> None:
        """Append what is missing, a few times over where the connection breaks."""
        from huggingface_hub.utils import tqdm

        size = self.entries[name].size
        bars: Any = tqdm  # it has no types
        with bars(
            total=size, initial=file.tell(), unit="B", unit_scale=True, desc=f"{self.name}/{name}"
        ) as bar:
            for attempt in range(TRIES):
                try:
                    for piece in self._stream(name, file.tell(), size - file.tell()):
                        file.write(piece)
                        bar.update(len(piece))
                except CheckpointError:
                    if attempt == TRIES - 1:
                        file.flush()
                        raise
                if file.tell() == size:
                    break
        file.flush()

    def _stream(self, name: str, start: int, count: int) -> Iterator[bytes]:
        """Bytes of a file from `start` on, `count` of them unless the connection ends before."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        if count <= 0:
            return
        url = hf_hub_url(self.name, name, revision=self.commit)
        headers = build_hf_headers() | {"Range": f"bytes={start}-{start + count - 1}"}
        try:
            with get_session().stream("GET", url, headers=headers, follow_redirects=True) as response:
                hf_raise_for_status(response)
                # A server without ranges sends all of it; no more is taken than is wanted.
                skip = 0 if response.status_code == 206 else start
                for piece in response.iter_bytes():
                    dropped = min(skip, len(piece))
                    skip -= dropped
                    wanted = piece[dropped : dropped + count]
                    count -= len(wanted)
                    if wanted:
                        yield wanted
                    if not count:
                        return
        except Exception as error:  # as in `asked`
            raise _told(f"{self}/{name}", error) from None

    def part(self, name: str, start: int, count: int) -> bytes:
        """`count` bytes of a file from `start` on, by a range request."""
        got = b"".join(self._stream(name, start, count))
        if len(got) != count:
            raise CheckpointError(
                f"{self}/{name}: the hub sent {len(got)} bytes from byte {start} on, not {count}"
            )
        return got


class RemoteFile(StoredFile):
    """A file of weights on the hub. Its header is read over the network; reading anything else fetches it first."""

    def __init__(self, repository: Repository, name: str) -> None:
        self.repository = repository
        self.entry = repository.entries[name]
        self.path = Path(name)
        self.identity = FileIdentity(0, 0, self.entry.size, 0)
        self._fd = None
        self._lock = threading.Lock()
        self._fetching = threading.Lock()
        self._start = b""
        self.here = False
        self.header_read = False

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` with the bytes at `offset`."""
        if not self.here and not self.header_read:
            self._read_header(buffer, offset)
            return
        self.fetch()
        super().read_into(buffer, offset)

    def _read_header(self, buffer: memoryview, offset: int) -> None:
        if not self._start:
            self._start = self.repository.part(self.entry.name, 0, min(_FIRST, self.entry.size))
        end = offset + len(buffer)
        if end <= len(self._start):
            buffer[:] = self._start[offset:end]
        else:
            buffer[:] = self.repository.part(self.entry.name, offset, len(buffer))

    def fetch(self) -> None:
        """Download the file unless it is there; then it is read like any other."""
        with self._fetching:
            if self.here:
                return
            path = self.repository.fetch(self.entry.name)
            fresh = StoredFile(path)
            self.path, self.identity = fresh.path, fresh.identity
            self.here = True

    def fd(self) -> int:
        """The open descriptor of the fetched file."""
        self.fetch()
        return super().fd()

    def check_unchanged(self) -> None:
        """Raise `CheckpointError` if the fetched file was changed."""
        if self.here:
            super().check_unchanged()


def is_id(text: str) -> bool:
    """Whether a text can only be meant for the hub: `hf://...`, or owner/name where there is no directory `owner`."""
    if text.startswith(PREFIX):
        return True
    return bool(_ID.fullmatch(text)) and not Path(text.split("/")[0]).exists()


def pinned(text: str) -> bool:
    """Whether the revision is a commit, which never changes."""
    return bool(re.fullmatch(r"[0-9a-f]{40}", text.partition("@")[2]))


def available() -> bool:
    """Whether the library that asks the hub is installed."""
    return importlib.util.find_spec("huggingface_hub") is not None


def offline() -> bool:
    """Whether the user forbade the network (HF_HUB_OFFLINE)."""
    return os.environ.get("HF_HUB_OFFLINE", "").strip().upper() in ("1", "ON", "YES", "TRUE")


def repository(text: str) -> Repository:
    """The repository `[hf://]owner/name[@revision]`, its revision pinned to a commit.

    Raises `RequestError` for what is no id, a model or revision that is not there or not for this user, and
    `CheckpointError` where the hub does not answer.
    """
    plain = text.removeprefix(PREFIX)
    if not _ID.fullmatch(plain):
        raise RequestError(f"{text!r} is not a hub id; write owner/name or owner/name@revision")
    name, _, revision = plain.partition("@")
    if not available():
        raise RequestError(
            f"there is no checkpoint at {text!r}; to read it from the Hugging Face hub, install merganser[hub]"
        )
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    info = asked(text, lambda: HfApi().model_info(name, revision=revision or None, files_metadata=True))
    if not isinstance(info.sha, str) or not re.fullmatch(r"[0-9a-f]{40}", info.sha):
        raise CheckpointError(f"{text}: the hub gave no commit for it")
    entries = {}
    for sibling in info.siblings or []:
        file = sibling.rfilename
        if file.count("/") > MOST_FOLDERS_DEEP:
            continue
        if sibling.size is None or ".." in Path(file).parts or "\\" in file or file.startswith("/"):
            continue
        lfs: Any = sibling.lfs
        sha256 = lfs.get("sha256") if isinstance(lfs, Mapping) else getattr(lfs, "sha256", None)
        entries[file] = Entry(file, int(sibling.size), sha256, sibling.blob_id)
    found = Repository(name, info.sha, entries)
    found.remember(revision or "main")
    return found


def fetch_small(found: Repository) -> Path:
    """The local snapshot directory with the small files that travel with weights."""
    directory: Path | None = None
    for name, entry in sorted(found.entries.items()):
        suffix = Path(name).suffix
        if suffix in layout.WEIGHT_SUFFIXES or entry.size > MAX_SMALL_FILE or name.startswith("."):
            continue
        if not (suffix in layout.COMPANION_SUFFIXES or name.upper().startswith(layout.LICENCES)):
            continue
        if name.count("/") > 1 or role(name):  # of a copy, or deep below: fetched when it is wanted
            continue
        path = found.fetch(name)
        directory = path.parents[name.count("/")]
    if directory is None:
        raise RequestError(f"{found}: holds no config.json or other file that goes with weights")
    return directory


def asked(what: str, question: Callable[[], T]) -> T:
    """The answer of the hub; its errors in merganser's words, without a token."""
    try:
        return question()
    except MerganserError:
        raise
    except Exception as error:  # the library raises those of several HTTP libraries
        raise _told(what, error) from None


def _told(what: str, error: Exception) -> MerganserError:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "GatedRepoError" in kinds:
        return RequestError(
            f"{what}: its owner grants access one by one; ask for it on the hub, then set HF_TOKEN"
        )
    if "RevisionNotFoundError" in kinds:
        return RequestError(f"{what}: the hub has the model, but not this revision")
    if "RepositoryNotFoundError" in kinds:
        return RequestError(
            f"there is no checkpoint at {what!r}, and no model of that name on the hub that you may read "
            "(for a private one set HF_TOKEN)"
        )
    if "OfflineModeIsEnabled" in kinds:
        return RequestError(f"{what}: is not in the local cache, and HF_HUB_OFFLINE forbids asking the hub")
    first = (str(error).strip().splitlines() or [""])[0]
    return CheckpointError(
        f"{what}: the hub could not be asked ({type(error).__name__}: {_without_token(first)}). Run again to go on "
        "with the download; HF_HUB_OFFLINE=1 uses what is in the local cache"
    )


def _without_token(text: str) -> str:
    text = re.sub(r"hf_[A-Za-z0-9]{4,}", "hf_***", text)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        secret = os.environ.get(name, "")
        text = text.replace(secret, "***") if len(secret) > 3 else text
    return text


def _check(path: Path, entry: Entry, what: str) -> None:
    """Compare a fetched file with what the hub says of it; a wrong one is deleted."""
    size = os.path.getsize(path)
    wrong = f"it has {size} bytes, not {entry.size}" if size != entry.size else ""
    if not wrong and entry.sha256 is not None:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        wrong = "" if found == entry.sha256 else f"its SHA-256 is {found}, not {entry.sha256}"
    elif not wrong and entry.blob is not None:
        digest = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
        digest.update(path.read_bytes())
        wrong = (
            ""
            if digest.hexdigest() == entry.blob
            else f"its git digest is {digest.hexdigest()}, not {entry.blob}"
        )
    if wrong:
        real = path.resolve()
        path.unlink(missing_ok=True)
        real.unlink(missing_ok=True)
        raise CheckpointError(
            f"{what}: what was downloaded is not what the hub announced: {wrong}. It was deleted; run again"
        )
