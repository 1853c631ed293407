"""A checkpoint: tensors at rest plus the small files that travel with them. Opening reads headers only."""

from __future__ import annotations

import os
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from merganser.checkpoint import hub, layout
from merganser.checkpoint.adapter import AdapterDelta, read_adapter
from merganser.checkpoint.belongings import (
    Belongings,
    check_modules,
    files_below,
    module_folders,
    sort_out,
)
from merganser.checkpoint.card import MOST, licence_in
from merganser.checkpoint.directory import check_alone, choose, kept_stem
from merganser.checkpoint.encodings import Encoding, detect
from merganser.checkpoint.encodings.detect import CONFIG_FILES
from merganser.checkpoint.factors import PEFT, FactorFile, find_factors
from merganser.checkpoint.files import StoredFile, shown
from merganser.checkpoint.header import parse_json, read_header
from merganser.checkpoint.hub import RemoteFile, Repository
from merganser.checkpoint.names import is_index
from merganser.checkpoint.tensor import StoredTensor
from merganser.errors import CheckpointError, QuantizedError, RequestError, listing

_AVERAGED = re.compile(r"(?:model_ema|ema_model|ema|shadow)\.")
"""How the names of tensors begin that training averaged."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What `open_checkpoint` found.

    `tensors` are in file order. `deltas` is filled instead for a LoRA adapter: the changes it makes to tensors of its
    base.
    """

    name: str
    path: Path
    tensors: Mapping[str, StoredTensor]
    files: tuple[StoredFile, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
    deltas: Mapping[str, AdapterDelta] = field(default_factory=dict)
    format: str = "safetensors"
    remote: Repository | None = None
    """The repository on the hub that the directory is the cached part of."""
    said: tuple[str, ...] = ()
    """What reading the files found that a user should know."""

    @property
    def where(self) -> str:
        """The path, or `hf://owner/name@commit` for what came from the hub."""
        return layout.hub_name(self.path) or shown(self.path)

    @property
    def directory(self) -> Path | None:
        """The model directory, or None for a bare file."""
        return self.path if self.path.is_dir() else None

    @cached_property
    def config(self) -> dict[str, Any] | None:
        """The model's config.json, or None where there is none."""
        if self.directory is None or not (self.directory / "config.json").exists():
            return None
        layout.refuse_link_out(self.directory / "config.json")
        found = layout.read_json(self.directory / "config.json")
        classes = found.get("architectures")
        if classes is not None and not (
            isinstance(classes, list) and all(isinstance(c, str) for c in classes)
        ):
            raise CheckpointError(
                f"{self.directory / 'config.json'}: architectures is {reprlib.repr(classes)}, not a list of names of "
                "classes; mend the file or download the model again"
            )
        return found

    @cached_property
    def encoding(self) -> Encoding | None:
        """How the checkpoint is quantized, or None where its tensors are plain numbers."""
        if self.is_adapter or self.format == "signs":
            return None
        home = self.directory or self.path.parent
        documents = {name: layout.read_json(home / name) for name in CONFIG_FILES if (home / name).exists()}
        found = detect(self.tensors, documents, self.metadata)
        # The config beside a bare file may be that of another: it counts where the file's own tensors may be codes.
        if found is not None and found.config_only and self.directory is None and self._only_floats:
            return None
        return found

    def need_numbers(self) -> None:
        """Raise `QuantizedError` where the tensors are codes, with which nothing can be computed."""
        if self.encoding is not None:
            raise QuantizedError(self.encoding.refusal(self.name))

    @property
    def _only_floats(self) -> bool:
        return all(t.dtype.is_float and t.dtype.itemsize > 1 for t in self.tensors.values())

    @cached_property
    def belongings(self) -> Belongings:
        """The other files of the model's directory (and on the hub of the repository): none of a bare file."""
        if self.directory is None:
            return Belongings((), (), ())
        names = {*files_below(self.directory), *(self.remote.entries if self.remote else ())}
        read = {os.path.relpath(file.path, self.directory) for file in self.files}
        read |= {file.path.name for file in self.files}
        return sort_out(names, read, self.modules)

    @cached_property
    def modules(self) -> Mapping[str, str]:
        """The folders that modules.json names, and the kind of module that is in each."""
        return module_folders(self.directory) if self.directory else {}

    @cached_property
    def companions(self) -> list[Path]:
        """The small files that travel with the weights, relative to the directory; no links that lead out."""
        home = self.directory
        places = [(name, self.place(name)) for name in self.belongings.small if home]
        return [Path(name) for name, path in places if not layout.leads_out(path) and path.is_file()]

    @cached_property
    def licence(self) -> str | None:
        """What the head of the model card beside the weights states; None without a card on this machine."""
        if self.directory is None or not (path := self.directory / "README.md").is_file():
            return None
        if layout.leads_out(path):
            return None
        with path.open("rb") as file:
            return licence_in(file.read(MOST).decode(errors="replace"))

    def place(self, name: str) -> Path:
        """Where a file below the directory lies; what lies on the hub is downloaded first."""
        assert self.directory is not None
        if self.remote is not None and name in self.remote.entries and not (self.directory / name).exists():
            return self.remote.fetch(name)
        return self.directory / name

    def check_whole(self) -> None:
        """Raise `CheckpointError` where modules.json names what the directory lacks."""
        if self.directory is not None and self.modules:
            held = self.belongings
            check_modules(self.directory, self.modules, (*held.small, *held.parts))

    def part(self, name: str) -> Path:
        """Where a part lies. Raises `CheckpointError` for a link that leads out and for what is no file."""
        path = self.place(name)
        layout.refuse_link_out(path)
        if not path.is_file():
            raise CheckpointError(f"{path}: belongs to the model and is no file that can be read")
        return path

    @cached_property
    def remarks(self) -> tuple[str, ...]:
        """What a user should know of these weights: which of several are read."""
        averaged = [name for name in self.tensors if _AVERAGED.match(name)]
        if not averaged or len(averaged) == len(self.tensors):
            return self.said
        both = (
            f"{len(averaged)} tensors are averages that training kept beside the raw weights ({averaged[0]} ...): both "
            "are read, each under its own name"
        )
        return (*self.said, both)

    @property
    def loadable(self) -> Path | None:
        """The directory, where the libraries load these same weights from it; None where they would load others."""
        home = self.directory
        if home is None or self.remote is not None:
            return home
        read = {file.path.name for file in self.files}
        if (home / "model.safetensors").exists():
            return home if read == {"model.safetensors"} else None
        index = home / ("model.safetensors" + layout.INDEX_SUFFIX)
        return home if index.exists() and read == set(layout.weight_map(index).values()) else None

    @cached_property
    def weights_stem(self) -> str:
        """What a result of this model calls its files: `model`, or the name that a library looks for."""
        return kept_stem(file.path.name for file in self.files)

    @cached_property
    def sealed(self) -> dict[str, Any] | None:
        """The manifest that merganser left with these weights: beside them, or in the metadata of a single file."""
        if self.directory is None:
            text = self.metadata.get(layout.MANIFEST_KEY)
            try:
                return None if text is None else parse_json(text.encode())
            except ValueError as error:
                raise CheckpointError(f"{self.path}: its manifest is not acceptable JSON: {error}") from error
        path = self.directory / layout.MANIFEST_NAME
        return layout.read_json(path) if path.exists() else None

    @cached_property
    def degree(self) -> float:
        """1 for a model, 0 for an adapter, and for what merganser saved as a task vector what its manifest says."""
        if self.is_adapter or self.format == "signs" or self.factors is not None:
            return 0.0
        degree = (self.sealed or {}).get("degree", 1.0)
        if isinstance(degree, bool) or not isinstance(degree, int | float) or not abs(degree) < 1e9:
            where = self.directory / layout.MANIFEST_NAME if self.directory else self.path
            raise CheckpointError(f"{where}: the degree {degree!r} is no number")
        return float(degree)

    @cached_property
    def stored(self) -> Mapping[str, StoredTensor]:
        """The tensors as the files hold them: of an adapter its factors, of a patch as signs its codes."""
        if not self.is_adapter and self.format != "signs":
            return self.tensors
        shards = [file for file in self.files if file.path.suffix == ".safetensors"]
        return {name: tensor for file in shards for name, tensor in read_header(file, self.name)[0].items()}

    @property
    def is_adapter(self) -> bool:
        """Whether this is a LoRA adapter, that is a vector and not a model."""
        return bool(self.deltas)

    @cached_property
    def factors(self) -> FactorFile | None:
        """What kind of factors the tensors are, where they are an adapter's and not those of a model or a change."""
        return None if self.format in ("peft", "signs") else find_factors(self.tensors)

    def refuse_factors(self) -> None:
        """Raise `CheckpointError` where the tensors are factors, which mean nothing one by one."""
        if self.factors is not None:
            raise CheckpointError(
                f"{self.where}: holds {self.factors} ({self.factors.example!r}), and no model: the change that they "
                f"make is a product, so they may not be added or averaged one by one. {self.factors.way_out}"
            )

    def check_unchanged(self) -> None:
        """Raise `CheckpointError` if a file was changed or lost since it was opened."""
        for file in self.files:
            file.check_unchanged()


def open_checkpoint(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    allow_pickle: bool = False,
    relative_to: Path | None = None,
) -> Checkpoint:
    """Open what is at `path`: a model directory, an index, a bare weights file or a PEFT adapter directory.

    Only headers are read. `name` is what errors and the manifest call it (default: the file or directory name).
    Pickled files (.bin, .pt, .pth) are refused unless `allow_pickle`, and then only tensors are loaded from them.

    Raises `CheckpointError` for malformed or hostile files, `RequestError` where nothing is found or pickle is needed.
    """
    name = None if name is None else shown(name)
    remote = _on_the_hub(str(path), relative_to)
    if remote is not None:
        return _open_repository(remote, name or remote.name.split("/")[1], allow_pickle)
    found = layout.locate(path, relative_to)
    name = (
        name or (layout.hub_name(found) or "").split("@")[0].rpartition("/")[2] or shown(found.resolve().name)
    )
    if found.is_dir():
        return _open_directory(found, name, allow_pickle)
    if is_index(found.name):
        return _open_index(found, found.parent, name, allow_pickle)
    if found.suffix == ".safetensors":
        return _as_adapter(_open_safetensors([found], found, name), allow_pickle)
    if found.suffix in (".bin", ".pt", ".pth", ".ckpt", ".tar"):
        return _as_adapter(_open_pickles([found], found, name, allow_pickle), allow_pickle)
    raise RequestError(
        f"{found}: not a kind of checkpoint that is read (a model directory, a .safetensors file, an index, "
        "a PEFT adapter directory, or with --allow-pickle a .bin, .pt or .pth file)"
    )


def _as_adapter(opened: Checkpoint, allow_pickle: bool) -> Checkpoint:
    """A bare file of PEFT's factors as an adapter, where the config that says their scale lies beside it."""
    directory = opened.path.parent
    factors = opened.factors
    if factors is None or factors.writer != PEFT or not (directory / layout.ADAPTER_CONFIG).exists():
        return opened
    deltas, files = read_adapter(directory, opened.name, allow_pickle=allow_pickle, file=opened.path)
    return Checkpoint(opened.name, directory, {}, files, deltas=deltas, format="peft")


def _on_the_hub(text: str, relative_to: Path | None) -> Repository | None:
    """The repository that a text means, unless something lies here under that name or the network is forbidden.

    A commit that is wholly in the local cache needs no network.
    """
    places = [layout.at_home(text), *([relative_to / text] if relative_to is not None else [])]
    if not hub.is_id(text) or any(map(layout.lies, places)) or hub.offline():
        return None
    held = layout.cached_snapshot(text.removeprefix(hub.PREFIX))
    if held is not None and ((hub.pinned(text) and _complete(held)) or not hub.available()):
        return None
    return hub.repository(text)


def _complete(snapshot: Path) -> bool:
    """Whether a snapshot in the local cache holds weights, all its shards."""
    index = layout.find_index(snapshot, layout.SAFETENSORS_NAMES)
    if index is not None:
        return all((snapshot / shard).exists() for shard in layout.weight_map(index).values())
    return any(snapshot.glob("*.safetensors"))


def _open_repository(found: Repository, name: str, allow_pickle: bool) -> Checkpoint:
    """A model on the hub: its small files are fetched, of its weights the headers are read."""
    shards = [file for file in found.entries if "/" not in file and file.endswith(".safetensors")]
    directory = hub.fetch_small(found)
    if layout.ADAPTER_CONFIG in found.entries or layout.SIGNS_NAME in found.entries or not shards:
        kinds = (".safetensors",) if shards else (".bin", ".pt", ".pth")
        for file in found.entries:
            if "/" not in file and file.endswith(kinds) and (shards or allow_pickle):
                found.fetch(file)
        opened = _open_directory(directory, name, allow_pickle)
        return replace(opened, remote=found) if opened.format == "torch" else opened
    chosen = choose(directory, found.entries, str(found))
    shards = [path.name for path in chosen.files]
    if chosen.index and (missing := [shard for shard in shards if shard not in found.entries]):
        raise CheckpointError(
            f"{found}/{chosen.index.name}: names {missing[0]!r}, which the repository lacks"
        )
    files = [_remote_file(found, shard) for shard in shards]
    tensors: dict[str, StoredTensor] = {}
    metadata: dict[str, str] = {}
    for one in files:
        read, told = read_header(one, name)
        if isinstance(one, RemoteFile):
            one.header_read = True
        _add_shard(tensors, read, one)
        metadata.update(told)
    return Checkpoint(name, directory, tensors, tuple(files), metadata, remote=found)


def _remote_file(found: Repository, shard: str) -> StoredFile:
    held = found.cached(shard)
    return StoredFile(held) if held is not None else RemoteFile(found, shard)


def _open_directory(directory: Path, name: str, allow_pickle: bool) -> Checkpoint:
    if (directory / layout.ADAPTER_CONFIG).exists():
        check_alone(directory, layout.ADAPTER_CONFIG)
        deltas, files = read_adapter(directory, name, allow_pickle=allow_pickle)
        return Checkpoint(name, directory, {}, files, deltas=deltas, format="peft")
    if (directory / layout.SIGNS_NAME).exists():
        from merganser.checkpoint.signs import read_signs

        file, tensors, others = read_signs(directory, name)
        return Checkpoint(name, directory, tensors, (file, *others), format="signs")
    chosen = choose(directory)
    if chosen.index is not None:
        return _open_index(chosen.index, directory, name, allow_pickle)
    if chosen.pickled:
        return _open_pickles(list(chosen.files), directory, name, allow_pickle)
    for path in chosen.files:
        layout.refuse_link_out(path)
    return _open_safetensors(list(chosen.files), directory, name)


def _open_index(index: Path, path: Path, name: str, allow_pickle: bool) -> Checkpoint:
    layout.refuse_link_out(index)
    weight_map = layout.read_index(index)
    shards = [index.parent / shard for shard in sorted(set(weight_map.values()))]
    if all(shard.suffix == ".safetensors" for shard in shards):
        checkpoint = _open_safetensors(shards, path, name)
    else:
        checkpoint = _open_pickles(shards, path, name, allow_pickle)
    for tensor, shard in weight_map.items():
        at = checkpoint.tensors.get(tensor)
        if at is None or at.file.path.name != shard:
            where = "no shard does" if at is None else f"{at.file.path.name} does"
            raise CheckpointError(f"{index}: says that {shard} holds tensor {tensor!r}, but {where}")
    extra = [t for t in checkpoint.tensors if t not in weight_map]
    if extra:
        raise CheckpointError(f"{index}: does not list tensors that its shards hold: {listing(extra)}")
    return checkpoint


def _open_safetensors(paths: list[Path], path: Path, name: str) -> Checkpoint:
    tensors: dict[str, StoredTensor] = {}
    metadata: dict[str, str] = {}
    files = []
    for file in map(StoredFile, paths):
        found, told = read_header(file, name)
        _add_shard(tensors, found, file)
        metadata.update(told)
        files.append(file)
    if not tensors:
        raise CheckpointError(
            f"{path}: holds no tensors: nothing but a header is in it. Save the weights again, or leave this one out"
        )
    return Checkpoint(name, path, tensors, tuple(files), metadata)


def _open_pickles(paths: list[Path], path: Path, name: str, allow_pickle: bool) -> Checkpoint:
    if not allow_pickle:
        raise RequestError(
            f"{paths[0]}: is a pickled checkpoint, which can carry code. With --allow-pickle (allow_pickle=True) its "
            "tensors are read and nothing else in it is run; better, save it as safetensors"
        )
    from merganser.checkpoint.pickled import read_state

    remarks: list[str] = []
    tensors: dict[str, StoredTensor] = {}
    files = []
    for one in paths:
        layout.refuse_link_out(one)
        file = StoredFile(one)
        found, beside = read_state(file, name)
        _add_shard(tensors, found, file)
        files.append(file)
        remarks += [f"{one.name}: {beside}"] if beside else []
    return Checkpoint(name, path, tensors, tuple(files), format="torch", said=tuple(remarks))


def _add_shard(tensors: dict[str, StoredTensor], found: Mapping[str, StoredTensor], file: StoredFile) -> None:
    for name, tensor in found.items():
        if name in tensors:
            both = tensors[name].file.path, file.path
            raise CheckpointError(
                f"tensor {name!r} is in two files, {both[0]} and {both[1]}: they are two models, or two copies of one. "
                f"Give the path of the one that is meant ({both[0]}), or put each into a directory of its own"
            )
        tensors[name] = tensor
