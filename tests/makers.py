"""What tests share: checkpoints written and read by a few lines that are not merganser's."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

BF16 = np.dtype(ml_dtypes.bfloat16)
F8_E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
F8_E5M2 = np.dtype(ml_dtypes.float8_e5m2)
NAMES = {
    np.dtype(np.float64): "F64",
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    BF16: "BF16",
    F8_E4M3: "F8_E4M3",
    F8_E5M2: "F8_E5M2",
    np.dtype(np.int64): "I64",
    np.dtype(np.int32): "I32",
    np.dtype(np.int16): "I16",
    np.dtype(np.int8): "I8",
    np.dtype(np.uint64): "U64",
    np.dtype(np.uint32): "U32",
    np.dtype(np.uint16): "U16",
    np.dtype(np.uint8): "U8",
    np.dtype(np.bool_): "BOOL",
}
DTYPES = {name: dtype for dtype, name in NAMES.items()}
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
ROOT = Path(__file__).parent.parent


def write_file(path: Path, tensors: Mapping[str, np.ndarray]) -> Path:
    """A safetensors file."""
    header: dict[str, Any] = {}
    at = 0
    for name, array in tensors.items():
        header[name] = {
            "dtype": NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array).tobytes())
    return path


def write_model(directory: Path, tensors: Mapping[str, np.ndarray], config: Any = None) -> Path:
    """A model directory with one safetensors file and a config."""
    directory.mkdir(parents=True, exist_ok=True)
    write_file(directory / "model.safetensors", tensors)
    (directory / "config.json").write_text(json.dumps(config or {"model_type": "toy"}))
    return directory


def write_adapter(
    directory: Path, factors: Mapping[str, tuple[np.ndarray, np.ndarray]], *, alpha: float = 4.0
) -> Path:
    """A PEFT LoRA directory: by module name, B (out x r) and A (r x in); the change is alpha / r * B @ A."""
    directory.mkdir(parents=True, exist_ok=True)
    rank = next(iter(factors.values()))[1].shape[0]
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    tensors = {}
    for module, (left, right) in factors.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = right
        tensors[f"base_model.model.{module}.lora_B.weight"] = left
    write_file(directory / "adapter_model.safetensors", tensors)
    return directory


def read_file(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        found[name] = np.frombuffer(raw[begin:end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return found


def read_model(directory: Path) -> dict[str, np.ndarray]:
    """All tensors of a model directory."""
    found: dict[str, np.ndarray] = {}
    for path in sorted(directory.glob("*.safetensors")):
        for name, array in read_file(path).items():
            assert name not in found, f"{name} is in two files"
            found[name] = array
    return found


def same_bytes(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays agree in dtype, shape and every bit."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def random_bits(dtype: np.dtype, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Every bit random; bool is 0 or 1; NaN and Inf of float types are replaced by 1."""
    rng = np.random.default_rng(seed)
    count = int(np.prod(shape))
    if dtype == np.bool_:
        return rng.integers(0, 2, count).astype(bool).reshape(shape)
    array = np.frombuffer(rng.bytes(count * dtype.itemsize), dtype).copy()
    if NAMES[dtype] in FLOATS:
        with np.errstate(invalid="ignore"):
            array[~np.isfinite(array.astype(np.float64))] = 1.0
    return array.reshape(shape)


def normal(*shape: int, seed: int = 0, dtype: Any = np.float32, scale: float = 1.0) -> np.ndarray:
    """Normal numbers."""
    with np.errstate(over="ignore"):
        return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(dtype)


def files_of(directory: Path) -> dict[str, bytes]:
    """The content of every file, the manifest without its `run` section."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            raw = path.read_bytes()
            if path.name == "merganser.json":
                document = json.loads(raw)
                document.pop("run")
                document.pop("own_digest", None)  # it covers the run section
                raw = json.dumps(document).encode()
            found[str(path.relative_to(directory))] = raw
    return found


def python(
    code: str, *arguments: object, env: Mapping[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment(env),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        **options,
    )


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a child process that finds the package."""
    return dict(os.environ) | {"PYTHONPATH": str(ROOT)} | dict(more or {})
