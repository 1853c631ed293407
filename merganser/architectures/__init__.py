"""Model families: one data file each, which names every tensor and labels its axes."""

from merganser.architectures.family import Family, NormSpec, families, family_of, parse_family
from merganser.architectures.notation import Dimension, FamilyError, TensorSpec
from merganser.architectures.reading import (
    Axis,
    NamedTensor,
    Reading,
    contradiction,
    get_key,
    read,
    read_as,
    with_key,
)

__all__ = [
    "Axis",
    "Dimension",
    "Family",
    "FamilyError",
    "NamedTensor",
    "NormSpec",
    "Reading",
    "TensorSpec",
    "contradiction",
    "families",
    "family_of",
    "get_key",
    "parse_family",
    "read",
    "read_as",
    "with_key",
]
