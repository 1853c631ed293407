"""Command lines of the README, the pages and --help are such that the program takes; the README's path by data runs."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import typer
from evaluate.scored_models import make
from makers import ROOT

from merganser import cli

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = typer.main.get_command(cli.app).commands
SAY = r"""merganser() { printf '%s\0' "$@"; printf '\n\0'; }; make() { :; }; pip() { :; }"""


def blocks(text: str) -> list[list[str]]:
    """The command lines of each console block, continued lines joined; without prompts all lines are commands."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        lines = block.replace("\\\n", " ").splitlines()
        typed = [line[2:] for line in lines if line.startswith("$ ")]
        found.append(typed or lines)
    return found


def spoken(lines: list[str], place: Path) -> list[list[str]]:
    """The arguments of each merganser that a shell would start for some lines."""
    script = "\n".join([SAY, *lines])
    done = subprocess.run(["bash", "-euc", script], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [one.removesuffix("\0").split("\0") for one in done.stdout.split("\n\0") if one]


def written() -> list[pytest.ParameterSet]:
    found = []
    for page in PAGES:
        for number, lines in enumerate(blocks(page.read_text())):
            kept = [line for line in lines if re.search(r"\bmerganser [a-z-]", line)]
            if kept:
                found.append(pytest.param(kept, id=f"{page.relative_to(ROOT)}-{number}"))
    for command in COMMANDS.values():
        examples = [
            line.removeprefix("Example: ")
            for line in (command.epilog or "").splitlines()
            if "merganser " in line
        ]
        if examples:
            found.append(pytest.param(examples, id=f"help-{command.name}"))
    return found


@pytest.mark.parametrize("lines", written())
def test_the_program_takes_it(lines: list[str], tmp_path: Path) -> None:
    for name, *arguments in spoken(lines, tmp_path):
        COMMANDS[name].make_context(name, arguments)


def test_the_path_by_data_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """README's recipe with open weights, its suite and its commands, on tiny models."""
    for seed, name in enumerate(("base", "math", "code")):
        make("causal", tmp_path / name, seed)
    readme = (ROOT / "README.md").read_text()
    recipe, suite = re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)[:2]
    (tmp_path / "recipe.yaml").write_text(re.sub(r"weight: 0\.\d", "weight: {search: [0, 1]}", recipe))
    (tmp_path / "validation.yaml").write_text(suite)
    rows = [
        {"context": f"{n} + {n} =", "choices": [str(2 * n), str(2 * n + 1)], "answer": n % 2}
        for n in range(40)
    ]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (lines,) = (lines for lines in blocks(readme) if any("merganser search" in line for line in lines))
    monkeypatch.chdir(tmp_path)
    for arguments in spoken(lines, tmp_path):
        if arguments[0] == "search":
            arguments += ["--evaluations", "4"]
        assert cli.run(arguments) == 0, arguments
    counts = [
        len(Path(f"questions.{part}.jsonl").read_text().splitlines()) for part in ("validation", "test")
    ]
    assert counts == [12, 28]
    assert "code" in Path("page.html").read_text()
    assert sorted(path.name for path in Path("results").iterdir()) == ["base", "code", "math", "merged"]
