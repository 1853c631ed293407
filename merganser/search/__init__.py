"""Merging by data: models run in a loop to choose coefficients; the product is a recipe that rebuilds the result.

Names are loaded when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from merganser._lazy import lazy

if TYPE_CHECKING:
    from merganser.search.fitness import CallableFitness, Fitness, SuiteFitness
    from merganser.search.learning import METHODS, Learned, learn
    from merganser.search.localization import Localization, LocalizeOptions, localize
    from merganser.search.mixtures import RankedMixtures, rank_mixtures, read_sets
    from merganser.search.optimisers import OPTIMISERS, optimise
    from merganser.search.run import Found, Searched, search
    from merganser.search.soups import Soup, soup
    from merganser.search.space import Space

_HOMES = {
    "CallableFitness": "fitness",
    "Fitness": "fitness",
    "Found": "run",
    "Learned": "learning",
    "Localization": "localization",
    "LocalizeOptions": "localization",
    "METHODS": "learning",
    "OPTIMISERS": "optimisers",
    "RankedMixtures": "mixtures",
    "Searched": "run",
    "Soup": "soups",
    "Space": "space",
    "SuiteFitness": "fitness",
    "learn": "learning",
    "localize": "localization",
    "optimise": "optimisers",
    "rank_mixtures": "mixtures",
    "read_sets": "mixtures",
    "search": "run",
    "soup": "soups",
}
__all__ = [
    "METHODS",
    "OPTIMISERS",
    "CallableFitness",
    "Fitness",
    "Found",
    "Learned",
    "Localization",
    "LocalizeOptions",
    "RankedMixtures",
    "Searched",
    "Soup",
    "Space",
    "SuiteFitness",
    "learn",
    "localize",
    "optimise",
    "rank_mixtures",
    "read_sets",
    "search",
    "soup",
]

__getattr__ = lazy(__name__, _HOMES)
