"""Which files of a directory are the model: those that the libraries load, or an error where two could be meant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from merganser.checkpoint import layout
from merganser.checkpoint.names import (
    KEPT_STEMS,
    STEMS,
    missing_shards,
    read_name,
    role,
    shard_sets,
)
from merganser.errors import CheckpointError, RequestError, listing

PIPELINE = "model_index.json"
"""What diffusers lists the components of a pipeline in."""
_AGAIN = "Download or copy the model again"


@dataclass(frozen=True, slots=True)
class Chosen:
    """The model of a directory: an index and the shards that it names, or files without one."""

    index: Path | None
    files: tuple[Path, ...]
    pickled: bool


def choose(directory: Path) -> Chosen:
    """The weights in `directory`, by the names of its files.

    What the libraries look for comes first: model.safetensors or its index, then that of diffusers, then other
    safetensors files, then pickled ones.

    Raises `CheckpointError` where shards are missing or two sets of weights could be meant, `RequestError` where there
    are none.
    """
    inside = sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))
    if PIPELINE in inside:
        raise _pipeline(directory, inside)
    for kind, stems in (("safetensors", STEMS), ("bin", ("pytorch_model",))):
        found = _canonical(directory, inside, kind, stems)
        if found is not None:
            return found
        found = _bare(directory, inside, kind)
        if found is not None:
            return found
    raise _nothing(directory, inside)


def check_alone(directory: Path, config: str) -> None:
    """Raise `CheckpointError` where an adapter lies among the files of a whole model: either could be meant."""
    for name in (*(f"{stem}.safetensors" for stem in STEMS), "pytorch_model.bin"):
        for one in (name, name + layout.INDEX_SUFFIX):
            if (directory / one).exists():
                raise CheckpointError(
                    f"{directory}: holds an adapter ({config}) and a whole model ({one}); it is not clear which is "
                    "meant. Move the adapter's files (adapter_*) into a directory of their own, and open that or this "
                    "one"
                )


def _canonical(directory: Path, inside: Sequence[str], kind: str, stems: Sequence[str]) -> Chosen | None:
    """What the libraries load by name; one index that names exactly the one file beside it is the same model."""
    layouts: list[tuple[str, Path | None, set[str]]] = []
    for stem in stems:
        single = f"{stem}.{kind}"
        path = directory / (single + layout.INDEX_SUFFIX)
        if path.name in inside:
            layout.refuse_link_out(path)
            named = {str(name) for name in layout.weight_map(path).values()}
            layouts.append((path.name, path, named))
            if named == {single}:
                continue
        if single in inside:
            layouts.append((single, None, {single}))
    if not layouts:
        return None
    name, index, files = layouts[0]
    if len(layouts) > 1:
        raise _unclear(directory, [one for one, _, _ in layouts])
    if index is None:
        # Shards of the same model that no index names: transformers reads the whole file, other loaders the shards.
        sets = shard_sets(one for one in inside if one not in files)
        for shard, held in sets.items():
            if shard.kind == kind and shard.stem in stems:
                raise _unclear(directory, [name, *held.values()])
    return Chosen(index, tuple(directory / one for one in sorted(files)), kind != "safetensors")


def _bare(directory: Path, inside: Sequence[str], kind: str) -> Chosen | None:
    """Files under other names: all of them together are the model, save what names mark as something else."""
    endings = (".safetensors",) if kind == "safetensors" else (".bin", ".pt", ".pth")
    names = [name for name in inside if name.endswith(endings) and role(name) != "leftover"]
    if not names:
        return None
    sets = shard_sets(names)
    for shard, held in sets.items():
        if lacking := missing_shards(held, shard.count):
            raise CheckpointError(
                f"{directory}: {listing(lacking)} {'is' if len(lacking) == 1 else 'are'} missing: the names of "
                f"{listing(held.values(), 3)} say that there are {shard.count}, and no index is there. {_AGAIN}, the "
                f"index with it"
            )
    if len(sets) > 1:
        raise _unclear(directory, [next(iter(held.values())) for held in sets.values()])
    if sets:
        (held,) = sets.values()
        others = [name for name in names if name not in held.values() and role(name) == "copy"]
        if others:
            raise _unclear(directory, [*held.values(), *others])
        return _files(directory, held.values(), kind)
    called = [name for name in names if name.split(".")[0] in KEPT_STEMS]
    return _files(directory, called or names, kind)


def _files(directory: Path, names: Iterable[str], kind: str) -> Chosen:
    return Chosen(None, tuple(directory / name for name in sorted(names)), kind != "safetensors")


def _unclear(directory: Path, names: Sequence[str]) -> CheckpointError:
    found = f"holds both {names[0]} and {listing(names[1:])}"
    return CheckpointError(
        f"{directory}: {found}; it is not clear which is the model. Remove the stale one, or give the path of the one "
        f"that is meant ({directory / names[0]})"
    )


def _pipeline(directory: Path, inside: Sequence[str]) -> RequestError:
    parts = [str(directory / name) for name in inside if _holds_weights(directory / name)]
    example = f", for example {parts[0]!r}" if parts else ""
    return RequestError(
        f"{directory}: is a diffusers pipeline, of which each component is a model of its own. Give the components one "
        f"by one{example} ({listing(parts) or 'none holds weights'}) and put the results into a copy of the pipeline"
    )


def _nothing(directory: Path, inside: Sequence[str]) -> RequestError:
    below = [name for name in inside if _holds_weights(directory / name)]
    if below:
        return RequestError(
            f"{directory}: holds no weights itself; {listing(below)} below it "
            f"{'does' if len(below) == 1 else 'do'}. Give that directory: {directory / below[0]}"
        )
    others = [name for name in inside if role(name) == "copy"]
    if others:
        return RequestError(
            f"{directory}: holds no weights in a form that is read, only {listing(others)}. Save the model as "
            "safetensors (transformers: from_pretrained, then save_pretrained)"
        )
    return RequestError(f"{directory}: holds no weights (found {listing(inside) or 'nothing'})")


def _holds_weights(folder: Path) -> bool:
    if folder.is_symlink() or not folder.is_dir():
        return False
    return any(read_name(path.name) is not None for path in folder.iterdir())


def kept_stem(files: Iterable[str]) -> str:
    """What a result calls its files: as those that were read where a library looks for that name, else `model`."""
    found = {read.stem for name in files if (read := read_name(name)) is not None}
    if len(found) == 1:
        (stem,) = found
        if stem.split(".")[0] in KEPT_STEMS:
            return stem
    return "model"
