"""Every layout with every command: the right value, judged by the program whose layout it is, or a refusal by name.

Each layout takes its merge and some of the commands here; `make nightly` tries all.
`python tests/layouts/write_page.py` records what happened in docs/layouts.md; where that page is, nightly compares.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from commands import COMMANDS, RUNNING, Case
from on_disk import LAYOUTS, Layout

from merganser import cli

pytestmark = pytest.mark.models
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "layouts.md"

REFUSED: dict[str, tuple[str, set[str]]] = {
    "FP8 codes": ("is quantized", {"info", "carry"}),
    "MXFP4 codes": ("is quantized", {"info", "carry"}),
    "kohya": ("LoRA factors", {"info"}),
    "adapter": ("adapter|change|patch|task vector", {"info", "diff", "diagnose"}),
    "diffusers pipeline": ("pipeline", set()),
    "git-lfs pointer": ("git lfs pull", set()),
    "missing shard": ("is missing", set()),
    "ZeRO-3 stubs": ("ZeRO|no elements|empty", {"info"}),
    "no tensors": ("holds no tensors", set()),
}
"""What stands in the refusal, and the commands that work all the same."""

WITHOUT_CONFIG = ("bare file", "training checkpoint", "float8 numbers")
ONE_BY_ONE: dict[tuple[str, str], str] = {
    **{(layout, "reshape"): "has no config.json" for layout in WITHOUT_CONFIG},
    ("diffusers component", "reshape"): "no family file",
    ("encoder-decoder", "reshape"): "encoder_neurons",
    ("by save_model", "reshape"): "encoder_neurons",
}


def commands_of(layout: Layout) -> Mapping[str, object]:
    return COMMANDS | (RUNNING if layout.runs else {})


def chosen(name: str) -> list[str]:
    """For each layout the merge, and of the other commands about a quarter, another quarter for each layout."""
    place = list(LAYOUTS).index(name)
    known = list(commands_of(LAYOUTS[name]))
    return [command for k, command in enumerate(known) if command == "merge" or (k + place) % 5 == 0]


def run(arguments: list[str]) -> tuple[int, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.run(arguments)
    return status, out.getvalue() + err.getvalue()


def tried(name: str, command: str, case: Case) -> str:
    """`right`, `runs` or `refused`; anything else fails."""
    layout = LAYOUTS[name]
    arguments = commands_of(layout)[command](case) + (["--allow-pickle"] if layout.pickled else [])
    status, said = run(arguments)
    phrase, works = REFUSED.get(name, ("", set()))
    phrase = ONE_BY_ONE.get((name, command), phrase if command not in works else "")
    place = f"{name}, {command}: exit status {status}, {said}"
    assert "unexpected failure" not in said and "Traceback" not in said, place
    if phrase:
        assert status in (1, 2) and "error: " in said and re.search(phrase, said), place
        assert not case.out.exists(), place
        return "refused"
    assert status == 0, place
    if command in ("merge", "carry", "task arithmetic"):
        compared(name, command, case, said)
        return "right"
    if command == "reshape":
        assert layout.live(case.out), place
    return "runs"


def compared(name: str, command: str, case: Case, said: str) -> None:
    live = LAYOUTS[name].live
    first, second, made = live(case.a), live(case.b), live(case.out)
    assert made.keys() == first.keys(), (name, command)
    for key, value in made.items():
        a, b = first[key].float(), second[key].float()
        due = {"merge": (a + b) / 2, "carry": a, "task arithmetic": b}[command]
        if name == "sentence model with a Dense" and key.startswith("2."):
            assert "2_Dense" in said, "a part that is carried is named"
            due = a
        due = due.to(value.dtype).float()
        step = 2.0**-7 if value.dtype == torch.bfloat16 else 2.0**-3 if value.dtype.itemsize == 1 else 1e-5
        assert torch.allclose(value.float(), due, rtol=step, atol=1e-6), (name, command, key)


def attempt(name: str, place: Path, commands: list[str]) -> dict[str, str]:
    layout = LAYOUTS[name]
    a, b = (layout.write(place / one, seed) for seed, one in enumerate("ab", 1))
    found = {}
    for command in commands:
        (place / command).mkdir()
        found[command] = tried(name, command, Case(a, b, place / command, layout))
    return found


@pytest.mark.parametrize("name", LAYOUTS)
def test_some_commands(name: str, tmp_path: Path) -> None:
    assert attempt(name, tmp_path, chosen(name))


def test_every_command_is_among_those_that_are_chosen() -> None:
    assert {command for name in LAYOUTS for command in chosen(name)} == COMMANDS.keys() | RUNNING.keys()


@pytest.mark.nightly
@pytest.mark.parametrize("name", LAYOUTS)
def test_all_commands(name: str, tmp_path: Path) -> None:
    found = attempt(name, tmp_path, list(commands_of(LAYOUTS[name])))
    assert not PAGE.exists() or row(name, found) in PAGE.read_text()


def row(name: str, found: Mapping[str, str]) -> str:
    return f"| {name} | " + " | ".join(found.get(command, "-") for command in COMMANDS | RUNNING) + " |"
