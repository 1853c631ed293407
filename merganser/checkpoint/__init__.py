"""Where weights rest: the only room that touches files of models."""

from merganser.checkpoint.adapter import AdapterDelta
from merganser.checkpoint.checkpoint import Checkpoint, open_checkpoint
from merganser.checkpoint.dtypes import DType, parse_dtype
from merganser.checkpoint.files import StoredFile
from merganser.checkpoint.tensor import StoredTensor

__all__ = [
    "AdapterDelta",
    "Checkpoint",
    "DType",
    "StoredFile",
    "StoredTensor",
    "open_checkpoint",
    "parse_dtype",
]
