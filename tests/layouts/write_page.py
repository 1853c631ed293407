"""Write docs/layouts.md: try every layout with every command, and say what happened."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
HEAD = """# Layouts and commands

Each layout is written by the program whose layout it is (tests/layouts/on_disk.py), two siblings of it are given to
each command, and the result is opened by that program again. *right*: the result was compared with what that program
computes; *runs*: the command ended well, and its own tests compare its numbers; *refused*: an error that names the
reason, and nothing was written; -: not tried, since nothing says how to run such a model. `make nightly` tries all of
it again. Carry is a recipe with one model and no change.
"""


def main() -> None:
    sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent), str(HERE)]
    os.environ["MERGANSER_MEMORY"] = "8GiB"
    from commands import COMMANDS, RUNNING
    from on_disk import LAYOUTS
    from test_layouts import PAGE, attempt, commands_of, row

    known = [*COMMANDS, *RUNNING]
    lines = [HEAD, f"| layout | {' | '.join(known)} |", "|" + "---|" * (len(known) + 1)]
    with tempfile.TemporaryDirectory() as folder:
        for name, layout in LAYOUTS.items():
            place = Path(folder) / name
            place.mkdir()
            lines.append(row(name, attempt(name, place, list(commands_of(layout)))))
            print(lines[-1], flush=True)
    PAGE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
