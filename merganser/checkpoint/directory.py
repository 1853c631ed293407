"""Which files of a directory are the model: those that the libraries load, or an error where two could be meant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
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


def choose(directory: Path, names: Iterable[str] | None = None, where: str = "") -> Chosen:
    """The weights in `directory`, by the names of its files.

    What the libraries look for comes first: model.safetensors or its index, then that of diffusers, then other
    safetensors files, then pickled ones. `names` are all paths below it where they do not all lie here, of a model on
    the hub, and `where` is what that is called.

    Raises `CheckpointError` where shards are missing or two sets of weights could be meant, `RequestError` where there
    are none.
    """
    local = names is None
    held = _two_levels(directory) if names is None else list(names)
    place = _Place(directory, where or str(directory), local, held)
    if PIPELINE in place.inside:
        raise _pipeline(place)
    for kind, stems in (("safetensors", STEMS), ("bin", ("pytorch_model",))):
        found = _canonical(place, kind, stems) or _bare(place, kind)
        if found is not None:
            return found
    raise _nothing(place)


@dataclass(frozen=True, slots=True)
class _Place:
    """A model's directory: where its small files lie, what it is called, and all files in it and one folder below."""

    directory: Path
    called: str
    local: bool
    names: Sequence[str]

    @property
    def inside(self) -> list[str]:
        """The files and folders in it."""
        return sorted({name.split("/")[0] for name in self.names if not name.startswith(".")})

    @property
    def with_weights(self) -> list[str]:
        """The folders in it that hold weights."""
        pairs = [
            name.split("/", 1) for name in self.names if name.count("/") == 1 and not name.startswith(".")
        ]
        return sorted({folder for folder, file in pairs if read_name(file) is not None})

    def path(self, name: str) -> str:
        """A file or folder of it, as a user would give it."""
        return f"{self.called}/{name}"


def _two_levels(directory: Path) -> list[str]:
    names = []
    for path in directory.iterdir():
        names.append(path.name)
        if path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
            with suppress(OSError):
                names += [f"{path.name}/{below.name}" for below in path.iterdir()]
    return names


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


def _canonical(place: _Place, kind: str, stems: Sequence[str]) -> Chosen | None:
    """What the libraries load by name; one index that names exactly the one file beside it is the same model."""
    directory, inside = place.directory, place.inside
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
        raise _unclear(place, [one for one, _, _ in layouts])
    if index is None:
        # Shards of the same model that no index names: transformers reads the whole file, other loaders the shards.
        sets = shard_sets(one for one in inside if one not in files)
        for shard, held in sets.items():
            if shard.kind == kind and shard.stem in stems:
                raise _unclear(place, [name, *held.values()])
    return Chosen(index, tuple(directory / one for one in sorted(files)), kind != "safetensors")


def _bare(place: _Place, kind: str) -> Chosen | None:
    """Files under other names: all of them together are the model, save what names mark as something else."""
    directory, inside = place.directory, place.inside
    endings = (".safetensors",) if kind == "safetensors" else (".bin", ".pt", ".pth")
    names = [name for name in inside if name.endswith(endings) and role(name) != "leftover"]
    if not names:
        return None
    sets = shard_sets(names)
    for shard, held in sets.items():
        if lacking := missing_shards(held, shard.count):
            raise CheckpointError(
                f"{place.called}: {listing(lacking)} {'is' if len(lacking) == 1 else 'are'} missing: the names of "
                f"{listing(held.values(), 3)} say that there are {shard.count}, and no index is there. {_AGAIN}, the "
                f"index with it"
            )
    if len(sets) > 1:
        raise _unclear(place, [next(iter(held.values())) for held in sets.values()])
    if sets:
        (held,) = sets.values()
        others = [name for name in names if name not in held.values() and role(name) == "copy"]
        if others:
            raise _unclear(place, [*held.values(), *others])
        return _files(directory, held.values(), kind)
    called = [name for name in names if name.split(".")[0] in KEPT_STEMS]
    return _files(directory, called or names, kind)


def _files(directory: Path, names: Iterable[str], kind: str) -> Chosen:
    return Chosen(None, tuple(directory / name for name in sorted(names)), kind != "safetensors")


def _unclear(place: _Place, names: Sequence[str]) -> CheckpointError:
    found = f"holds both {names[0]} and {listing(names[1:])}"
    give = f", or give the path of the one that is meant ({place.path(names[0])})" if place.local else ""
    here = "" if place.local else " in a copy of the model"
    return CheckpointError(
        f"{place.called}: {found}; it is not clear which is the model. Remove the stale one{here}{give}"
    )


def _pipeline(place: _Place) -> RequestError:
    parts = place.with_weights
    names = [place.path(name) for name in parts] if place.local else parts
    example = f", for example {names[0]!r}" if names and place.local else ""
    first = "" if place.local else "Download it, and give"
    return RequestError(
        f"{place.called}: is a diffusers pipeline, of which each component is a model of its own. "
        f"{first or 'Give'} the components one by one{example} ({listing(names) or 'none holds weights'}) and put the "
        "results into a copy of the pipeline"
    )


def _nothing(place: _Place) -> RequestError:
    below = place.with_weights
    if below:
        give = (
            f"Give that directory: {place.path(below[0])}"
            if place.local
            else "Download it and give that directory"
        )
        return RequestError(
            f"{place.called}: holds no weights itself; {listing(below)} below it "
            f"{'does' if len(below) == 1 else 'do'}. {give}"
        )
    others = [name for name in place.inside if role(name) == "copy"]
    if others:
        return RequestError(
            f"{place.called}: holds no weights in a form that is read, only {listing(others)}. Save the model as "
            "safetensors (transformers: from_pretrained, then save_pretrained)"
        )
    return RequestError(f"{place.called}: holds no weights (found {listing(place.inside) or 'nothing'})")


def kept_stem(files: Iterable[str]) -> str:
    """What a result calls its files: as those that were read where a library looks for that name, else `model`."""
    found = {read.stem for name in files if (read := read_name(name)) is not None}
    if len(found) == 1:
        (stem,) = found
        if stem.split(".")[0] in KEPT_STEMS:
            return stem
    return "model"
