"""A model that is to be run, as far as headers and config.json tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merganser.algebra import Weights
from merganser.algebra.weights import from_checkpoint, need_numbers
from merganser.checkpoint import open_checkpoint
from merganser.checkpoint.digest import identity
from merganser.engine import small_files
from merganser.errors import CheckpointError, RequestError
from merganser.running.kinds import Kind, kind_of
from merganser.running.library import folder_of, short


@dataclass(frozen=True)
class Source:
    """Weights and the small files beside them. `identity` is the checkpoint's, None for lazy weights."""

    weights: Weights
    label: str
    identity: str | None
    files: Mapping[str, bytes]
    config: Any
    kind: Kind

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of its tensors, by name."""
        return {name: tuple(self.weights[name].shape) for name in self.weights}


def read_source(source: str | Path | Weights, kind: Kind | None, label: str | None) -> Source:
    """Read a model directory or lazy weights; `kind` stands above what the config says.

    Raises `RequestError` for adapters and where there is no config, `QuantizedError` for codes, `CheckpointError` where
    transformers does not know the config.
    """
    if isinstance(source, Weights):
        weights, name, mark = source, label or source.label, None
    else:
        name = label or str(source)
        checkpoint = open_checkpoint(source, name=name)
        if checkpoint.is_adapter:
            raise RequestError(f"{source}: is a LoRA adapter; merge it into its base first (method: linear)")
        weights, mark = from_checkpoint(checkpoint), identity(checkpoint.tensors)
    need_numbers(weights.checkpoints)
    files = small_files(weights)
    if "config.json" not in files:
        raise RequestError(f"{name}: has no config.json, so nothing says how to run it")
    with folder_of(files) as folder:
        config = _config(folder, name)
    return Source(weights, name, mark, files, config, kind or kind_of(config))


def _config(folder: Path, name: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise CheckpointError(f"{name}: transformers does not know its config.json: {short(error)}") from None
