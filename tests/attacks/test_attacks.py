"""Every attack of this folder is noticed when the checkpoint is opened, named clearly, and costs next to
nothing: little memory, and few steps of Python."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import FrameType

import pytest
from _build import open_all

from merganser.errors import CheckpointError

HERE = Path(__file__).parent
ATTACKS = sorted(p.stem for p in HERE.glob("*.py") if p.stem not in ("_build", "test_attacks"))


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack(attack: str, tmp_path: Path) -> None:
    module = runpy.run_path(str(HERE / f"{attack}.py"))
    assert module["__doc__"]
    path = module["make"](tmp_path)
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += 1

    tracemalloc.start()
    sys.setprofile(count)
    try:
        with pytest.raises(CheckpointError) as caught:
            open_all(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        sys.setprofile(None)
        tracemalloc.stop()
    message = str(caught.value)
    assert re.search(module["EXPECT"], message), message
    assert any(str(file) in message for file in [tmp_path, *tmp_path.rglob("*")])
    assert len(message) < 2000 and message.isprintable()
    assert peak < 50 * 10**6
    assert (
        calls < 50_000
    )  # of functions: a step for each byte, name or dimension that a file claims would be more


def test_attacks_run_by_themselves() -> None:
    ran = subprocess.run(
        [sys.executable, HERE / "overlap.py"],
        env={"PYTHONPATH": str(HERE.parent.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.startswith("CheckpointError: ") and "inside 'a'" in ran.stdout
