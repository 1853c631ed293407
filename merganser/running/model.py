"""A model that runs: a torch module, its tokenizer, and which tensor of the checkpoint each parameter is."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from merganser.algebra import Weights
from merganser.algebra.weights import from_checkpoint
from merganser.checkpoint import open_checkpoint
from merganser.checkpoint.digest import identity
from merganser.engine import small_files
from merganser.errors import CheckpointError, MerganserError, RequestError, listing
from merganser.running.live import live_tensors
from merganser.running.needs import require

if TYPE_CHECKING:
    import torch

Kind = Literal["encoder", "classifier", "image_classifier", "series_classifier", "causal", "masked"]
_CLASSES: dict[Kind, str] = {
    "encoder": "AutoModel",
    "classifier": "AutoModelForSequenceClassification",
    "image_classifier": "AutoModelForImageClassification",
    "series_classifier": "MODEL_FOR_TIME_SERIES_CLASSIFICATION_MAPPING",
    "causal": "AutoModelForCausalLM",
    "masked": "AutoModelForMaskedLM",
}
_ENDINGS: dict[str, Kind] = {
    "ForSequenceClassification": "classifier",
    "ForImageClassification": "image_classifier",
    "PatchTSTForClassification": "series_classifier",
    "ForTimeSeriesClassification": "series_classifier",
    "ForCausalLM": "causal",
    "LMHeadModel": "causal",
    "ForMaskedLM": "masked",
    "ForPreTraining": "masked",
}
_VOCABULARIES = ("tokenizer.json", "vocab.", "spiece", "sentencepiece")
_OPTIONAL = ("pooler.",)
"""Parts of an encoder that its checkpoints may lack and that nothing here runs."""


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
    ) -> None:
        self.module: Any = module
        self.kind = kind
        self.label = label
        self.identity = identity
        self._files = files
        self.shapes = dict(tensors)
        self.names, self.unnamed = _names(module, self.shapes)

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
        with _folder(self._files) as folder:
            try:
                found = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            except Exception as error:  # whatever transformers has against it
                raise RequestError(f"{self.label}: has no tokenizer that opens: {_short(error)}") from None
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
        with _folder(self._files) as folder:
            try:
                return loader.from_pretrained(folder, local_files_only=True)
            except Exception as error:
                raise RequestError(
                    f"{self.label}: has no image processor that opens: {_short(error)}"
                ) from None

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

        if self.unnamed:  # transformers puts them together itself while it loads
            missing = sorted(self.shapes.keys() - tensors.keys())
            if missing:
                raise RequestError(f"{self.label}: no values for {listing(missing)}")
            self.module = load_module(None, self.config, self.kind, self.label, tensors)
            self.identity = None
            return
        places = {**dict(self.module.named_parameters(remove_duplicate=False))}
        places |= dict(self.module.named_buffers(remove_duplicate=False))
        missing = sorted({name for name in self.names.values() if name not in tensors})
        if missing:
            raise RequestError(f"{self.label}: no values for {listing(missing)}")
        with torch.no_grad():
            for place, name in self.names.items():
                value = tensors[name]
                if tuple(value.shape) != tuple(places[place].shape):
                    raise RequestError(
                        f"{self.label}: {name} has shape {list(places[place].shape)} and the values {list(value.shape)}"
                    )
                places[place].copy_(torch.from_numpy(np.ascontiguousarray(value)))
        self.identity = None


def open_model(source: str | Path | Weights, *, kind: Kind | None = None, label: str | None = None) -> Model:
    """Open a model directory by transformers in f32, or lazy `Weights` computed in memory, without code of the model.

    kind: what it is run as; default: what the config's architecture says, an encoder where it says nothing of a head.
    Raises `RequestError` where there is no config, or the checkpoint has no weights for a part that `kind` needs, and
    `CheckpointError` where transformers cannot open it.
    """
    require("torch", "transformers")
    if isinstance(source, Weights):
        weights, name = source, label or source.label
        mark = None
    else:
        checkpoint = open_checkpoint(source, name=label or str(source))
        if checkpoint.is_adapter:
            raise RequestError(f"{source}: is a LoRA adapter; merge it into its base first (method: linear)")
        weights, name = from_checkpoint(checkpoint), label or str(source)
        mark = identity(checkpoint.tensors)
    files = small_files(weights)
    if "config.json" not in files:
        raise RequestError(f"{name}: has no config.json, so nothing says how to run it")
    with _folder(files) as folder:
        config = _config(folder, name)
        chosen = kind or _kind(config)
    lazy = isinstance(source, Weights) or weights.origin is None
    place = None if lazy or weights.origin is None else weights.origin.directory
    module = load_module(place, config, chosen, name, live_tensors(weights) if lazy else None)
    shapes = {tensor: tuple(weights[tensor].shape) for tensor in weights}
    return Model(module, chosen, label=name, identity=mark, files=files, tensors=shapes)


def load_module(
    place: Path | None,
    config: Any,
    kind: Kind,
    name: str,
    tensors: Mapping[str, np.ndarray[Any, Any]] | None = None,
) -> Any:
    """The torch module out of the directory `place`, or out of tensors in memory."""
    import torch

    loader = _family(config, kind, name)
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
        with _quiet():
            module, report = loader.from_pretrained(place, **settings)
    except MerganserError:
        raise
    except Exception as error:
        raise CheckpointError(f"{name}: transformers does not open it as {kind}: {_short(error)}") from None
    missing = [key for key in report["missing_keys"] if not (kind == "encoder" and key.startswith(_OPTIONAL))]
    if missing or report["mismatched_keys"]:
        wrong = missing or [key for key, *_ in report["mismatched_keys"]]
        raise RequestError(
            f"{name}: the checkpoint has no weights for {listing(sorted(wrong))}, which {kind} needs"
            + ("; an encoder is scored with a head of its own (head:)" if kind == "classifier" else "")
        )
    return module.eval().requires_grad_(False)


def _family(config: Any, kind: Kind, name: str) -> Any:
    """The class of transformers that runs models of this config as `kind`."""
    import transformers

    auto = getattr(transformers, _CLASSES[kind])
    family = (auto if hasattr(auto, "get") else auto._model_mapping).get(type(config), None)
    if family is None:
        raise RequestError(f"{name}: transformers has no {kind} for models of type {config.model_type!r}")
    return family[0] if isinstance(family, tuple) else family


def _config(folder: Path, name: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise CheckpointError(
            f"{name}: transformers does not know its config.json: {_short(error)}"
        ) from None


def _kind(config: Any) -> Kind:
    for architecture in getattr(config, "architectures", None) or ():
        for ending, kind in _ENDINGS.items():
            if architecture.endswith(ending):
                return kind
    return "encoder"


def _names(module: Any, tensors: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, str], list[str]]:
    """Which tensor each parameter is: by its name, with or without the body's prefix, or as transformers renames it.

    A parameter that is tied to another is the other's tensor.
    """
    places = dict(module.named_parameters(remove_duplicate=False))
    stored = module.state_dict(keep_vars=True)
    places |= {name: buffer for name, buffer in module.named_buffers() if name in stored}
    spellings = _renamed(module)
    prefix = getattr(module, "base_model_prefix", "") or ""
    names: dict[str, str] = {}
    by_memory: dict[int, str] = {}
    for place, value in places.items():
        old = place.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        for spelling in dict.fromkeys((place, old, *spellings.get(_address(value), ()))):
            for candidate in (spelling, spelling.removeprefix(f"{prefix}."), f"{prefix}.{spelling}"):
                if place not in names and tensors.get(candidate) == tuple(value.shape):
                    names[place] = candidate
                    by_memory.setdefault(_address(value), candidate)
    for place, value in places.items():
        if place not in names and value.numel() and _address(value) in by_memory:
            names[place] = by_memory[_address(value)]
    return names, [place for place in places if place not in names and not place.startswith(_OPTIONAL)]


def _renamed(module: Any) -> dict[int, list[str]]:
    """The names that transformers saves parameters by, by the address of their first element."""
    from transformers.core_model_loading import revert_weight_conversion

    found: dict[int, list[str]] = {}
    for name, value in revert_weight_conversion(module, dict(module.state_dict(keep_vars=True))).items():
        found.setdefault(_address(value), []).append(name)
    return found


def _address(value: torch.Tensor) -> int:
    """What tells that two tensors are one: where it lies; on the meta device, where nothing lies, the object itself."""
    return id(value) if value.is_meta else value.data_ptr()


@contextmanager
def _folder(files: Mapping[str, bytes]) -> Iterator[Path]:
    """The small files of a model in a folder of their own: config and tokenizer, and no weights."""
    with tempfile.TemporaryDirectory(prefix="merganser-") as temporary:
        for name, content in files.items():
            target = Path(temporary) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        yield Path(temporary)


@contextmanager
def _quiet() -> Iterator[None]:
    """Loading reports of transformers say what is checked here; its progress bars would break ours."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
