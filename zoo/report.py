"""Merge the zoo with every method, choose settings on validation rows, score on test rows, and write docs/zoo.md.

PYTHONPATH=.:examples python -m zoo.report [--cut full|small] [--processes 2] [--minutes M] [--page FILE]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"

from demo.fetch import DemoError
from rich.console import Console

from zoo import page
from zoo.build import root_of
from zoo.candidates import ALL, Candidate
from zoo.cuts import CUTS
from zoo.scores import Score, Zoo, run, score_of

FAMILIES = ("minilm", "llama")
GROUP = 5
PAGE = Path(__file__).resolve().parents[1] / "docs" / "zoo.md"


def better(family: str, value: float) -> float:
    """Higher is better: accuracy as it is, bits per byte turned round."""
    return value if family == "minilm" else -value


class Plan:
    """All that is scored, in order; settings are chosen as soon as their validation scores are there."""

    def __init__(self, zoo: Zoo, family: str) -> None:
        self.zoo, self.family = zoo, family
        self.seeds = zoo.seeds(family)
        self.base = zoo.models(family, "base")[0]
        self.candidates = [one for one in ALL if family in one.families]

    def score(self, part: str, one: Candidate, seed: int, setting: Mapping[str, Any]) -> Score:
        """Of a merge of all siblings of a seed."""
        models = [self.base, *self.zoo.models(self.family, "sibling", seed)]
        return score_of(self.zoo, self.family, part, one.name, models, seed, setting)

    def roles(self, seed: int) -> list[Score]:
        """The base, the multitask control, and every sibling on the test rows of all tasks."""
        found = [score_of(self.zoo, self.family, "test", "base", [self.base], 0)]
        for role in ("multitask", "sibling"):
            for model in self.zoo.models(self.family, role, seed):
                what = role if role == "multitask" else f"sibling {model['over'][0]}"
                found.append(score_of(self.zoo, self.family, "test", what, [model], seed))
        return found

    def choices(self, one: Candidate) -> list[list[Score]]:
        """By setting, the validation scores over the seeds that choose; empty where there is nothing to choose."""
        if len(one.settings) == 1:
            return []
        seeds = self.seeds[:1]
        return [[self.score("validation", one, seed, setting) for seed in seeds] for setting in one.settings]

    def chosen(self, one: Candidate) -> Mapping[str, Any] | None:
        """The setting with the best mean on validation; None while some are missing. Equal ones: the first."""
        if len(one.settings) == 1:
            return one.settings[0]
        best: tuple[float, Mapping[str, Any]] | None = None
        for setting, scores in zip(one.settings, self.choices(one), strict=True):
            values = [score.mean() for score in scores]
            if not values or any(value is None for value in values):
                return None
            mean = sum(better(self.family, value) for value in values if value is not None) / len(values)
            if best is None or mean > best[0]:
                best = (mean, setting)
        return best[1] if best else None

    def test(self, one: Candidate) -> list[Score]:
        """The test scores of the chosen setting, a seed each; empty while nothing is chosen."""
        setting = self.chosen(one)
        return [] if setting is None else [self.score("test", one, seed, setting) for seed in self.seeds]


def rounds(plan: Plan, number: int) -> Iterator[list[Score]]:
    """What to score with the `number`th seed, in order of use: the first one chooses the settings, a few candidates
    after the other; then come the parents.
    """
    if number >= len(plan.seeds):
        return
    seed = plan.seeds[number]
    yield [score for score in plan.roles(seed) if not score.what.startswith("sibling")]
    before: Sequence[Candidate] = ()
    for start in range(0, len(plan.candidates) + GROUP, GROUP):
        few = plan.candidates[start : start + GROUP]
        tests = [score for one in before for score in plan.test(one)[number : number + 1]]
        # Beside the tests of the candidates before, so that no process waits.
        yield tests + [
            score for one in few if number == 0 for scores in plan.choices(one) for score in scores
        ]
        before = few
    yield plan.roles(seed)


def main() -> None:
    """Parse the command line, score, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cut", choices=sorted(CUTS), default=os.environ.get("ZOO_CUT") or "full")
    parser.add_argument("--family", choices=FAMILIES, help="score only these models")
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--minutes", type=float, help="stop scoring after so long, and write what is there")
    parser.add_argument("--page", type=Path, help="where to write (docs/zoo.md; of other cuts: nowhere)")
    parser.add_argument(
        "--render", action="store_true", help="only write the page from the scores that are there"
    )
    chosen = parser.parse_args()
    if chosen.processes < 0:
        parser.error("--processes: 0 (in this process) or more")
    zoo = Zoo.open(root_of(CUTS[chosen.cut]))
    target = chosen.page or (PAGE if chosen.cut == "full" else None)
    console = Console()
    end = None if chosen.minutes is None else time.monotonic() + 60 * chosen.minutes
    plans = [Plan(zoo, family) for family in FAMILIES]
    wanted = [] if chosen.render else [plan for plan in plans if chosen.family in (None, plan.family)]
    failed = score_all(wanted, chosen.processes, console, end)
    text = page.render(plans)
    if target is not None:
        target.write_text(text, encoding="utf-8")
        console.print(f"wrote {target}")
    else:
        console.print(text, markup=False)
    if failed:
        sys.exit("\n".join(["zoo: not scored:", *failed]))


def score_all(plans: Sequence[Plan], processes: int, console: Console, end: float | None) -> list[str]:
    """Score seed after seed, round after round; a line for each score that failed."""

    def told(score: Score, seconds: float, left: int) -> None:
        console.print(
            f"  {score.name}: mean {score.mean():.4f} ({seconds:.0f} s, {left} more in this round)",
            highlight=False,
        )
        if end is not None and time.monotonic() > end:
            raise Enough

    failed: list[str] = []
    try:
        for number in range(max((len(plan.seeds) for plan in plans), default=0)):
            for plan in plans:
                console.print(f"[bold]{plan.family}[/]: seed {number + 1} of {len(plan.seeds)}")
                for scores in rounds(plan, number):
                    failed += run(scores, processes, told)
    except Enough:
        console.print("  the time is over; run it again to go on")
    return failed


class Enough(Exception):
    """The time given is over."""


if __name__ == "__main__":
    try:
        main()
    except DemoError as error:
        sys.exit(f"zoo: {error}")
    except KeyboardInterrupt:
        sys.exit("zoo: stopped; what was scored is kept, run it again to go on")
