"""merganser.json: what a sealed checkpoint is made of, from what, by what."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from merganser.checkpoint import open_checkpoint
from merganser.checkpoint.digest import ALGORITHM
from merganser.checkpoint.files import shown
from merganser.checkpoint.layout import MANIFEST_NAME, read_json
from merganser.errors import VerificationError

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Manifest:
    """The record beside a sealed checkpoint.

    All but `run` is a function of recipe, parents and version. `tensors` maps names to dtype, shape, file and digest;
    `parents` lists name, path, digest of what was read and how much of the parent that was; `files` maps the other
    files of the checkpoint to their digests; `notes` are the reports of steps; `run` says what
    ran and how fast.
    """

    version: str
    generator: str
    seed: int
    recipe: Mapping[str, Any]
    digest: str
    parents: Sequence[Mapping[str, Any]]
    tensors: Mapping[str, Mapping[str, Any]]
    files: Mapping[str, str]
    unused: Mapping[str, list[str]]
    degree: float = 1.0
    notes: Sequence[Mapping[str, Any]] = ()
    run: Mapping[str, Any] = field(default_factory=dict)
    format: int = FORMAT
    tool: str = "merganser"
    digest_algorithm: str = ALGORITHM

    def to_bytes(self) -> bytes:
        """The file's content."""
        ordered = (
            "format",
            "tool",
            "version",
            "generator",
            "digest",
            "digest_algorithm",
            "degree",
            "seed",
            "recipe",
            "parents",
        )
        fields = asdict(self)
        document = _readable({key: fields.pop(key) for key in ordered} | fields)
        document["own_digest"] = own_digest(document)
        return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()


def _readable(value: Any) -> Any:
    """The same document in text that UTF-8 can hold: paths may have bytes that are none."""
    if isinstance(value, str):
        return value if value.isascii() else shown(value) if _halved(value) else value
    if isinstance(value, Mapping):
        return {_readable(key): _readable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_readable(one) for one in value]
    return value


def _halved(text: str) -> bool:
    return any("\ud800" <= c <= "\udfff" for c in text)


def own_digest(document: Mapping[str, Any]) -> str:
    """The digest of a manifest's own words, so that an edited one is noticed."""
    words = {key: value for key, value in document.items() if key != "own_digest"}
    return xxhash.xxh3_128_hexdigest(json.dumps(words, sort_keys=True, separators=(",", ":")).encode())


def read_manifest(place: Path) -> dict[str, Any]:
    """The manifest of a sealed checkpoint, a directory or a single file, as a document, its shape checked.

    Raises `VerificationError` where there is none or it is not one that this version reads.
    """
    path = place / MANIFEST_NAME
    if place.is_file():
        path, held = place, open_checkpoint(place).sealed
        if held is None:
            raise VerificationError(
                f"{place}: has no manifest in its metadata, so it was not sealed by merganser"
            )
        document = held
    elif not path.is_file():
        raise VerificationError(f"{place}: has no {MANIFEST_NAME}, so it was not sealed by merganser")
    else:
        document = read_json(path)
    if document.get("tool") != "merganser" or document.get("format") != FORMAT:
        raise VerificationError(f"{path}: is not a manifest of format {FORMAT}")
    if document.get("digest_algorithm") != ALGORITHM:
        raise VerificationError(
            f"{path}: digests are {document.get('digest_algorithm')!r}, not {ALGORITHM!r}"
        )
    kinds = {"tensors": dict, "files": dict, "parents": list, "digest": str}
    for key, kind in kinds.items():
        if not isinstance(document.get(key), kind):
            raise VerificationError(f"{path}: has no valid {key!r}")
    for name, entry in document["tensors"].items():
        if not isinstance(entry, dict) or not {"dtype", "shape", "file", "digest"} <= entry.keys():
            raise VerificationError(f"{path}: the entry of tensor {name!r} is not complete")
    return document
