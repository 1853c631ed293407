"""Processes of one thread each that make what the jobs say, and the order in which they get them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

from demo.fetch import DemoError, appear, intact

from zoo.jobs import Job

RECORD = "training.json"
Tick = Callable[[float], None]


class Watcher(Protocol):
    """Who is told how the jobs go."""

    def start(self, job: Job) -> None:
        """A job begins."""

    def share(self, job: Job, done: float) -> None:
        """Some share of it is done."""

    def finish(self, job: Job, record: dict[str, Any]) -> None:
        """It is done, and this is its record."""


def run(jobs: Sequence[Job], workers: int, watcher: Watcher) -> None:
    """Make everything that is not there, in order as far as `needs` allows; 0 workers: in this process."""
    done = {job.name for job in jobs if intact(job.folder)}
    for job in jobs:
        if job.name in done:
            watcher.finish(job, record(job))
    waiting = [job for job in jobs if job.name not in done]
    if not waiting:
        return
    if workers == 0:
        while waiting:
            job = next(job for job in waiting if done.issuperset(job.needs))
            waiting.remove(job)
            watcher.start(job)
            make(job, lambda share, job=job: watcher.share(job, share))
            done.add(job.name)
            watcher.finish(job, record(job))
        return
    _run_in_processes(waiting, done, workers, watcher)


def _run_in_processes(waiting: list[Job], done: set[str], workers: int, watcher: Watcher) -> None:
    context = get_context("spawn")
    shares = context.SimpleQueue()
    running: dict[Future[None], Job] = {}
    pool = ProcessPoolExecutor(workers, context, _begin, (shares, os.getpid()))
    try:
        while waiting or running:
            ready = [job for job in waiting if done.issuperset(job.needs)]
            for job in ready[: workers - len(running)]:
                waiting.remove(job)
                watcher.start(job)
                running[pool.submit(_work, job)] = job
            finished, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            while not shares.empty():
                name, share = shares.get()
                for job in running.values():
                    if job.name == name:
                        watcher.share(job, share)
            for future in finished:
                job = running.pop(future)
                try:
                    future.result()
                except Exception as problem:
                    raise DemoError(f"{job.name}: {type(problem).__name__}: {problem}") from problem
                done.add(job.name)
                watcher.finish(job, record(job))
    finally:
        for process in list(getattr(pool, "_processes", None) or {}):
            pool._processes[process].terminate()
        pool.shutdown(wait=False, cancel_futures=True)


def record(job: Job) -> dict[str, Any]:
    """What is known of a finished job."""
    found: dict[str, Any] = json.loads((job.folder / RECORD).read_text(encoding="utf-8"))
    return found


def make(job: Job, tick: Tick) -> None:
    """Make one thing; its folder appears whole or not at all."""
    from zoo import encoders, llamas

    makers = {"head": encoders.make_head, "encoder": encoders.make_encoder, "llama": llamas.make_llama}
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=job.folder.parent, prefix=".partial-") as temporary:
        here = Path(temporary) / "model"
        began, cpu = time.perf_counter(), time.process_time()
        told = makers[job.kind](job, here, tick)
        spent = {
            "seconds": round(time.perf_counter() - began, 2),
            "cpu_seconds": round(time.process_time() - cpu, 2),
        }
        whole = {
            "name": job.name,
            "kind": job.kind,
            "role": job.role,
            "over": list(job.over),
            "seed": job.seed,
        }
        whole |= {"made_from": job.made_from, **spent, **told}
        (here / RECORD).write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        appear(here, job.folder)


def clear(root: Path) -> None:
    """Remove what a killed build left half-made."""
    for left in (*root.glob(".partial-*"), *root.glob("*/.partial-*")):
        shutil.rmtree(left, ignore_errors=True)


_shares: Any = None


def _begin(shares: Any, parent: int) -> None:
    """In a new process: one thread, quiet libraries, and an end when the parent says so or is gone."""
    global _shares
    _shares = shares
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    quiet()


def quiet() -> None:
    """One thread and no chatter of transformers."""
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _work(job: Job) -> None:
    last = 0.0

    def tick(share: float) -> None:
        nonlocal last
        if share - last >= 0.01:
            last = share
            _shares.put((job.name, share))

    make(job, tick)
