"""Worker threads over tiles: chains of steps, in any order, one outcome.

A few tasks are open at a time; a worker takes the next tile of the oldest one that has any, so that all workers share
the largest tensor and nobody waits at its end. The worker that finishes a step's last tile opens the next step.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from merganser._progress import Progress
from merganser.algebra.computed import Whole
from merganser.algebra.expression import Expression, walk
from merganser.engine.ledger import Ledger
from merganser.engine.plan import Plan, Stage, Step, Task
from merganser.engine.steps import Buffers, StepRun

Open = Callable[[Step], StepRun]
Done = Callable[[Task, list[StepRun]], None]


class Chain:
    """A task in progress."""

    def __init__(self, task: Task, steps: Sequence[Step]) -> None:
        self.task = task
        self.left = deque(steps)
        self.runs: list[StepRun] = []
        self.run: StepRun | None = None


class Scheduler:
    """Runs a plan's stages one after the other."""

    def __init__(
        self,
        plan: Plan,
        ledger: Ledger,
        *,
        threads: int,
        bins: int,
        open_step: Open,
        done: Done,
        progress: Progress | None,
    ) -> None:
        self.plan = plan
        self.ledger = ledger
        self.threads = threads
        self.bins = bins
        self.open_step = open_step
        self.done = done
        self.progress = progress
        self.total = plan.work_bytes
        self.moved = 0
        self.condition = threading.Condition()
        self.failure: BaseException | None = None
        self.pending: deque[Task] = deque()
        self.active: list[Chain] = []
        self.opened: set[int] = set()

    def run(self, skip: Callable[[Task], bool]) -> None:
        """Run everything but the tasks that `skip` tells are finished. Raises what a worker raised."""
        for stage in self.plan.stages:
            self.ledger.open(stage.shared, self.bins)
            while True:
                self._run_stage(stage, skip)
                if self.ledger.close_round():
                    break

    def _run_stage(self, stage: Stage, skip: Callable[[Task], bool]) -> None:
        left = []
        for task in stage.tasks:
            if skip(task):
                self.moved += task.work_bytes
            else:
                left.append(task)
        self.pending = deque(self._ordered(left))
        workers = [threading.Thread(target=self._work, args=(k,), daemon=True) for k in range(self.threads)]
        for worker in workers:
            worker.start()
        try:
            for worker in workers:
                while worker.is_alive():
                    worker.join(0.1)
                    self._report()
        except BaseException as interruption:
            with self.condition:
                self.failure = self.failure or interruption
                self.condition.notify_all()
            for worker in workers:
                worker.join()
            raise
        if self.failure is not None:
            raise self.failure
        self._report()

    def _ordered(self, tasks: Sequence[Task]) -> list[Task]:
        """The largest first, so that the end of a stage is made of small pieces.

        What one function of whole tensors makes for several tasks waits in memory, so these are near one another; but
        as two of one function would wait for the same result, as many others as there are workers come between.
        """
        groups: dict[int, list[Task]] = {}
        wanted: dict[int, set[int]] = {}
        for task in tasks:
            loads: list[Expression] = [load for step in task.steps for load in step.bindings.loads]
            found = [node for node in walk(loads) if isinstance(node, Whole)]
            for node in found:
                wanted.setdefault(id(node.making), set()).add(node.index)
            groups.setdefault(id(found[0].making if found else task), []).append(task)
        self.ledger.expect(wanted)
        largest = sorted(groups.values(), key=lambda group: -max(task.work_bytes for task in group))
        mixed: list[Task] = []
        for start in range(0, len(largest), self.threads + 1):
            some = largest[start : start + self.threads + 1]
            mixed += [group[k] for k in range(max(map(len, some))) for group in some if k < len(group)]
        return mixed

    def _report(self) -> None:
        if self.progress is not None:
            self.progress(min(self.moved, self.total), self.total)

    def _work(self, worker: int) -> None:
        buffers = Buffers()
        try:
            while (job := self._next()) is not None:
                chain, tile = job
                if tile is None:
                    self._advance(chain)
                else:
                    self._tile(chain, tile, worker, buffers)
        except BaseException as error:
            with self.condition:
                self.failure = self.failure or error
                self.condition.notify_all()

    def _next(self) -> tuple[Chain, int | None] | None:
        """A tile of an open task, a fresh task to open (tile None), or None at the end."""
        with self.condition:
            while self.failure is None:
                for chain in self.active:
                    run = chain.run
                    if run is not None and run.next < run.tiles:
                        run.next += 1
                        return chain, run.next - 1
                if self.pending and len(self.active) <= self.threads:
                    task = self.pending.popleft()
                    chain = Chain(task, [step for step in task.steps if self._needed(step)])
                    self.opened.update(map(id, chain.left))
                    self.active.append(chain)
                    return chain, None
                if not self.active and not self.pending:
                    return None
                self.condition.wait()
            return None

    def _needed(self, step: Step) -> bool:
        """A step is skipped when another task or an earlier round made all its reductions known.

        But a parent's digest that a step is to take is taken.
        """
        if step.digests and id(step) not in self.opened:
            return True
        return step.output is not None or any(id(r) not in self.ledger.values for r in step.reductions)

    def _tile(self, chain: Chain, tile: int, worker: int, buffers: Buffers) -> None:
        run = chain.run
        assert run is not None
        moved = run.run_tile(tile, worker, buffers)
        with self.condition:
            self.moved += moved
            run.finished += 1
            last = run.finished == run.tiles
        if not last:
            return
        if run.finish():
            self._advance(chain)
        else:
            with self.condition:
                self.condition.notify_all()

    def _advance(self, chain: Chain) -> None:
        """Open the next step of a chain; steps without elements end at once."""
        chain.run = None
        while chain.left:
            run = self.open_step(chain.left.popleft())
            chain.runs.append(run)
            if run.tiles:
                with self.condition:
                    chain.run = run
                    self.condition.notify_all()
                return
            run.finish()
        self.done(chain.task, chain.runs)
        for run in chain.runs:
            run.release()
        with self.condition:
            self.active.remove(chain)
            self.condition.notify_all()
