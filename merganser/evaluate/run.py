"""Running a suite on a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from merganser._progress import Progress
from merganser._version import __version__
from merganser.evaluate.metrics import metrics_of
from merganser.evaluate.output import RESULTS, Workspace, check_target
from merganser.evaluate.results import Results, TaskResult, as_bytes, file_of, parquet, record, table_of
from merganser.evaluate.suite import Suite
from merganser.evaluate.task import Prepared, Task, digest
from merganser.running import Model, open_model, require

if TYPE_CHECKING:
    from merganser.algebra import Weights


def evaluate(
    model: Model | str | Path | Weights,
    suite: Suite | str | Path | Mapping[str, Any],
    *,
    identify: bool = True,
    progress: Progress | None = None,
) -> Results:
    """Run every task of `suite` on `model` and give the results, in memory.

    model: one that is open, a model directory, or lazy weights, which are computed in memory and not written.
    identify: say whose results they are; of a model that was never written that reads all its numbers, so searches,
    which keep no results of their candidates, do without, and the identity is None.
    Everything that can be known is checked before anything runs. `progress` is called with samples done and
    samples in all.

    Raises `RequestError` for what cannot work, naming file and row, and `NonFiniteError` where the model
    returns NaN or Inf, naming model, task and row. Batches change a number by rounding only (about 1e-6).
    """
    ready = _Ready(model, suite, identify)
    return Results(ready.model, ready.suite, dict(ready.results({}, progress)))


def evaluate_into(
    model: Model | str | Path | Weights,
    suite: Suite | str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    overwrite: bool = False,
    resume: bool = True,
    progress: Progress | None = None,
) -> Results:
    """`evaluate`, and the results written to the directory `out`, which appears whole or not at all.

    Finished tasks of a run that was interrupted are taken over where suite, data, model and version are the
    same, unless `resume` is false. Raises also `OutputError` where `out` cannot be written.
    """
    out = Path(out)
    check_target(out, overwrite)
    ready = _Ready(model, suite)
    fingerprint = digest(__version__, ready.model["identity"], ready.suite["digest"])
    with Workspace(out, overwrite=overwrite, fingerprint=fingerprint, resume=resume) as place:
        taken = dict(_taken_over(place, ready.tasks))
        tasks = {}
        for name, task in ready.results(taken, progress):
            tasks[name] = task
            if name not in taken:
                place.add(file_of(name), parquet(task, name, ready.model))
                place.finish(name, record(task, file_of(name)))
        results = Results(ready.model, ready.suite, tasks)
        place.add(RESULTS, as_bytes(results.as_json()))
        place.seal()
    return results


class _Ready:
    """A suite that was checked against a model, ready to run."""

    def __init__(
        self,
        source: Model | str | Path | Weights,
        suite: Suite | str | Path | Mapping[str, Any],
        identify: bool = True,
    ) -> None:
        require("torch", "transformers", "pyarrow")
        opened = suite if isinstance(suite, Suite) else Suite.open(suite)
        opened.check()
        model = source if isinstance(source, Model) else open_model(source)
        self.tasks = opened.tasks
        self.prepared = opened.check(model)
        known = model.identity
        self.model = {
            "label": model.label,
            "identity": live_identity(model) if known is None and identify else known,
        }
        self.suite = {"name": opened.name, "digest": opened.digest}

    def results(
        self, taken: Mapping[str, TaskResult], progress: Progress | None
    ) -> Iterator[tuple[str, TaskResult]]:
        """Tasks in their order; those of `taken` are not run."""
        import torch

        total = sum(one.samples for one in self.prepared)
        finished = 0

        def done(count: int) -> None:
            nonlocal finished
            finished += count
            if progress is not None:
                progress(finished, total)

        for task, prepared in zip(self.tasks, self.prepared, strict=True):
            before = finished
            found = taken.get(task.name)
            if found is None:
                with torch.inference_mode():
                    found = _result(task, prepared, done)
            finished = before
            done(prepared.samples)
            yield task.name, found


def _result(task: Task, prepared: Prepared, done: Callable[[int], None]) -> TaskResult:
    columns = {"id": task.ids, "input_digest": task.digests(), **prepared.run(done)}
    return TaskResult.of(task.kind, columns, data=task.path.name, data_digest=task.rows.digest)


def _taken_over(place: Workspace, tasks: tuple[Task, ...]) -> Iterator[tuple[str, TaskResult]]:
    """What an interrupted run had finished, as it lies on the disk. A file that is damaged is made again."""
    import pyarrow as pa
    import pyarrow.parquet as reader

    for task in tasks:
        if task.name not in place.finished:
            continue
        try:
            table = reader.read_table(pa.BufferReader((place.folder / file_of(task.name)).read_bytes()))
        except (OSError, pa.ArrowException):
            continue
        columns = table.to_pydict()
        wanted = table_of(task.kind, columns)
        if table.num_rows == len(task.rows) and table.column_names == wanted.column_names:
            metrics = metrics_of(task.kind, columns)
            yield task.name, TaskResult(task.kind, wanted, metrics, task.path.name, task.rows.digest)


def live_identity(model: Model) -> str:
    """An identity of a model that was never written: XXH3-128 over the names and numbers of its parameters."""
    state = xxhash.xxh3_128(b"live identity 1")
    for name, value in sorted(model.module.state_dict().items()):
        state.update(f"{name}{list(value.shape)}".encode())
        state.update(value.detach().contiguous().numpy().reshape(-1).view(np.uint8))  # not a copy
    return f"live-{state.hexdigest()}"
