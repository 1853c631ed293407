"""Measure merganser beside mergekit and the machine's own floor, and write docs/benchmarks.md.

python benchmarks/run.py [--params 1.1B] [--repeats 3] [--only linear,ties [--keep]] [--skip-mergekit] ...
"""

from __future__ import annotations

import argparse
import datetime
import fcntl
import json
import math
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import machine
import page
import tools
from bench import Bench, say
from cases import CASES
from dataset import BenchmarkError, Dataset, prepare, warm
from layouts import LAYOUTS
from reshapes import RESHAPES

PAGE = tools.REPOSITORY / "docs" / "benchmarks.md"
RESULTS = tools.REPOSITORY / "benchmarks" / "results.json"
NOTES = tools.REPOSITORY / "benchmarks" / "notes.md"
STARTUP = "startup"
STARTS = 5
NAMES = (STARTUP, *(reshape.name for reshape in RESHAPES), *CASES)
"""What can be measured, in this order."""


def default_work() -> Path:
    """Where models, kernels and mergekit's environment are kept unless `--work` says otherwise."""
    cache = os.environ.get("MERGANSER_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / ("" if os.environ.get("MERGANSER_CACHE") else "merganser") / "benchmarks"


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--params", choices=LAYOUTS, default="1.1B", help="size of the generated models (%(default)s)"
    )
    parser.add_argument(
        "--repeats", type=int, default=3, metavar="N", help="runs of each, medians count (%(default)s)"
    )
    parser.add_argument(
        "--mergekit-repeats",
        default="",
        metavar="N[,CASE=N...]",
        help="fewer runs of mergekit, for all or for its slow cases, as in 3,ties=1,breadcrumbs=1",
    )
    parser.add_argument(
        "--mergekit-slow",
        type=float,
        default=math.inf,
        metavar="SECONDS",
        help="where the first run of mergekit took longer it is the only one",
    )
    parser.add_argument(
        "--only", default="", metavar="CASE,...", help="measure these only, of " + ", ".join(NAMES)
    )
    parser.add_argument(
        "--brief", action="store_true", help="leave out cold kernels and flushing to the disk"
    )
    parser.add_argument(
        "--keep", action="store_true", help="put what is measured into the numbers that are there already"
    )
    parser.add_argument(
        "--work", type=Path, default=default_work(), metavar="DIR", help="where models are kept"
    )
    parser.add_argument(
        "--output", type=Path, default=PAGE, metavar="FILE", help="the page (docs/benchmarks.md)"
    )
    parser.add_argument(
        "--results", type=Path, metavar="FILE", help="raw numbers (results.json, or beside the page)"
    )
    parser.add_argument("--skip-mergekit", action="store_true", help="measure merganser and the floor only")
    parser.add_argument(
        "--skip-twice", action="store_true", help="no memory check with models twice as large"
    )
    parser.add_argument(
        "--twice-only",
        action="store_true",
        help="only that check, for cases whose numbers are there already (with --keep)",
    )
    parser.add_argument(
        "--mergekit-python", type=Path, metavar="PYTHON", help="an environment that has mergekit 0.1.5"
    )
    parser.add_argument("--generate-only", action="store_true", help="only make the models")
    parser.add_argument(
        "--render", action="store_true", help="only write the page again from the raw numbers"
    )
    chosen = parser.parse_args(words)
    chosen.work = chosen.work.absolute()
    if chosen.results is None:
        chosen.results = RESULTS if chosen.output == PAGE else chosen.output.with_suffix(".json")
    only = [name.strip() for name in chosen.only.split(",") if name.strip()] or list(NAMES)
    unknown = [name for name in only if name not in NAMES]
    if unknown:
        parser.error(f"--only knows {', '.join(NAMES)}, not {', '.join(unknown)}")
    chosen.names = [name for name in NAMES if name in only]
    if chosen.repeats < 1:
        parser.error("--repeats must be at least 1")
    if chosen.twice_only and (not chosen.keep or chosen.skip_twice):
        parser.error("--twice-only goes with --keep, and without --skip-twice")
    chosen.skip_mergekit |= chosen.twice_only
    try:
        chosen.mergekit_repeats = mergekit_repeats(chosen.mergekit_repeats, chosen.repeats)
    except ValueError as error:
        parser.error(f"--mergekit-repeats: {error}")
    return chosen


def mergekit_repeats(text: str, repeats: int) -> dict[str, int]:
    """How often mergekit runs each case, at most `repeats`; raises `ValueError` for what cannot be read."""
    counts = dict.fromkeys(CASES, repeats)
    for part in filter(None, text.split(",")):
        case, equals, number = part.rpartition("=")
        count = int(number)
        if count < 1 or (equals and case not in CASES):
            raise ValueError(f"{part!r} is not a number of runs or CASE=number")
        for name in [case] if equals else list(CASES):
            counts[name] = min(count, repeats)
    return counts


def command_line(chosen: argparse.Namespace) -> str:
    """The command to measure this again, without the places that differ from machine to machine."""
    words = ["python benchmarks/run.py", f"--params {chosen.params}", f"--repeats {chosen.repeats}"]
    if len(chosen.names) < len(NAMES):
        words.append(f"--only {','.join(chosen.names)}")
    counts = {name: chosen.mergekit_repeats[name] for name in chosen.names if name in CASES}
    fewer = [f"{name}={count}" for name, count in counts.items() if count != chosen.repeats]
    if fewer and not chosen.skip_mergekit:
        same = len(fewer) == len(counts) and len(set(counts.values())) == 1
        words.append(f"--mergekit-repeats {next(iter(counts.values())) if same else ','.join(fewer)}")
    if math.isfinite(chosen.mergekit_slow) and not chosen.skip_mergekit:
        words.append(f"--mergekit-slow {chosen.mergekit_slow:g}")
    words += [
        f"--{name}"
        for name in ("brief", "skip-mergekit", "skip-twice")
        if getattr(chosen, name.replace("-", "_"))
    ]
    return " ".join(words)


@contextmanager
def alone(work: Path) -> Iterator[None]:
    """Hold the place to work in; raises `BenchmarkError` while another run does, which it would spoil."""
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BenchmarkError(
                f"another benchmark is running in {work}; wait or choose another --work"
            ) from None
        yield


def dataset(params: str, work: Path, *, twice: bool = False) -> Dataset:
    """The models of a size, generated where they are missing."""
    layout = LAYOUTS[params].twice() if twice else LAYOUTS[params]
    say(f"models of {layout.parameters():,} parameters ...")
    return prepare(layout, work)


def measure(chosen: argparse.Namespace) -> list[str]:
    """Run what is chosen, keep the raw numbers and the page up to date after each case; what failed."""
    kit = None if chosen.skip_mergekit else tools.mergekit(chosen.mergekit_python, chosen.work)
    settings = machine.describe(chosen.work)
    versions = {"merganser": machine.merganser_versions(), "mergekit": kit.versions() if kit else {}}
    commit = versions["merganser"].pop("commit", "")
    results = held(chosen, settings, versions) if chosen.keep else {}
    models = dataset(chosen.params, chosen.work)
    results = {
        "command": command_line(chosen),
        "params": chosen.params,
        "parameters": models.layout.parameters(),
        "layout": models.layout.as_json(),
        "machine": settings,
        "cases": {},
        "reshapes": {},
    } | results
    results["versions"] = versions

    def measured() -> dict[str, Any]:
        """When and how a row is measured."""
        return {
            "date": datetime.date.today().isoformat(),
            "commit": commit,
            "load": round(os.getloadavg()[0], 2),
            "repeats": chosen.repeats,
        }

    bench = Bench(chosen.work, settings["filesystem"], kit)
    if chosen.twice_only:
        missing = [name for name in chosen.names if name in CASES and name not in results["cases"]]
        if missing:
            raise BenchmarkError(f"--twice-only, but {', '.join(missing)} were not measured yet")
        at_twice(chosen, bench, results)
        return bench.failures
    say("reading the models once ...")
    warm(models)
    if STARTUP in chosen.names:
        note = measured() | {"repeats": STARTS}
        results[STARTUP] = {"measured": note, "samples": bench.startup(STARTS)}
    for reshape in RESHAPES:
        if reshape.name in chosen.names:
            note = measured()
            results["reshapes"][reshape.name] = {"measured": note} | bench.reshape(
                reshape, models, chosen.repeats
            )
            write(results, chosen)
    cases = [CASES[name] for name in chosen.names if name in CASES]
    for case in cases:
        note = measured()
        found = bench.case(
            case,
            models,
            chosen.repeats,
            chosen.mergekit_repeats[case.name],
            slow=chosen.mergekit_slow,
            brief=chosen.brief,
        )
        results["cases"][case.name] = {"measured": note} | found
        write(results, chosen)
    if cases and not chosen.skip_twice:
        at_twice(chosen, bench, results)
    write(results, chosen)
    bench.clear(bench.scratch)
    return bench.failures


def at_twice(chosen: argparse.Namespace, bench: Bench, results: dict[str, Any]) -> None:
    """The memory of each case with models twice as large."""
    larger = dataset(chosen.params, chosen.work, twice=True)
    results["twice"] = {"parameters": larger.layout.parameters(), "layout": larger.layout.as_json()}
    for name in chosen.names:
        if name in CASES:
            results["cases"][name]["twice"] = bench.twice(CASES[name], larger)
            write(results, chosen)


def held(
    chosen: argparse.Namespace, settings: dict[str, Any], versions: dict[str, dict[str, str]]
) -> dict[str, Any]:
    """The numbers that are there already; raises `BenchmarkError` when these cannot stand beside them.

    `versions` gets those of mergekit when this run is without it.
    """
    if not chosen.results.exists():
        raise BenchmarkError(f"--keep, but there is no {chosen.results.name} yet; run without it once")
    found: dict[str, Any] = json.loads(chosen.results.read_text())
    versions["mergekit"] = versions["mergekit"] or found["versions"]["mergekit"]
    found["versions"]["mergekit"] = found["versions"]["mergekit"] or versions["mergekit"]
    differ = [key for key in settings if settings[key] != found["machine"].get(key)]
    differ += [
        f"{tool} ({name})"
        for tool, packages in versions.items()
        for name in packages.keys() | found["versions"][tool].keys()
        if packages.get(name) != found["versions"][tool].get(name)
    ]
    differ += ["--params"] if chosen.params != found["params"] else []
    if differ:
        raise BenchmarkError(
            f"--keep, but {chosen.results.name} was measured with other {', '.join(differ)}; run without it"
        )
    return found


def write(results: dict[str, Any], chosen: argparse.Namespace) -> None:
    """The raw numbers and the page."""
    for path in (chosen.output, chosen.results):
        path.parent.mkdir(parents=True, exist_ok=True)
    chosen.results.write_text(json.dumps(results, indent=1) + "\n")
    notes = NOTES.read_text() if chosen.output == PAGE and NOTES.exists() else ""
    chosen.output.write_text(page.render(results, notes))


def main() -> int:
    """0 done, 1 something failed to run or the benchmark could not."""
    chosen = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: the tool that is running ends too
    try:
        if chosen.render:
            write(json.loads(chosen.results.read_text()), chosen)
            return 0
        if chosen.generate_only:
            dataset(chosen.params, chosen.work)
            if not chosen.skip_twice:
                dataset(chosen.params, chosen.work, twice=True)
            return 0
        with alone(chosen.work):
            failures = measure(chosen)
    except BenchmarkError as error:
        say(f"error: {error}")
        return 1
    say(f"wrote {chosen.output}")
    for failure in failures:
        say(f"failed: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
