"""The element types a checkpoint can hold, by their safetensors names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from merganser.errors import CheckpointError, RequestError, did_you_mean

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class DType:
    """An element type: its safetensors name, the name torch gives it, its size in bytes, and its kind.

    `is_float` says that arithmetic is done with it. `bits` is given where elements share bytes (then `itemsize` is 1,
    what one takes when it lies alone). `opaque` types are neither computed with nor counted with: they are carried.
    """

    name: str
    torch_name: str
    itemsize: int
    is_float: bool
    bits: int = 0
    opaque: bool = False

    def __repr__(self) -> str:
        return self.name

    @property
    def packed(self) -> bool:
        """Whether elements share bytes."""
        return self.bits != 0

    def nbytes(self, count: int) -> int:
        """Bytes of so many elements, counted from one that begins a byte."""
        return -(-count * self.bits // 8) if self.bits else count * self.itemsize

    @property
    def numpy(self) -> np.dtype[Any]:
        """The NumPy dtype with the same bits (ml_dtypes for those NumPy lacks).

        Raises `CheckpointError` for elements that share bytes.
        """
        import ml_dtypes
        import numpy as np

        extra = {
            "BF16": ml_dtypes.bfloat16,
            "F8_E4M3": ml_dtypes.float8_e4m3fn,
            "F8_E5M2": ml_dtypes.float8_e5m2,
            "F8_E8M0": ml_dtypes.float8_e8m0fnu,
            "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
            "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
        }
        if self.packed:
            raise CheckpointError(f"elements of {self.name} share bytes: they are carried, not computed with")
        found: np.dtype[Any] = np.dtype(extra.get(self.name, self.torch_name))
        return found


F64 = DType("F64", "float64", 8, True)
F32 = DType("F32", "float32", 4, True)
F16 = DType("F16", "float16", 2, True)
BF16 = DType("BF16", "bfloat16", 2, True)
F8_E4M3 = DType("F8_E4M3", "float8_e4m3fn", 1, True)
F8_E5M2 = DType("F8_E5M2", "float8_e5m2", 1, True)
I64 = DType("I64", "int64", 8, False)
I32 = DType("I32", "int32", 4, False)
I16 = DType("I16", "int16", 2, False)
I8 = DType("I8", "int8", 1, False)
U64 = DType("U64", "uint64", 8, False)
U32 = DType("U32", "uint32", 4, False)
U16 = DType("U16", "uint16", 2, False)
U8 = DType("U8", "uint8", 1, False)
BOOL = DType("BOOL", "bool", 1, False)
C64 = DType("C64", "complex64", 8, False, opaque=True)
F8_E8M0 = DType("F8_E8M0", "float8_e8m0fnu", 1, False, opaque=True)
F8_E4M3FNUZ = DType("F8_E4M3FNUZ", "float8_e4m3fnuz", 1, False, opaque=True)
F8_E5M2FNUZ = DType("F8_E5M2FNUZ", "float8_e5m2fnuz", 1, False, opaque=True)
F6_E2M3 = DType("F6_E2M3", "float6_e2m3fn", 1, False, bits=6, opaque=True)
F6_E3M2 = DType("F6_E3M2", "float6_e3m2fn", 1, False, bits=6, opaque=True)
F4 = DType("F4", "float4_e2m1fn", 1, False, bits=4, opaque=True)

COMPUTED = (F64, F32, F16, BF16, F8_E4M3, F8_E5M2)
"""The types that arithmetic is done with."""
ALL = (
    *COMPUTED, I64, I32, I16, I8, U64, U32, U16, U8, BOOL, C64, F8_E8M0, F8_E4M3FNUZ, F8_E5M2FNUZ, F6_E2M3,
    F6_E3M2, F4,
)  # fmt: skip
"""All that safetensors 0.8 has."""
BY_NAME = {d.name: d for d in ALL}
BY_TORCH_NAME = {d.torch_name: d for d in ALL if not d.packed}
"""Of the types whose elements have bytes of their own: torch counts packed elements in another way."""
_ALIASES = {"fp64": F64, "fp32": F32, "fp16": F16, "bf16": BF16, "half": F16, "float": F32, "double": F64}


def parse_dtype(text: str | DType) -> DType:
    """Read a dtype by its safetensors name (`BF16`), torch name (`bfloat16`, `torch.bfloat16`) or alias (`bf16`).

    Raises `RequestError` with the nearest known name when there is none.
    """
    if isinstance(text, DType):
        return text
    plain = text.removeprefix("torch.")
    found = BY_NAME.get(plain.upper()) or BY_TORCH_NAME.get(plain.lower()) or _ALIASES.get(plain.lower())
    if found is None:
        known = [*BY_TORCH_NAME, *_ALIASES]
        raise RequestError(
            f"unknown dtype {text!r}{did_you_mean(plain.lower(), known)} (known: {', '.join(known)})"
        )
    return found
