"""What names of files say: which copy of the weights a file is, which shard of how many, and what else lies about."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

STEMS = ("model", "diffusion_pytorch_model")
"""What transformers and diffusers call the weights that they load."""
KEPT_STEMS = ("diffusion_pytorch_model", "open_clip_model", "open_clip_pytorch_model")
"""Names that a library looks for, so that a result is found under the name that its origin had."""
_KIND = re.compile(r"(?P<stem>.+)\.(?P<kind>safetensors|bin|pt|pth)")
_COUNTED = re.compile(r"[-_.](?P<number>\d{1,6})-of-(?P<count>\d{1,6})(?!\d)")
_AVERAGED = re.compile(r"(?:^|[_.-])ema(?:$|[_.-])", re.IGNORECASE)
_INDEX = re.compile(r"(?P<weights>.+\.(?:safetensors|bin))\.index(?:\.(?P<variant>[\w-]+))?\.json")

OTHER_FORMATS = (
    ".gguf",
    ".ggml",
    ".h5",
    ".msgpack",
    ".onnx",
    ".onnx_data",
    ".ot",
    ".tflite",
    ".mlmodel",
    ".engine",
)
"""Endings of exports: the same weights in the form of another program."""
OTHER_FOLDERS = (
    "onnx",
    "openvino",
    "original",
    "metal",
    "gguf",
    "ggml",
    "coreml",
    "tflite",
    "mlx",
    "tensorrt",
)
"""Folders of exports."""
OTHER_STEMS = (
    "model", "pytorch_model", "diffusion_pytorch_model", "open_clip_model", "open_clip_pytorch_model", "tf_model",
    "flax_model", "rust_model", "openvino_model", "consolidated",
)  # fmt: skip
"""What the weights of the whole model are called in the forms of libraries: beside those that were read, copies."""
LEFTOVERS = (
    "optimizer",
    "scheduler",
    "scaler",
    "rng_state",
    "random_states",
    "training_args",
    "trainer_state",
    "events.",
)
"""How files begin that training goes on from."""
LEFTOVER_FOLDERS = re.compile(r"checkpoint[-_]\d+|global_step\d+|runs|logs|wandb|__pycache__")
MOST_SHARDS = 100_000
"""A name that claims more is not counted through."""
PARTS = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".npz", ".npy", ".pkl", ".joblib", ".skops",
)  # fmt: skip
"""Endings of files that hold weights."""


@dataclass(frozen=True, slots=True)
class WeightsName:
    """A file name taken apart: `model.fp16-00001-of-00002.safetensors` is the first of two of the stem `model.fp16`.

    `number` and `count` are 0 for a whole file.
    """

    stem: str
    number: int
    count: int
    kind: str

    @property
    def plain(self) -> str:
        """The stem without a variant: `model` of `model.fp16`."""
        return self.stem.split(".")[0]


def read_name(name: str) -> WeightsName | None:
    """A file of weights by its name; None where it has another ending."""
    match = _KIND.fullmatch(name)
    if match is None:
        return None
    stem, counted = match["stem"], _COUNTED.search(match["stem"])
    if counted is None or counted.start() == 0:
        return WeightsName(stem, 0, 0, match["kind"])
    stem = stem[: counted.start()] + stem[counted.end() :]
    return WeightsName(stem, int(counted["number"]), int(counted["count"]), match["kind"])


def is_index(name: str) -> bool:
    """Whether a file is an index of shards, of a variant too: `model.safetensors.index.fp16.json`."""
    return _INDEX.fullmatch(name) is not None or name.endswith(".index.json")


def index_name(stem: str) -> str:
    """The index of shards that are called `stem-0000k-of-0000n.safetensors`, as libraries look for it."""
    name, *variant = stem.split(".", 1)
    return ".".join([f"{name}.safetensors.index", *variant, "json"])


def shard_name(stem: str, number: int, count: int) -> str:
    """One of `count` files, counted from 1."""
    return f"{stem}-{number:05d}-of-{count:05d}.safetensors"


def shard_sets(names: Iterable[str]) -> dict[WeightsName, dict[int, str]]:
    """The files that are called "k of n", by what they are shards of (with number 0): name by number."""
    sets: dict[WeightsName, dict[int, str]] = {}
    for name in names:
        found = read_name(name)
        if found is not None and found.count:
            sets.setdefault(replace(found, number=0), {})[found.number] = name
    return sets


def missing_shards(held: Mapping[int, str], count: int) -> list[str]:
    """Files of a set that are not there, by the names of those that are."""
    first = next(iter(held.values()))

    def called(number: int) -> str:
        return re.sub(r"\d+(?=-of-\d)", lambda match: f"{number:0{len(match[0])}d}", first)

    return [called(number) for number in range(1, min(count, MOST_SHARDS) + 1) if number not in held]


def role(name: str) -> str:
    """What a file beside the weights is, by its path below the model: "copy", "leftover", "part" or "" (no weights)."""
    path = PurePosixPath(name)
    folders, file = path.parts[:-1], path.name
    if any(LEFTOVER_FOLDERS.fullmatch(folder) for folder in folders):
        return "leftover"
    if any(re.split(r"[-_]", folder.lower())[0] in OTHER_FOLDERS for folder in folders):
        return "copy"
    if file.startswith(LEFTOVERS):
        return "leftover"
    if path.suffix in OTHER_FORMATS:
        return "copy"
    if path.suffix not in PARTS:
        return ""
    found = read_name(file)
    if not folders and found is not None and (found.plain in OTHER_STEMS or _AVERAGED.search(found.stem)):
        return "copy"
    return "part"
