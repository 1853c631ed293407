"""How work that takes long tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called from the main thread with what is done and what there is in all: bytes (about ten times a second), rows,
samples, steps or candidates, as the function that takes it says."""
