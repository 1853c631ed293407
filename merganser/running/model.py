"""A model that runs: a torch module, its tokenizer, and which tensor of the checkpoint each parameter is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser.algebra import Weights
from merganser.errors import CheckpointError, MerganserError, RequestError, listing
from merganser.running.kinds import Kind, class_for
from merganser.running.library import folder_of, quiet, short
from merganser.running.live import live_tensors
from merganser.running.names import OPTIONAL, names_of
from merganser.running.needs import require
from merganser.running.sentence import Sentence, read_sentence
from merganser.running.source import Source, read_source

if TYPE_CHECKING:
    import torch

_VOCABULARIES = ("tokenizer.json", "vocab.", "spiece", "sentencepiece")


class Model:
    """A model in torch: f32, in evaluation mode, no gradients asked for.

    `names` maps the module's parameters and buffers to the checkpoint's tensors; `unnamed` lists those that no single
    tensor stands for (experts that transformers stores fused, say). `identity` is the checkpoint's, None for weights
    that were never written. `positions` is how many tokens it takes, None where nothing says.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        kind: Kind,
        *,
        label: str,
        identity: str | None,
        files: Mapping[str, bytes],
        tensors: Mapping[str, tuple[int, ...]],
        place: Callable[[str], Path] = Path,
    ) -> None:
        self.place = place
        """Where a file beside the weights lies."""
        self.module: Any = module
        self.kind = kind
        self.label = label
        self.identity = identity
        self._files = files
        self.shapes = dict(tensors)
        self.names, self.unnamed = names_of(module, self.shapes)
        self.padding: str | None = None
        """Why padding counts, "" where it does not, None before that was tried (`merganser.running.trust`)."""
        self.checked = False
        """Whether it was tried that a language model sees nothing ahead."""

    @property
    def config(self) -> Any:
        """The configuration of transformers."""
        return self.module.config

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer; `RequestError` where the model has none, or it has more tokens than the model has rows."""
        from transformers import AutoTokenizer

        if not any(name.startswith(_VOCABULARIES) or name.endswith(".model") for name in self._files):
            raise RequestError(
                f"{self.label}: has no tokenizer (no tokenizer.json, no vocabulary) beside its weights"
            )
        with folder_of(self._files) as folder:
            try:
                found = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            except Exception as error:  # whatever transformers has against it
                raise RequestError(f"{self.label}: has no tokenizer that opens: {short(error)}") from None
        rows = self.module.get_input_embeddings()
        if rows is not None and hasattr(rows, "num_embeddings"):
            largest = max(found.get_vocab().values(), default=0)
            if largest >= rows.num_embeddings:
                raise RequestError(
                    f"{self.label}: the tokenizer has ids up to {largest} and the model's embedding "
                    f"{rows.num_embeddings} rows: they do not belong together"
                )
        return found

    @cached_property
    def processor(self) -> Any:
        """The image processor of the model's directory; `RequestError` where it has none."""
        from transformers import AutoImageProcessor as Untyped

        loader: Any = Untyped
        with folder_of(self._files) as folder:
            try:
                return loader.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            except Exception as error:
                raise RequestError(
                    f"{self.label}: has no image processor that opens: {short(error)}"
                ) from None

    @cached_property
    def sentence(self) -> Sentence | None:
        """How it makes embeddings, where it is a model of sentence-transformers."""
        return read_sentence(self._files, self.place, self.label)

    def file(self, name: str) -> bytes | None:
        """A small file beside the weights (generation_config.json, say); None where there is none."""
        return self._files.get(name)

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end what a language model writes: the tokenizer's, the config's, generation_config.json's."""
        found = [self.tokenizer.eos_token_id, getattr(self.config, "eos_token_id", None)]
        with suppress(ValueError, AttributeError):
            found.append(json.loads(self.file("generation_config.json") or b"{}").get("eos_token_id"))
        flat = [token for one in found for token in (one if isinstance(one, list | tuple) else [one])]
        return frozenset(token for token in flat if isinstance(token, int))

    @property
    def pad_id(self) -> int:
        """What rows of a batch are filled up with; it is masked."""
        for found in (getattr(self.config, "pad_token_id", None), self.tokenizer.pad_token_id):
            if isinstance(found, int) and found >= 0:
                return found
        return 0

    @property
    def positions(self) -> int | None:
        """How many tokens the model takes."""
        for key in ("max_position_embeddings", "n_positions", "max_sequence_length"):
            found = getattr(self.config, key, None)
            if isinstance(found, int) and found > 0:
                return found - self._first_position
        return None

    @cached_property
    def _first_position(self) -> int:
        """RoBERTa, MPNet and others count positions from behind the padding's own id."""
        for name, part in self.module.named_modules():
            if name.endswith("position_embeddings") and getattr(part, "padding_idx", None) is not None:
                return int(part.padding_idx) + 1
        return 0

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of a classifier's classes, in order."""
        return tuple(self.config.id2label[i] for i in range(self.config.num_labels))

    def states(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The last hidden states f32 [rows, tokens, hidden] of the model without its head."""
        body = self.module if self.kind == "encoder" else self.module.base_model
        found: torch.Tensor = body(input_ids=ids, attention_mask=mask).last_hidden_state
        return found

    def logits(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """What the head gives: [rows, classes] of a classifier, [rows, tokens, vocabulary] of a language model."""
        found: torch.Tensor = self.module(input_ids=ids, attention_mask=mask).logits
        return found

    def fill(self, tensors: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Put other values into the module, by the checkpoint's names.

        Raises `RequestError` where tensors are missing or of another shape.
        """
        import torch

        missing = sorted({name for name in self.names.values() if name not in tensors})
        if self.unnamed and (lost := sorted(self.shapes.keys() - tensors.keys())):
            raise RequestError(f"{self.label}: no values for {listing(lost)}")
        places = {**dict(self.module.named_parameters(remove_duplicate=False))}
        places |= dict(self.module.named_buffers(remove_duplicate=False))
        if self.unnamed or missing or self._other_ties(places, tensors):
            # transformers puts them together itself while it loads, and sees what is one matrix.
            try:
                self.module = load_module(None, self.config, self.kind, self.label, tensors)
            except RequestError:
                if not missing:
                    raise
                raise RequestError(f"{self.label}: no values for {listing(missing)}") from None
            self.shapes = {name: tuple(value.shape) for name, value in tensors.items()}
            self.names, self.unnamed = names_of(self.module, self.shapes)
            self.identity = None
            return
        with torch.no_grad():
            for place, name in self.names.items():
                value = tensors[name]
                if tuple(value.shape) != tuple(places[place].shape):
                    raise RequestError(
                        f"{self.label}: {name} has shape {list(places[place].shape)} and the values {list(value.shape)}"
                    )
                places[place].copy_(torch.from_numpy(np.ascontiguousarray(value)))
        self.identity = None

    def _other_ties(self, places: Mapping[str, Any], tensors: Mapping[str, np.ndarray[Any, Any]]) -> bool:
        """Whether what is one matrix in the module has other values under its other name, or the other way round."""
        if tensors.keys() - self.shapes.keys():
            return True
        held: dict[int, str] = {}
        for place, name in self.names.items():
            first = held.setdefault(places[place].data_ptr(), name)
            if first != name and places[place].numel() and not np.array_equal(tensors[first], tensors[name]):
                return True
        return False


def open_model(
    source: str | Path | Weights,
    *,
    kind: Kind | None = None,
    label: str | None = None,
    memory: int | None = None,
) -> Model:
    """Open a model directory by transformers in f32, or lazy `Weights` computed in memory, without code of the model.

    kind: what it is run as; default: what the config's architecture says, an encoder where it says nothing of a head.
    memory: as `live_tensors` has it, for lazy weights.
    Raises `RequestError` where there is no config, or the checkpoint has no weights for a part that `kind` needs, and
    `CheckpointError` where transformers cannot open it.
    """
    require("torch", "transformers")
    found = read_source(source, kind, label)
    origin = None if isinstance(source, Weights) else found.weights.origin
    place = None if origin is None else origin.loadable
    module = load_module(
        place,
        found.config,
        found.kind,
        found.label,
        live_tensors(found.weights, memory=memory) if place is None else None,
    )
    return of_source(module, found)


def of_source(module: torch.nn.Module, source: Source) -> Model:
    """A module as the model that a source is."""
    return Model(
        module,
        source.kind,
        label=source.label,
        identity=source.identity,
        files=source.files,
        tensors=source.shapes,
        place=source.weights.origin.place if source.weights.origin is not None else Path,
    )


def load_module(
    place: Path | None,
    config: Any,
    kind: Kind,
    name: str,
    tensors: Mapping[str, np.ndarray[Any, Any]] | None = None,
) -> Any:
    """The torch module out of the directory `place`, or out of tensors in memory."""
    import torch

    loader = class_for(config, kind, name)
    settings: dict[str, Any] = {
        "config": config,
        "dtype": torch.float32,
        "output_loading_info": True,
        "local_files_only": True,
    }
    if tensors is None:
        settings["use_safetensors"] = True
    else:
        settings["state_dict"] = {key: torch.from_numpy(array) for key, array in tensors.items()}
    try:
        with quiet():
            module, report = loader.from_pretrained(place, **settings)
    except MerganserError:
        raise
    except Exception as error:
        raise CheckpointError(f"{name}: transformers does not open it as {kind}: {short(error)}") from None
    missing = [key for key in report["missing_keys"] if not (kind == "encoder" and key.startswith(OPTIONAL))]
    if missing or report["mismatched_keys"]:
        wrong = missing or [key for key, *_ in report["mismatched_keys"]]
        raise RequestError(
            f"{name}: the checkpoint has no weights for {listing(sorted(wrong))}, which {kind} needs"
            + ("; an encoder is scored with a head of its own (head:)" if kind == "classifier" else "")
        )
    return module.eval().requires_grad_(False)
