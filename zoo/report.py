"""Merge the zoo with every method, choose settings on validation rows, score on test rows, and write docs/zoo.md.

PYTHONPATH=.:examples python -m zoo.report [--cut full|small] [--processes 2] [--minutes M] [--page FILE] [--seeds N]
    [--only NAME --only NAME ...]
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from itertools import zip_longest
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"

from demo.fetch import DemoError
from rich.console import Console

from zoo import folds, page
from zoo.build import root_of
from zoo.candidates import ALL, BY_NAME, Candidate
from zoo.cuts import CUTS
from zoo.scores import Score, Zoo, run, score_of

FAMILIES = ("minilm", "llama")
GROUP = 5
PAGE = Path(__file__).resolve().parents[1] / "docs" / "zoo.md"


def better(family: str, value: float) -> float:
    """Higher is better: accuracy as it is, bits per byte turned round."""
    return value if family == "minilm" else -value


class Plan:
    """All that is scored; settings are chosen as soon as their validation scores are there."""

    def __init__(self, zoo: Zoo, family: str) -> None:
        self.zoo, self.family = zoo, family
        self.seeds = zoo.seeds(family)
        self.base = zoo.models(family, "base")[0]
        self.candidates = [one for one in ALL if family in one.families]

    def narrowed(self, only: Sequence[str] | None, seeds: int | None) -> Plan:
        """The plan of some candidates and of the first seeds."""
        found = copy(self)
        found.candidates = [one for one in self.candidates if only is None or one.name in only]
        found.seeds = self.seeds[:seeds]
        return found

    def score(self, part: str, one: Candidate, seed: int, setting: Mapping[str, Any]) -> Score:
        """Of a merge of all siblings of a seed."""
        models = [self.base, *self.zoo.models(self.family, "sibling", seed)]
        return score_of(self.zoo, self.family, part, one.name, models, seed, setting)

    def roles(self, seed: int) -> list[Score]:
        """On the test rows: the base and the multitask control of all tasks, every sibling of its own."""
        found = [score_of(self.zoo, self.family, "test", "base", [self.base], 0)]
        for role in ("multitask", "sibling"):
            for model in self.zoo.models(self.family, role, seed):
                what = role if role == "multitask" else f"sibling {model['over'][0]}"
                tasks = () if role == "multitask" else model["over"]
                found.append(score_of(self.zoo, self.family, "test", what, [model], seed, tasks=tasks))
        return found

    def ensemble(self, seed: int) -> list[Score]:
        """Every sibling on the test rows of all tasks; none where outputs are not averaged (Llamas)."""
        if self.family != "minilm":
            return []
        return [
            score_of(self.zoo, self.family, "test", f"sibling {model['over'][0]}", [model], seed)
            for model in self.zoo.models(self.family, "sibling", seed)
        ]

    def choices(self, one: Candidate) -> list[list[Score]]:
        """By setting, the validation scores over the seeds that choose; empty where there is nothing to choose."""
        if len(one.settings) == 1:
            return []
        seeds = self.seeds[:1]
        return [[self.score("validation", one, seed, setting) for seed in seeds] for setting in one.settings]

    def worth(self, mean: float | None) -> float:
        """A mean score, higher is better; nothing is worth least."""
        return -math.inf if mean is None else better(self.family, mean)

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

    def groups(self) -> list[Sequence[Candidate]]:
        """A few candidates after the other."""
        return [self.candidates[at : at + GROUP] for at in range(0, len(self.candidates), GROUP)]


def first_seed(plan: Plan) -> Iterator[list[Score]]:
    """The first seed, which chooses the settings."""
    yield plan.roles(plan.seeds[0])
    before: Sequence[Candidate] = ()
    for few in [*plan.groups(), ()]:
        # The tests of the candidates before run beside, so that no process waits.
        tests = [score for one in before for score in plan.test(one)[:1]]
        yield tests + [score for one in few for scores in plan.choices(one) for score in scores]
        before = few


def other_seeds(plan: Plan) -> Iterator[list[Score]]:
    """The other seeds with what was chosen, parents first, then a few candidates after the other."""
    yield [score for seed in plan.seeds[1:] for score in plan.roles(seed)]
    for few in plan.groups():
        yield [score for one in few for score in plan.test(one)[1:]]


def ensembles(plan: Plan) -> Iterator[list[Score]]:
    """What the means of outputs need."""
    for seed in plan.seeds:
        yield plan.ensemble(seed)


def main() -> None:
    """Parse the command line, score, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cut", choices=sorted(CUTS), default=os.environ.get("ZOO_CUT") or "full")
    parser.add_argument("--family", choices=FAMILIES, help="score only these models")
    parser.add_argument("--only", action="append", choices=list(BY_NAME), help="score only these merges")
    parser.add_argument("--seeds", type=int, help="score only the first so many seeds")
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
    wanted = [plan.narrowed(chosen.only, chosen.seeds) for plan in wanted]
    failed = score_all(wanted, chosen.processes, console, end) if wanted else []
    late = end is not None and time.monotonic() > end
    if chosen.cut == "full" and chosen.family is None and not chosen.render and not late:
        console.print("[bold]PocketNet's folds[/]")
        failed += folds.run(zoo.root, lambda line: console.print(f"  {line}", highlight=False))
    text = page.render(plans)
    if target is not None:
        target.write_text(text, encoding="utf-8")
        console.print(f"wrote {target}")
    else:
        console.print(text, markup=False)
    if failed:
        sys.exit("\n".join(["zoo: not scored:", *failed]))


def score_all(plans: Sequence[Plan], processes: int, console: Console, end: float | None) -> list[str]:
    """Score round after round, the families side by side; a line for each score that failed."""

    def told(score: Score, seconds: float, left: int) -> None:
        console.print(
            f"  {score.name}: mean {score.mean():.4f} ({seconds:.0f} s, {left} more in this round)",
            highlight=False,
        )
        if end is not None and time.monotonic() > end:
            raise Enough

    failed: list[str] = []
    plans = [plan for plan in plans if plan.seeds]
    try:
        for part in (first_seed, other_seeds, ensembles):
            console.print(f"[bold]{part.__name__.replace('_', ' ')}[/]")
            for together in zip_longest(*(part(plan) for plan in plans), fillvalue=[]):
                found = run([score for scores in together for score in scores], processes, told)
                for line in found:
                    console.print(f"  not scored: {line}", highlight=False, markup=False)
                failed += found
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
