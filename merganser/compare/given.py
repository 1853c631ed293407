"""What models were given in the samples that results are of, looked up in the suite that made them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from merganser.compare.plots import visible
from merganser.compare.samples import Task
from merganser.errors import RequestError, did_you_mean

if TYPE_CHECKING:
    from merganser.evaluate import Suite

LONGEST = 300
"""Characters of an input that an example keeps."""


def with_inputs(tasks: Sequence[Task], suite: Suite) -> list[Task]:
    """The tasks with `given`, the start of what models were given in each sample.

    Samples are looked up by task and id, and the digest of the input and of the right answer must be that of the
    results. Raises `RequestError` naming the task and the sample that the suite does not have or has otherwise.
    """
    known = {task.name: task for task in suite.tasks}
    found = []
    for task in tasks:
        if task.name not in known:
            raise RequestError(
                f"the suite {suite.name!r} has no task {task.name!r}, which the results have"
                f"{did_you_mean(task.name, known)}"
            )
        here = known[task.name]
        rows = {one: row for row, one in enumerate(here.ids)}
        digests = here.digests()
        first = task.samples[0]
        given = []
        for one, digest in zip(first.ids, first.digests, strict=True):
            if one not in rows:
                raise RequestError(
                    f"task {task.name!r}: {here.path} has no sample {visible(one)!r}, which the results have: they are "
                    "of another suite or of other data"
                )
            if digests[rows[one]] != digest:
                raise RequestError(
                    f"task {task.name!r}: sample {visible(one)!r} has another input or right answer in {here.path} "
                    "than in the results: they are of another suite, of other data or of other settings"
                )
            given.append(_start(here.shown(rows[one])))
        found.append(replace(task, given=given))
    return found


def _start(text: str) -> str:
    """The start of a text on one line, its control characters as their codes."""
    # The cut comes first: texts may be very long.
    line = visible(" ".join(text[: 4 * LONGEST].split()))
    return line if len(line) <= LONGEST and len(text) <= 4 * LONGEST else line[: LONGEST - 1] + "…"
