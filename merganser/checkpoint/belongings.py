"""What belongs to a model beside the weights that are read: small files, parts with weights of their own, and copies.

Parts are a Dense layer below the model, a projector or a value head beside it, what modules.json names. They travel
whole. Exports of the same weights in the form of another program are copies: beside changed weights they would be
stale, so they stay where they are.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from merganser.checkpoint import layout
from merganser.checkpoint.names import LEFTOVER_FOLDERS, OTHER_STEMS, PARTS, is_index, read_name, role
from merganser.errors import CheckpointError, listing

MODULES = "modules.json"
"""What sentence-transformers lists the parts of a model in, each with its folder."""
_WITH_WEIGHTS = {
    "Dense", "LSTM", "CNN", "WordEmbeddings", "WeightedLayerPooling", "LayerNorm", "StaticEmbedding",
    "SparseAutoEncoder",
}  # fmt: skip
"""Kinds of modules that cannot be without weights."""
MOST_FOLDERS_DEEP = 4
MOST_FILES = 20_000


@dataclass(frozen=True, slots=True)
class Belongings:
    """Paths below the model's directory. `left_out` are copies in other forms and what training goes on from."""

    small: tuple[str, ...]
    parts: tuple[str, ...]
    left_out: tuple[str, ...]


def files_below(directory: Path) -> list[str]:
    """The files of a model directory and of the folders below it, hidden ones and links to folders left out."""
    return sorted(_walk(directory, "", 0))


def _walk(directory: Path, below: str, depth: int) -> Iterator[str]:
    try:
        with os.scandir(directory) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be read: {error.strerror}") from error
    if len(entries) > MOST_FILES:
        raise CheckpointError(f"{directory}: holds {len(entries):,} files, more than a model has")
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            if depth < MOST_FOLDERS_DEEP and not LEFTOVER_FOLDERS.fullmatch(entry.name):
                yield from _walk(Path(entry.path), f"{below}{entry.name}/", depth + 1)
        elif not entry.is_symlink() or not os.path.isdir(entry.path):
            yield below + entry.name


def sort_out(names: Iterable[str], read: Collection[str], folders: Collection[str] = ()) -> Belongings:
    """What files of a model are, by name. `read` are those of its weights, `folders` those that modules.json names."""
    parts, left_out, rest = [], [], []
    stems = {found.stem for name in read if (found := read_name(name)) is not None}
    for name in sorted(set(names) - set(read)):
        path = PurePosixPath(name)
        kind = role(name)
        if any(str(above) in folders for above in path.parents) and kind == "copy":
            kind = "part" if path.suffix in PARTS else ""
        if is_index(name) and len(path.parts) == 1:
            stem = name.split(".safetensors.index")[0].split(".bin.index")[0]
            kind = "index" if stem in stems or stem.split(".")[0] in OTHER_STEMS else ""
        if kind == "part":
            parts.append(name)
        elif kind in ("copy", "leftover"):
            left_out.append(f"{path.parts[0]}/" if len(path.parts) > 1 else name)
        elif kind == "":
            rest.append(name)
    homes = {str(PurePosixPath(name).parent) for name in parts} | set(folders)
    small = [name for name in rest if _goes_along(PurePosixPath(name), homes)]
    return Belongings(tuple(small), tuple(parts), tuple(dict.fromkeys(left_out)))


def _goes_along(path: PurePosixPath, homes: Collection[str]) -> bool:
    """A small file at the top, one folder below it, or in the folder of a part."""
    beside = len(path.parts) > 1 and str(path.parent) in homes
    return (len(path.parts) < 3 or beside) and layout.travels(path.name, with_part=beside)


def module_folders(directory: Path) -> dict[str, str]:
    """The folders that modules.json names, and the kind of module that is in each; empty where there is no such file.

    Raises `CheckpointError` where it names something outside.
    """
    listed = directory / MODULES
    if not listed.exists():
        return {}
    layout.refuse_link_out(listed)
    found = {}
    for entry in layout.read_json_list(listed):
        path = entry.get("path") if isinstance(entry, dict) else None
        kind = entry.get("type") if isinstance(entry, dict) else None
        if not isinstance(path, str) or not isinstance(kind, str):
            raise CheckpointError(f"{listed}: an entry has no path or no type")
        if path in ("", "."):
            continue
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts or "\\" in path or "\0" in path:
            raise CheckpointError(
                f"{listed}: names the folder {path!r}, which is not inside the model's directory"
            )
        found[str(pure)] = kind.rpartition(".")[2]
    return found


def check_modules(directory: Path, folders: Mapping[str, str], names: Iterable[str]) -> None:
    """Raise `CheckpointError` where a folder that modules.json names is missing, or its weights are."""
    held = list(names)
    lacking = []
    for folder, kind in folders.items():
        inside = [name for name in held if name.startswith(f"{folder}/")]
        if not inside:
            if kind != "Normalize":  # of which nothing is stored
                lacking.append(folder)
        elif kind in _WITH_WEIGHTS and not any(PurePosixPath(name).suffix in PARTS for name in inside):
            lacking.append(f"the weights of {folder}")
    if lacking:
        raise CheckpointError(
            f"{directory / MODULES}: names {listing(lacking)}, and the model's directory lacks "
            f"{'them' if len(lacking) > 1 else 'it'}, so the result could not be opened. Download the model again, the "
            f"folders below it too, or take the entry out of {MODULES}"
        )
