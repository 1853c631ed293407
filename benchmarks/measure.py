"""Run one process and say how long it took and how much memory it held.

On Linux a child's peak starts at what its parent held when it was started, so the process that imports this
must stay small: no NumPy here.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dataset import BenchmarkError


@dataclass(frozen=True)
class Sample:
    """One run: wall seconds, peak resident bytes of the process or the largest of its children."""

    seconds: float
    peak_bytes: int
    status: int = 0

    def as_json(self) -> dict[str, float]:
        """Plain numbers for results.json."""
        return asdict(self)


def timed(
    command: Sequence[str | Path],
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Sample:
    """Run `command` with its output in `log`; written pages are flushed before, outside the time."""
    os.sync()
    with log.open("wb") as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            cwd=cwd,
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    peak = usage.ru_maxrss if sys.platform == "darwin" else usage.ru_maxrss * 1024
    return Sample(seconds, peak, process.returncode)


def must_work(sample: Sample, what: str, log: Path) -> Sample:
    """The sample, or a `BenchmarkError` with the end of the log when the process failed."""
    if sample.status:
        tail = log.read_text(errors="replace").strip()[-1500:]
        raise BenchmarkError(f"{what} ended with status {sample.status}:\n{tail}")
    return sample


def median(samples: Iterable[Mapping[str, float]]) -> float | None:
    """The median seconds of recorded samples; None when there are none."""
    seconds = [sample["seconds"] for sample in samples]
    return statistics.median(seconds) if seconds else None
