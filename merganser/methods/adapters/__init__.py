"""Adapters: patches that are added, re-ranked, extracted, carried to another base, and packed.

`lora`, `combine` and `resize` work on the factors of LoRA adapters, `extract` makes an adapter of any change, `port`
carries a patch to an updated base, `compress` keeps of a patch its signs. Nothing here forms a product of factors.
"""

from merganser.methods.adapters.combine import combine, lora
from merganser.methods.adapters.compeft import compress
from merganser.methods.adapters.extract import difference, extract, kept_energy
from merganser.methods.adapters.port import port, survival
from merganser.methods.adapters.resize import resize

__all__ = [
    "combine",
    "compress",
    "difference",
    "extract",
    "kept_energy",
    "lora",
    "port",
    "resize",
    "survival",
]
