"""Where the files of a checkpoint are: single files, shards behind an index, Hugging Face model directories.

Names that come from files are hostile: a shard name must be a plain file name inside the checkpoint's directory. The
one kind of link that may lead out is the one the Hugging Face cache itself makes (snapshots/REV/file -> blobs/HASH).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from merganser.checkpoint.files import foreign
from merganser.checkpoint.header import parse_json
from merganser.checkpoint.names import is_index
from merganser.errors import CheckpointError, RequestError, listing

MAX_JSON_FILE_BYTES = 100_000_000
INDEX_SUFFIX = ".index.json"
SAFETENSORS_NAMES = ("model.safetensors", "diffusion_pytorch_model.safetensors")
PICKLE_NAMES = ("pytorch_model.bin",)
ADAPTER_CONFIG = "adapter_config.json"
MANIFEST_NAME = "merganser.json"
MANIFEST_KEY = "merganser"
"""Where the manifest stands in the metadata of a single file."""
SIGNS_NAME = "signs.json"
WEIGHT_SUFFIXES = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".gguf",
    ".h5",
    ".msgpack",
    ".onnx",
    ".npz",
)


COMPANION_SUFFIXES = (
    ".json", ".txt", ".model", ".jinja", ".py", ".md", ".tiktoken", ".spm", ".vocab", ".merges",
)  # fmt: skip
LICENCES = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")


def locate(text: str | os.PathLike[str], relative_to: Path | None = None) -> Path:
    """The path of a checkpoint: as given, relative to `relative_to`, or a hub id in the local Hugging Face cache.

    Raises `RequestError` that lists the places looked at.
    """
    path = at_home(text)
    tried = [path]
    if lies(path):
        return path
    if relative_to is not None and not path.is_absolute():
        tried.append(relative_to / path)
        if lies(tried[-1]):
            return tried[-1]
    snapshot = cached_snapshot(str(text).removeprefix("hf://"))
    if snapshot is not None:
        return snapshot
    near = _nearest_sibling(path)
    raise RequestError(
        f"there is no checkpoint at {str(text)!r}{near} (looked at {listing(str(p) for p in tried)} and the local "
        "Hugging Face cache)"
    )


def at_home(text: str | os.PathLike[str]) -> Path:
    """The path, `~` and `~user` at its begin being their homes; a user that is not there is a directory's name."""
    return Path(os.path.expanduser(text))


def lies(path: Path) -> bool:
    """Whether something lies there; a path that no file can have (too long, say) has nothing."""
    try:
        return path.exists()
    except OSError:
        return False


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON object that came with a checkpoint; malformed, huge or not an object is a `CheckpointError`."""
    try:
        if path.stat().st_size > MAX_JSON_FILE_BYTES:
            raise CheckpointError(f"{path}: larger than the cap of {MAX_JSON_FILE_BYTES:,} bytes")
        raw = path.read_bytes()
        if (what := foreign(raw[:512])) is not None:
            raise CheckpointError(f"{path}: {what}")
        return parse_json(raw)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not acceptable JSON: {error}") from error


def read_json_list(path: Path) -> list[Any]:
    """A small JSON list, as `read_json` reads an object."""
    try:
        if path.stat().st_size > MAX_JSON_FILE_BYTES:
            raise CheckpointError(f"{path}: larger than the cap of {MAX_JSON_FILE_BYTES:,} bytes")
        found = parse_json(b'{"list":' + path.read_bytes() + b"}")["list"]
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not acceptable JSON: {error}") from error
    if not isinstance(found, list):
        raise CheckpointError(f"{path}: is no list")
    return found


def resolve_inside(directory: Path, name: str, told_by: Path) -> Path:
    """The file `name` of `directory`, or a `CheckpointError` if the name or a link leads out or nothing is there."""
    _check_plain(name, told_by)
    path = directory / name
    if not path.exists():
        raise CheckpointError(
            f"{told_by}: names the file {name!r}, which is missing; download or copy the model again"
        )
    refuse_link_out(path)
    if not path.is_file():
        raise CheckpointError(f"{told_by}: names {name!r}, which is not a regular file")
    return path


def _check_plain(name: str, told_by: Path) -> None:
    if (
        not name
        or name != os.path.basename(name)
        or "\\" in name
        or ":" in name
        or name in (".", "..")
        or "\0" in name
    ):
        raise CheckpointError(
            f"{told_by}: names the file {name!r}; only plain file names beside the index are followed"
        )


def refuse_link_out(path: Path) -> None:
    """A symbolic link must stay inside its directory (or be one that the Hugging Face cache made)."""
    if not path.is_symlink():
        return
    try:
        home, target = path.parent.resolve(), path.resolve()
    except (OSError, RuntimeError):
        raise CheckpointError(f"{path}: is a link that leads in a circle") from None
    if target.is_relative_to(home):
        return
    for above in home.parents:
        if above.name == "snapshots" and target.parent == (above.parent / "blobs").resolve():
            return
    raise CheckpointError(
        f"{path}: is a link that leads out of its directory, to {target}; it is not followed, since a model from "
        "elsewhere could have any of your files read so. If the link is yours, open the file itself "
        f"({target}), or put it in the link's place: `ln -f {target} {path}` takes no room on the same disk, "
        f"`cp --remove-destination {target} {path}` works on any"
    )


def find_index(directory: Path, stems: tuple[str, ...]) -> Path | None:
    """The index file beside the shards, if the directory has one."""
    for stem in stems:
        path = directory / (stem + INDEX_SUFFIX)
        if path.exists():
            refuse_link_out(path)
            return path
    return None


def read_index(path: Path) -> dict[str, str]:
    """The weight map of an index: tensor name to plain file name, checked for shape and safety."""
    found = weight_map(path)
    for name in sorted(set(found.values())):
        resolve_inside(path.parent, name, path)
    return found


def weight_map(path: Path) -> dict[str, str]:
    """The weight map of an index, with names of files that are plain, whether the files are there or not."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: has no weight_map")
    for tensor, name in weight_map.items():
        if not isinstance(name, str):
            raise CheckpointError(f"{path}: the entry of tensor {tensor!r} is not a file name")
        _check_plain(name, path)
    return weight_map


def travels(name: str, *, with_part: bool = False) -> bool:
    """Whether a small file goes along with weights, by its name: config, tokenizer, templates, licence.

    Left out: weights of any format, indices, the manifest and README of another model, hidden files, an adapter's. In
    the folder of a part (`with_part`) its index and its adapter's config belong to it.
    """
    suffix = Path(name).suffix
    if name.startswith(".") or name in (MANIFEST_NAME, SIGNS_NAME):
        return False
    if suffix in WEIGHT_SUFFIXES or name.lower().startswith("readme"):
        return False
    if name.startswith(("trainer_state", "optimizer", "scheduler", "rng_state", "training_args")):
        return False
    if not with_part and (is_index(name) or name.startswith("adapter_")):
        return False
    return suffix in COMPANION_SUFFIXES or name.upper().startswith(LICENCES)


def leads_out(path: Path) -> bool:
    """Whether a path is a link that is not followed."""
    try:
        refuse_link_out(path)
    except CheckpointError:
        return True
    return False


def hub_name(path: Path) -> str | None:
    """`hf://owner/name@commit` for a directory of the Hugging Face cache."""
    for above in (path, *path.parents):
        if above.parent.name == "snapshots" and above.parent.parent.name.startswith("models--"):
            owner, _, name = above.parent.parent.name.removeprefix("models--").partition("--")
            return f"hf://{owner}/{name}@{above.name}"
    return None


def cached_snapshot(text: str) -> Path | None:
    """The newest local snapshot of a hub id `owner/name[@revision]`, as huggingface_hub lays it out."""
    name, _, revision = text.partition("@")
    parts = name.split("/")
    if len(parts) != 2 or not all(parts) or any(p in (".", "..") for p in parts):
        return None
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / f"models--{parts[0]}--{parts[1]}"
    revision = revision or "main"
    if "/" in revision or revision.startswith("."):
        return None
    reference = cache / "refs" / revision
    if reference.is_file():
        revision = reference.read_text().strip()
    snapshot = cache / "snapshots" / revision
    return snapshot if snapshot.is_dir() else None


def _nearest_sibling(path: Path) -> str:
    from merganser.errors import did_you_mean

    try:
        names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    except OSError:
        names = []
    return did_you_mean(path.name, names)
