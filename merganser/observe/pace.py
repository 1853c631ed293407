"""How far a run is, and when to keep what it has."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from merganser._progress import Progress
from merganser.observe.partial import Array, Partial

_SHARE = 20
"""Keeping takes at most one part in so many of the time."""


class Pace:
    """Counts rows, each as often as it is run, and keeps sums every `seconds`, less often where keeping takes long."""

    def __init__(self, total: int, progress: Progress | None, seconds: float) -> None:
        self.total, self.progress, self.seconds = total, progress, seconds
        self.done = 0
        self._since = time.monotonic()
        self._wait = seconds

    def tick(self, rows: int) -> None:
        """So many rows more are done."""
        self.done += rows
        if self.progress is not None:
            self.progress(min(self.done, self.total), self.total)

    def keep(
        self, partial: Partial, name: str, state: Callable[[], Mapping[str, Array]], record: Mapping[str, Any]
    ) -> None:
        """Keep a state under `name`, if it is time to."""
        began = time.monotonic()
        if began - self._since < self._wait:
            return
        partial.note(**{name: {**partial.keep(name, state()), **record}})
        self._since = time.monotonic()
        self._wait = max(self.seconds, _SHARE * (self._since - began)) if self.seconds else 0.0
