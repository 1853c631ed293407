"""How a sentence-transformers model makes an embedding, as the files beside its weights say.

modules.json lists what comes after the body: a pooling, dense layers, a normalisation. What it lists and is not known
here is refused by name, for the cosines would be another model's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser.checkpoint import open_checkpoint
from merganser.errors import RequestError

if TYPE_CHECKING:
    import torch

MODULES = "modules.json"
_POOLINGS = {
    "cls_token": "cls", "mean_tokens": "mean", "lasttoken": "last",
    "cls": "cls", "mean": "mean",
}  # fmt: skip
_OLD = "pooling_mode_"
_SETTINGS = ("sentence_bert_config.json", "sentence_roberta_config.json", "sentence_xlnet_config.json",
             "sentence_distilbert_config.json", "sentence_camembert_config.json", "sentence_albert_config.json",
             "sentence_xlm-roberta_config.json")  # fmt: skip


@dataclass(frozen=True)
class Sentence:
    """pooling as `heads.pool` has it; max_length in tokens; prompt: put before every text; dense: layers after it."""

    pooling: str
    max_length: int | None
    lower: bool
    prompt: str
    dense: tuple[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None, str], ...]

    def texts(self, texts: list[str]) -> list[str]:
        """The texts as the tokenizer is given them."""
        made = [self.prompt + text for text in texts]
        return [text.lower() for text in made] if self.lower else made

    def layers(self, features: torch.Tensor) -> torch.Tensor:
        """Features [rows, hidden] through the dense layers."""
        import torch

        for weight, bias, function in self.dense:
            features = torch.nn.functional.linear(
                features,
                torch.from_numpy(weight).to(features.dtype),
                None if bias is None else torch.from_numpy(bias).to(features.dtype),
            )
            features = _FUNCTIONS[function](features)
        return features


_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "Identity": lambda x: x,
    "Tanh": lambda x: x.tanh(),
    "ReLU": lambda x: x.relu(),
    "Sigmoid": lambda x: x.sigmoid(),
}


def read_sentence(files: Mapping[str, bytes], part: Callable[[str], Path], label: str) -> Sentence | None:
    """What the small files say; None where there is no modules.json. `part` says where a file with weights lies.

    Raises `RequestError` for modules, poolings and settings that are not known here.
    """
    if MODULES not in files:
        return None
    pooling, dense = None, []
    for entry in _json(files, MODULES, label):
        kind, folder = str(entry.get("type")).rpartition(".")[2], str(entry.get("path") or "")
        if kind in ("Transformer", "Normalize"):
            continue
        if kind == "Pooling" and pooling is None:
            pooling = _pooling(_json(files, f"{folder}/config.json", label), label)
        elif kind == "Dense" and pooling is not None:
            dense.append(_dense(files, folder, part, label))
        else:
            raise _unknown(label, f"a module of the kind {kind}")
    if pooling is None:
        raise _unknown(label, "no Pooling")
    held = next((name for name in _SETTINGS if name in files), "")
    settings: Mapping[str, Any] = _json(files, held, label) if held else {}
    lengths = (
        settings.get("max_seq_length"),
        _json(files, "tokenizer_config.json", label).get("model_max_length"),
    )
    return Sentence(
        pooling,
        next((int(one) for one in lengths if isinstance(one, int | float) and 0 < one < 1 << 30), None),
        bool(settings.get("do_lower_case")),
        _prompt(files, label),
        tuple(dense),
    )


def _pooling(config: Mapping[str, Any], label: str) -> str:
    told = config.get("pooling_mode")
    modes = [told] if isinstance(told, str) else list(told or ())
    modes += [key.removeprefix(_OLD) for key, on in config.items() if key.startswith(_OLD) and on is True]
    if len(modes) == 1 and modes[0] in _POOLINGS:
        return _POOLINGS[modes[0]]
    raise _unknown(label, f"the pooling {' and '.join(map(str, modes)) or 'nothing'}")


def _dense(
    files: Mapping[str, bytes], folder: str, part: Callable[[str], Path], label: str
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None, str]:
    config = _json(files, f"{folder}/config.json", label)
    function = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    others = [config.get(key) for key in ("module_input_name", "module_output_name")]
    if function not in _FUNCTIONS or config.get("use_residual") or {*others} - {None, "sentence_embedding"}:
        raise _unknown(label, f"a Dense layer of another form ({folder}/config.json)")
    names = ("model.safetensors", "pytorch_model.bin")
    found = next((path for name in names if (path := part(f"{folder}/{name}")).is_file()), None)
    if found is None:
        raise RequestError(f"{label}: {folder} has no weights of its Dense layer")
    tensors = open_checkpoint(found, allow_pickle=found.suffix == ".bin").tensors
    bias = tensors["linear.bias"].numpy() if "linear.bias" in tensors else None
    return np.asarray(tensors["linear.weight"].numpy(), np.float32), bias, function


def _prompt(files: Mapping[str, bytes], label: str) -> str:
    """The prompt that is put before every text, where the model names a default one."""
    config = _json(files, "config_sentence_transformers.json", label)
    name = config.get("default_prompt_name")
    prompts = config.get("prompts")
    return str(prompts.get(name, "")) if isinstance(prompts, Mapping) and name is not None else ""


def _json(files: Mapping[str, bytes], name: str, label: str) -> Any:
    try:
        return json.loads(files.get(str(PurePosixPath(name)), b"{}"))
    except ValueError:
        raise RequestError(f"{label}: {name} is not JSON") from None


def _unknown(label: str, what: str) -> RequestError:
    return RequestError(
        f"{label}: modules.json makes its embeddings with {what}, which is not run here. Give `pooling: mean` or "
        "`pooling: cls` in the task to score another embedding, the body's states pooled so"
    )
