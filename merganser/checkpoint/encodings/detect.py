"""Tell from headers, names and config that a checkpoint is quantized: its tensors are codes, not numbers.

A code means something only together with its scales, zero points or tables, so arithmetic on it is wrong. What is
asked, in this order: what the config files say, what the tensors are called, and which dtypes they have. A float8
tensor with no scale anywhere is a number (diffusion models are published so); with a scale beside it, it is a code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from merganser.checkpoint.tensor import StoredTensor

Tensors = Mapping[str, StoredTensor]

CONFIG_KEYS = ("quantization_config", "quantization", "compression_config")
"""Where config.json says how its weights are quantized (MLX writes `quantization`)."""

CONFIG_FILES = ("config.json", "quantize_config.json", "quant_config.json", "hf_quant_config.json")
"""Files that say so: of transformers, and beside it of GPTQ's, AWQ's and modelopt's own tools."""

METHODS = {
    "aqlm": "AQLM",
    "auto-round": "AutoRound",
    "awq": "AWQ",
    "bitnet": "BitNet",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "eetq": "EETQ",
    "fbgemm_fp8": "FBGEMM FP8",
    "fouroversix": "FourOverSix",
    "fp8": "FP8 with scales",
    "fp_quant": "FP-Quant",
    "gptq": "GPTQ",
    "higgs": "HIGGS",
    "hqq": "HQQ",
    "metal": "Metal",
    "modelopt": "modelopt",
    "mxfp4": "MXFP4",
    "mxfp8": "MXFP8",
    "nvfp4": "NVFP4",
    "quanto": "quanto",
    "quark": "Quark",
    "sinq": "SINQ",
    "spqr": "SpQR",
    "torchao": "torchao",
    "vptq": "VPTQ",
}
"""What the values of `quant_method` are called; any other value stands for itself."""

SCALES = ("scale", "scales", "scale_inv", "weight_scale", "weight_scales", "weight_scale_inv", "scale_weight",
          "absmax", "SCB", "input_scale", "scale_input")  # fmt: skip
"""Last parts of the names of scales that lie in the same module as their codes."""


SAMPLE = 256
"""Bytes that are read at three places of a tensor which may be a mask."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """A way of lying on disk that is not plain: its name, and what says so.

    With `config_only`, a config file says so and no tensor looks like a code.
    """

    name: str
    told_by: str
    config_only: bool = False

    def refusal(self, parent: str) -> str:
        """Why nothing can be computed with the checkpoint called `parent`, and what to do."""
        remedy = (
            "If its tensors are plain numbers all the same, remove that key from the file; else use the model as it "
            "was before it was quantized, or write plain weights"
            if self.config_only
            else "Use the model as it was before it was quantized, or write plain weights"
        )
        return (
            f"{parent!r} is quantized ({self.name}): {self.told_by}. Its tensors are codes, not numbers, and nothing "
            f"is computed with codes. {remedy} first (docs/quantized.md shows how)"
        )


def detect(tensors: Tensors, documents: Mapping[str, Any], metadata: Mapping[str, str]) -> Encoding | None:
    """How the tensors are encoded, or None where they are plain numbers.

    documents: the parsed files of `CONFIG_FILES` that lie beside the tensors, by file name. metadata: that of the
    safetensors files.
    """
    told = _told_by_config(documents)
    seen = next(_seen(tensors, metadata), None)
    if told is None:
        return seen
    return told if seen is None else Encoding(told.name, f"{told.told_by}, and {seen.told_by}")


def _told_by_config(documents: Mapping[str, Any]) -> Encoding | None:
    for file, document in documents.items():
        if not isinstance(document, Mapping):
            continue
        if file != "config.json":
            return Encoding(_own_name(file, document), f"{file} lies beside it", config_only=True)
        for place, config in _configs(document):
            for key in CONFIG_KEYS:
                settings = config.get(key)
                if isinstance(settings, Mapping) and settings:
                    name = _method(key, settings)
                    return Encoding(name, f"config.json has {place}{key}", config_only=True)
    return None


def _configs(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A config, and the configs of its parts (`text_config`)."""
    yield "", config
    for key, value in config.items():
        if key.endswith("_config") and key not in CONFIG_KEYS and isinstance(value, Mapping):
            yield f"{key}.", value


def _own_name(file: str, document: Mapping[str, Any]) -> str:
    if file == "hf_quant_config.json":
        return METHODS["modelopt"]
    told = str(document.get("quant_method", "")).lower()
    return METHODS.get(told, told) or ("GPTQ" if file == "quantize_config.json" else "AWQ")


def _method(key: str, settings: Mapping[str, Any]) -> str:
    method = str(settings.get("quant_method", "")).lower()
    if not method and (settings.get("load_in_4bit") or settings.get("load_in_8bit")):
        method = "bitsandbytes"
    if not method:
        return "MLX" if {"group_size", "bits"} <= settings.keys() else f"{key} names no method"
    name = METHODS.get(method, method)
    finer = settings.get("quant_algo") or settings.get("format")
    return f"{name}, {finer}" if isinstance(finer, str) and finer else name


def _seen(tensors: Tensors, metadata: Mapping[str, str]) -> Iterator[Encoding]:
    """What tensors' names and dtypes say, the most specific first."""
    for name, tests in NAMES:
        found = _first(tensors, tests)
        if found is not None:
            yield Encoding(name, f"it holds the tensor {found!r}")
    if "tensor_names" in metadata:
        yield Encoding(METHODS["torchao"], "the metadata of its file lists tensors of torchao")
    for name, tensor in tensors.items():
        if tensor.dtype.name in ("F4", "F6_E2M3", "F6_E3M2", "F8_E8M0"):
            yield Encoding("block floats", f"the tensor {name!r} has the dtype {tensor.dtype}")
        eight = tensor.dtype.name.startswith("F8")
        packed = (
            not tensor.dtype.is_float and tensor.dtype.name not in ("BOOL", "C64") and len(tensor.shape) > 1
        )
        if not eight and not packed:
            continue
        scale = _scale_beside(name, tensors)
        what = f"the tensor {name!r} has the dtype {tensor.dtype}"
        if scale is not None:
            kind = "FP8 with scales" if eight else "packed integers"
            yield Encoding(kind, f"{what} and its scale beside it, {scale!r}")
        elif packed and name.rpartition(".")[2] == "weight" and not _are_flags(tensor):
            yield Encoding("packed integers", what)
    if "scaled_fp8" in tensors:
        yield Encoding("FP8 with scales", "it holds the tensor 'scaled_fp8'")


def _scale_beside(name: str, tensors: Tensors) -> str | None:
    """The name of the scale that belongs to a tensor, by the names that quantizers give."""
    module = name.rpartition(".")[0]
    near = [f"{name}_{scale}" for scale in SCALES] + [f"{name}.{scale}" for scale in SCALES]
    near += [f"{module}.{scale}" if module else scale for scale in SCALES]
    return next((one for one in near if one in tensors and one != name), None)


def _are_flags(tensor: StoredTensor) -> bool:
    """Whether a tensor of bytes is a mask: at its start, middle and end there is nothing but 0 and 1."""
    if tensor.dtype.name not in ("U8", "I8"):
        return False
    length = min(SAMPLE, tensor.size)
    for start in (0, (tensor.size - length) // 2, tensor.size - length):
        part = bytearray(length)
        tensor.read_into(memoryview(part), start)
        if part.translate(None, b"\0\1"):
            return False
    return True


Test = Callable[[str, Tensors], bool]


def _ends(*endings: str) -> Test:
    return lambda name, _: name.endswith(endings)


def _with(ending: str, other: str) -> Test:
    """A name with an ending, where a tensor with another ending in its place is there too."""
    return lambda name, tensors: name.endswith(ending) and name.removesuffix(ending) + other in tensors


def _holds(part: str) -> Test:
    return lambda name, _: part in name


NAMES: tuple[tuple[str, tuple[Test, ...]], ...] = (
    ("bitsandbytes, 4 bit", (_holds(".quant_state.bitsandbytes__"), _with(".absmax", ".quant_map"))),
    ("bitsandbytes, 8 bit", (_ends(".SCB"), _with(".weight_format", ".weight"))),
    ("NVFP4", (_ends(".weight_scale_2"), _with(".weight_packed", ".weight_global_scale"))),
    ("compressed-tensors", (_ends(".weight_packed"), _with(".weight_shape", ".weight_scale"))),
    ("MXFP4", (_with("_blocks", "_scales"), _with("_blocks", "_scale"))),
    ("GPTQ", (_with(".qweight", ".g_idx"),)),
    ("GPTQ or AWQ", (_ends(".qweight", ".qzeros"),)),
    ("HQQ", (_ends(".W_q"),)),
    ("torchao", (_ends("._weight_qdata", "_weight_qdata"),)),
    ("quanto", (_with(".weight._data", ".weight._scale"), _ends(".weight._data"))),
    ("AQLM", (_with(".codes", ".codebooks"),)),
    ("VPTQ", (_with(".indices", ".centroids.weight"), _with(".indices", ".centroids"))),
    ("QuIP#", (_ends(".Qidxs"), _holds(".Qidxs_"))),
    ("FP8 with scales", (_ends("_scale_inv"),)),
    (
        "MLX",
        (
            lambda name, tensors: (
                tensors[name].dtype.name == "U32" and _with(".weight", ".scales")(name, tensors)
            ),
        ),
    ),
)
"""Names that only one kind of quantizer gives."""


def _first(tensors: Tensors, tests: Iterable[Test]) -> str | None:
    return next((name for name in tensors for test in tests if test(name, tensors)), None)
