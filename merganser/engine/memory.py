"""How much memory a plan needs, and the tile that fits the limit."""

from __future__ import annotations

import os
from dataclasses import dataclass

from merganser.algebra import Expression, Leaf
from merganser.algebra.computed import ByRows
from merganser.algebra.expression import walk
from merganser.checkpoint.digest import CHUNK
from merganser.engine.plan import Plan, Step
from merganser.engine.sources import held_bytes, scratch_bytes
from merganser.errors import RequestError

TILE = CHUNK
"""Elements: small enough that a tile of every parent stays in the processor's caches between reading and computing,
large enough that the interpreter's part vanishes."""
SAMPLE = 1 << 16
"""Elements looked at to guess where a threshold lies."""
MOST_BINS, FEWEST_BINS = 1 << 19, 1 << 16
_OVERHEAD = 24 * 2**20
"""Allowance for compiling kernels, thread stacks and the interpreter's own growth."""


@dataclass(frozen=True, slots=True)
class Budget:
    """The shape of a run: threads, tile in elements, histogram bins, and what they need in bytes.

    `kept` are the identities of nodes whose flags are kept from step to step.
    """

    limit: int
    needed: int
    per_thread: int
    threads: int
    tile: int
    bins: int
    kept: frozenset[int]


def budget(plan: Plan, limit: int | None, threads: int, tile: int = 0) -> Budget:
    """The shape that keeps the process within `limit` bytes.

    Where memory is short, fewer histogram bins are taken, then fewer threads unless their number was given. Flags that
    several steps of a task need are kept where there is room left. Raises `RequestError` that says how much is needed
    where even that does not fit.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    resident = resident_bytes() + _OVERHEAD
    if limit is None:
        limit = resident + 2**30
    elements = tile or TILE
    largest = max((step.size for step in plan.steps), default=1)
    held = _held_by_a_task(plan)
    per_thread = {
        bins: max((_step_bytes(step, min(elements, _up(largest)), bins) for step in plan.steps), default=0)
        for bins in (MOST_BINS, 1 << 17, FEWEST_BINS)
    }

    def needed(count: int, bins: int) -> int:
        # One task more than there are threads may be open.
        return resident + count * per_thread[bins] + (count + 1) * held

    for count in [threads] if threads else range(cores, 0, -1):
        for bins in per_thread:
            least = needed(count, bins)
            if least <= limit:
                kept, nbytes = _kept(plan, (limit - least) // (count + 1))
                return Budget(
                    limit, least + (count + 1) * nbytes, per_thread[bins], count, elements, bins, kept
                )
    wanted = threads or 1
    least = needed(wanted, FEWEST_BINS)
    fits = next((count for count in range(wanted - 1, 0, -1) if needed(count, FEWEST_BINS) <= limit), 0)
    advice = f"use {fits} thread{'s'[: fits != 1]} or " if fits else ""
    each = per_thread[FEWEST_BINS] + held
    raise RequestError(
        f"--memory {limit / 2**20:.0f} MiB is too little: this plan needs {least / 2**20:.0f} MiB "
        f"with {wanted} thread{'s'[: wanted != 1]} ({resident / 2**20:.0f} MiB for the process itself, "
        f"{each / 2**20:.1f} MiB a thread); {advice}raise it to {least // 2**20 + 1} MiB"
    )


def _step_bytes(step: Step, tile: int, bins: int) -> int:
    """What one thread holds while it works on a step."""
    total = 0
    for load in step.bindings.loads:
        total += tile * load.dtype.itemsize
    total += max((scratch_bytes(load, tile) for load in step.bindings.loads), default=0)
    if step.output is not None:
        total += tile * step.output.dtype.itemsize
    selections = sum(r.kind == "kth_magnitude" for r in step.reductions)
    return total + selections * (bins * 8 + SAMPLE * 16 * 2)


def _held_by_a_task(plan: Plan) -> int:
    """What the largest task holds however many threads work on it: what its sources keep, partial sums."""
    most = 0
    for stage in plan.stages:
        for task in stage.tasks:
            for step in task.steps:
                sources = sum(map(held_bytes, step.bindings.loads))
                partials = (step.size // (1 << 16) + 1) * 8 * max(1, len(step.reductions))
                most = max(most, sources + partials)
    return most


def _kept(plan: Plan, room: int) -> tuple[frozenset[int], int]:
    """The nodes whose flags more than one step of a task needs, for tasks that keep them in `room` bytes.

    And the most bytes that one of these tasks keeps.
    """
    kept: set[int] = set()
    most = 0
    for stage in plan.stages:
        for task in stage.tasks:
            seen: set[int] = set()
            again: dict[int, int] = {}
            for step in task.steps:
                loads: list[Expression] = [load for load in step.bindings.loads if not isinstance(load, Leaf)]
                flags = {id(n): n.size for n in walk(loads) if isinstance(n, ByRows) and n.flags}
                again |= {key: size for key, size in flags.items() if key in seen}
                seen |= flags.keys()
            nbytes = sum(-(-size // 8) for size in again.values())
            if again and nbytes <= room:
                kept |= again.keys()
                most = max(most, nbytes)
    return frozenset(kept), most


def _up(size: int) -> int:
    return max(CHUNK, (size + CHUNK - 1) // CHUNK * CHUNK)


def resident_bytes() -> int:
    """Bytes this process holds in memory now."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 120 * 2**20


def peak_bytes() -> int:
    """The most this process has held. (Linux's ru_maxrss would count what its parent held before the exec.)"""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import resource
        import sys

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
