"""Re-check a sealed checkpoint against its manifest."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from merganser._progress import Progress
from merganser.checkpoint import open_checkpoint
from merganser.checkpoint.digest import content_digest, digest_file, digest_tensor
from merganser.checkpoint.layout import MANIFEST_NAME
from merganser.errors import RequestError, VerificationError, listing
from merganser.lineage.manifest import own_digest, read_manifest


def verify(path: Path | str, *, threads: int = 0, progress: Progress | None = None) -> dict[str, Any]:
    """Read every tensor and file of a sealed checkpoint and compare digests.

    Returns {"path", "digest", "tensors", "bytes", "files", "parents"}. Raises `VerificationError` naming every tensor
    and file that is missing, added or different; `CheckpointError` where the files cannot be read at all.
    """
    directory = Path(path)
    if not directory.is_dir() and directory.suffix != ".safetensors":
        raise RequestError(f"{directory}: is not a directory and no .safetensors file")
    manifest = read_manifest(directory)
    faults = _files(directory, manifest["files"])
    if manifest.get("own_digest") != own_digest(manifest):
        faults.append("the manifest was edited")
    checkpoint = open_checkpoint(directory)
    read = {file.path.name for file in checkpoint.files}
    read |= manifest["files"].keys()
    extra = sorted(path.name for path in directory.glob("*.safetensors") if path.name not in read)
    faults += [f"the weights file {name!r} is no part of the checkpoint" for name in extra]
    listed, found = manifest["tensors"], checkpoint.stored
    faults += [f"tensor {name!r} is missing" for name in listed if name not in found]
    faults += [f"tensor {name!r} is not in the manifest" for name in found if name not in listed]
    both = [name for name in found if name in listed]
    total = sum(found[name].nbytes for name in both)
    done = 0
    with ThreadPoolExecutor(threads or None) as pool:
        for name, digest in zip(both, pool.map(lambda n: digest_tensor(found[n]), both), strict=True):
            entry, tensor = listed[name], found[name]
            if [tensor.dtype.name, list(tensor.shape)] != [entry["dtype"], entry["shape"]]:
                faults.append(
                    f"tensor {name!r} is {tensor.dtype} {list(tensor.shape)}, not as in the manifest"
                )
            elif digest != entry["digest"]:
                faults.append(f"tensor {name!r} in {tensor.file.path.name} has changed")
            done += tensor.nbytes
            if progress is not None:
                progress(done, total)
    if not faults and content_digest({n: e["digest"] for n, e in listed.items()}) != manifest["digest"]:
        faults.append("the digest of the whole does not fit those of the tensors: the manifest was edited")
    if faults:
        raise VerificationError(f"{directory}: does not match its {MANIFEST_NAME}: {listing(faults, 10)}")
    return {
        "path": str(directory),
        "digest": manifest["digest"],
        "tensors": len(both),
        "bytes": total,
        "files": len(manifest["files"]),
        "parents": manifest["parents"],
    }


def _files(directory: Path, files: dict[str, Any]) -> list[str]:
    faults = []
    for name, digest in files.items():
        parts = Path(name).parts
        if Path(name).is_absolute() or ".." in parts:
            faults.append(f"the manifest names the file {name!r}, which is not inside")
        elif not (directory / name).is_file():
            faults.append(f"file {name!r} is missing")
        elif not (directory / name).resolve().is_relative_to(directory.resolve()):
            faults.append(f"file {name!r} is a link to something that is not inside")
        elif digest_file(directory / name) != digest:
            faults.append(f"file {name!r} has changed")
    return faults
