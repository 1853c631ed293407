"""Merges that run without being written: one module in memory, filled with one candidate after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merganser.algebra import Weights
from merganser.engine import small_files
from merganser.running import live_tensors, open_model

if TYPE_CHECKING:
    from merganser.running import Model


class Live:
    """Holds the module of the last candidate; one of the same shapes and config is put into it.

    memory: bytes that the process may hold while a candidate is computed, its result apart (None: the engine's
    default, 1 GiB more than it holds then).
    """

    def __init__(self, memory: int | None = None) -> None:
        self.memory = memory
        self.model: Model | None = None
        self._config: bytes | None = None

    def model_of(self, weights: Weights) -> Model:
        """The candidate as a running model."""
        config = small_files(weights).get("config.json")
        shapes = {name: tuple(weights[name].shape) for name in weights}
        held = self.model
        if held is not None and not held.unnamed and held.shapes == shapes and self._config == config:
            held.fill(live_tensors(weights, memory=self.memory))
            return held
        self.model = None  # two at once may be more than memory holds
        self.model, self._config = open_model(weights, memory=self.memory), config
        return self.model
