"""A server on this machine that speaks the Hugging Face hub's endpoints, as far as reading models needs them."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLDER = "76543210fedcba9876543210fedcba9876543210"


@dataclass
class Hub:
    """What the server holds and what it was asked.

    `cut` breaks that many downloads off half-way; `wrong` changes bytes.
    """

    repositories: dict[str, dict[str, Path]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    sent: dict[str, int] = field(default_factory=dict)
    cut: int = 0
    wrong: bool = False
    ranges: bool = True
    url: str = ""

    def add(self, name: str, directory: Path, commit: str = COMMIT) -> None:
        """Offer the files of a directory as a repository at a commit."""
        self.repositories[f"{name}@{commit}"] = {
            str(p.relative_to(directory)): p for p in sorted(directory.rglob("*")) if p.is_file()
        }

    def requests(self, ending: str) -> list[tuple[str, str | None]]:
        """Methods and ranges of the requests for a file."""
        return [(method, wanted) for method, path, wanted in self.asked if path.endswith(ending)]


def _digests(path: Path) -> tuple[str, str]:
    data = path.read_bytes()
    blob = hashlib.sha1(f"blob {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()
    return hashlib.sha256(data).hexdigest(), blob


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Run the server while the block runs; its address is in `hub.url`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            path = self.path.split("?")[0]
            hub.asked.append((self.command, path, self.headers.get("Range")))
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            if token:
                hub.tokens.add(token)
            info = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path)
            file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
            if info:
                self._info(info[1], info[2] or "main", token)
            elif file:
                self._file(file[1], file[2], file[3], token, body=body)
            else:
                self._error(404, "EntryNotFound")

        def _found(self, name: str, revision: str, token: str) -> tuple[str, dict[str, Path]] | None:
            commits = {"main": COMMIT, "v1": OLDER, COMMIT: COMMIT, OLDER: OLDER}
            known = [key.split("@")[0] for key in hub.repositories]
            if name not in known or (name in hub.private and not token):
                self._error(404, "RepoNotFound")
                return None
            commit = commits.get(revision)
            if f"{name}@{commit}" not in hub.repositories:
                self._error(404, "RevisionNotFound")
                return None
            assert commit is not None
            return commit, hub.repositories[f"{name}@{commit}"]

        def _info(self, name: str, revision: str, token: str) -> None:
            found = self._found(name, revision, token)
            if found is None:
                return
            commit, files = found
            siblings = []
            for file, path in files.items():
                sha256, blob = _digests(path)
                entry: dict[str, object] = {"rfilename": file, "size": path.stat().st_size, "blobId": blob}
                if file.endswith(".safetensors"):
                    entry["lfs"] = {"sha256": sha256, "size": path.stat().st_size, "pointerSize": 130}
                siblings.append(entry)
            document = {
                "id": name,
                "modelId": name,
                "sha": commit,
                "private": False,
                "tags": [],
                "siblings": siblings,
            }
            self._send(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

        def _file(self, name: str, revision: str, file: str, token: str, *, body: bool) -> None:
            found = self._found(name, revision, token)
            if found is None:
                return
            commit, files = found
            if file not in files:
                self._error(404, "EntryNotFound")
                return
            data = files[file].read_bytes()
            sha256, blob = _digests(files[file])
            headers = {
                "ETag": f'"{sha256 if file.endswith(".safetensors") else blob}"',
                "X-Repo-Commit": commit,
                "Accept-Ranges": "bytes",
            }
            if hub.wrong and file.endswith(".safetensors"):
                data = data[:-1] + bytes([data[-1] ^ 1])
            status, wanted = 200, self.headers.get("Range")
            if wanted and hub.ranges:
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                start, end = int(first), int(last) if last else len(data) - 1
                headers["Content-Range"] = f"bytes {start}-{min(end, len(data) - 1)}/{len(data)}"
                data, status = data[start : end + 1], 206
            broken = body and hub.cut > 0 and file.endswith(".safetensors") and len(data) > 200_000
            if broken:
                hub.cut -= 1
            self._send(status, data, headers, body=body, cut=broken)
            if body:
                hub.sent[file] = hub.sent.get(file, 0) + (len(data) // 2 if broken else len(data))

        def _error(self, status: int, code: str) -> None:
            self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

        def _send(
            self, status: int, data: bytes, headers: dict[str, str], *, body: bool = True, cut: bool = False
        ) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if not body or self.command == "HEAD":
                return
            try:
                self.wfile.write(data[: len(data) // 2] if cut else data)
            except OSError:  # whoever asked has heard enough
                self.close_connection = True
            if cut:
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
