"""What the demo prints at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from demo.score import Score

NOTE = (
    "The merges' settings were chosen on the validation rows (mean accuracy of both tasks) and are reported on test "
    "rows that nothing was chosen on. ± is one standard error from the number of test rows alone. This is one seed, "
    "one pair of tasks and a small model: it shows that merging works, and cannot rank the methods."
)


def average(scores: Mapping[str, Score]) -> str:
    """Mean accuracy over the tasks and its standard error (the tasks' rows are different texts)."""
    parts = list(scores.values())
    mean = sum(s.accuracy for s in parts) / len(parts)
    error = sum(s.error**2 for s in parts) ** 0.5 / len(parts)
    return f"{100 * mean:.1f} ± {100 * error:.1f}"


def show(console: Console, rows: Sequence[tuple[str, str, Mapping[str, Score]]], parents: int) -> None:
    """The table: one line a model (name, settings, scores by task); the first `parents` lines are set apart."""
    tasks = rows[0][2]
    table = Table(title="Accuracy on the test rows, in %", title_justify="left")
    table.add_column("model", no_wrap=True)
    table.add_column("chosen on validation")
    for task, result in tasks.items():
        table.add_column(f"{task} ({result.rows} rows)", justify="right")
    table.add_column("both", justify="right", no_wrap=True)
    for number, (name, settings, scores) in enumerate(rows):
        cells = [str(scores[task]) for task in tasks]
        table.add_row(name, settings, *cells, average(scores), end_section=number == parents - 1)
    console.print(table)
    console.print(NOTE, style="dim")
