"""What the commands that write a checkpoint share: their options and the run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from merganser.cli import console
from merganser.errors import listing

if TYPE_CHECKING:
    from merganser.algebra import Weights
    from merganser.engine import Report
    from merganser.recipe import Mixture, Recipe

OUT = Annotated[
    Path,
    typer.Argument(
        metavar="OUT", help="A directory to make, or FILE.safetensors; appears whole or not at all."
    ),
]
THREADS = Annotated[int, typer.Option(help="Worker threads; 0 is one a core.", min=0)]
SEED = Annotated[int | None, typer.Option(help="Of random draws; stands above the recipe's (else 0).")]
SHARD_SIZE = Annotated[str, typer.Option(help="What one file may hold.")]
OVERWRITE = Annotated[bool, typer.Option("--overwrite", help="Replace a checkpoint at OUT, at the very end.")]
NO_RESUME = Annotated[
    bool, typer.Option("--no-resume", help="Start over, even where an interrupted run could be continued.")
]
ALLOW_NONFINITE = Annotated[
    bool, typer.Option("--allow-nonfinite", help="Write NaN and Inf instead of failing on them.")
]
NO_SYNC = Annotated[
    bool, typer.Option("--no-sync", help="Do not wait for the disk before the output gets its name.")
]
NO_PROOF = Annotated[
    bool,
    typer.Option(
        "--no-proof", help="Do not prove a trimmed vocabulary by a forward pass where torch is installed."
    ),
]
CHECK = Annotated[
    bool,
    typer.Option(
        "--check",
        help="Before anything is written, take a small model of the same config through the steps and open it in "
        "transformers: no tensor may be missing, and where steps claim that the function stays, outputs must agree.",
    ),
]
QUIET = Annotated[bool, typer.Option("--quiet", help="No progress bar and no report.")]
STRICT = Annotated[
    bool,
    typer.Option("--strict", help="Keys that mergekit reads over are an error and no warning."),
]


@dataclass(frozen=True)
class Saving:
    """The options as given."""

    memory: console.MEMORY = "1GiB"
    threads: THREADS = 0
    seed: SEED = None
    shard_size: SHARD_SIZE = "5GB"
    overwrite: OVERWRITE = False
    no_resume: NO_RESUME = False
    allow_pickle: console.ALLOW_PICKLE = False
    allow_nonfinite: ALLOW_NONFINITE = False
    no_sync: NO_SYNC = False
    no_proof: NO_PROOF = False
    check: CHECK = False
    quiet: QUIET = False
    as_json: console.JSON = False


def options(*lacking: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command whose last parameter is `saving`: the fields of `Saving` but `lacking` become its last options."""

    def wrap(function: Callable[..., None]) -> Callable[..., None]:
        types = get_type_hints(Saving, include_extras=True)
        signature = inspect.signature(function, eval_str=True)
        shared = [
            inspect.Parameter(
                one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=types[one.name]
            )
            for one in fields(Saving)
            if one.name not in lacking
        ]
        own = [one for one in signature.parameters.values() if one.name != "saving"]

        def command(**given: Any) -> None:
            function(saving=Saving(**{one.name: given.pop(one.name) for one in shared}), **given)

        command.__doc__ = function.__doc__
        command.__signature__ = signature.replace(parameters=[*own, *shared])  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in (*own, *shared)}
        return command

    return wrap


def run(
    recipe: Recipe | Mixture,
    out: Path,
    saving: Saving,
    command: str,
    doing: str,
    *,
    batch_norm: Path | None = None,
    conflicts: bool = False,
) -> None:
    """Build the recipe's weights, save them, and report. `doing` is what the progress bar says.

    batch_norm: rows on which running statistics are computed anew before that. conflicts: report them of ties.
    """
    from merganser.recipe import build

    _sizes(saving)
    weights, settings = build(recipe, seed=saving.seed, allow_pickle=saving.allow_pickle)
    checked = _check(recipe, weights, saving) if saving.check else None
    if batch_norm is not None:
        from merganser.observe import with_running_statistics

        with console.progress(not saving.quiet and not saving.as_json, "normalising", "batches") as progress:
            weights = with_running_statistics(weights, batch_norm, progress=progress)
    opposed: list[dict[str, Any]] = []
    if conflicts:
        from merganser.recipe.conflicts import conflicts_of

        limit = console.parse_size(saving.memory, "--memory")
        opposed = conflicts_of(
            recipe, seed=saving.seed, allow_pickle=saving.allow_pickle, threads=saving.threads, memory=limit
        )
    steps = [call.step.name for call in getattr(recipe, "steps", ())]
    method = getattr(getattr(recipe, "method", None), "name", "")
    alone = settings.get("dtype") is None and method == "passthrough"
    write(
        weights,
        settings,
        out,
        saving,
        command,
        doing,
        steps=[] if saving.no_proof else steps,
        alone=alone,
        checked=checked,
        opposed=opposed,
    )


def _check(recipe: Recipe | Mixture, weights: Weights, saving: Saving) -> dict[str, Any]:
    """What a small model of the same config shows of the result, and of the steps."""
    from merganser.methods.check import check_steps
    from merganser.recipe import Mixture, before_steps

    limit, _ = _sizes(saving)
    if isinstance(recipe, Mixture):
        return check_steps(weights, [], memory=limit)
    before, calls = before_steps(recipe, seed=saving.seed, allow_pickle=saving.allow_pickle)
    return check_steps(before, calls, memory=limit)


def _sizes(saving: Saving) -> tuple[int, int]:
    limit = console.parse_size(saving.memory, "--memory")
    return limit, console.parse_size(saving.shard_size, "--shard-size")


def write(
    weights: Weights,
    settings: Mapping[str, Any],
    out: Path,
    saving: Saving,
    command: str,
    doing: str,
    *,
    steps: Sequence[str] = (),
    alone: bool = True,
    checked: Mapping[str, Any] | None = None,
    opposed: Sequence[Mapping[str, Any]] = (),
) -> Report:
    """Save weights with the settings of `save`, prove what can be proved of `steps`, and report.

    alone: nothing but the steps made the weights of what they came from. checked: what `--check` found before.
    """
    from merganser import save
    from merganser.cli import _proof

    limit, shard = _sizes(saving)
    for note in weights.notes:
        if "warning" in note:
            console.warn(str(note["warning"]))
    try:
        with console.progress(not saving.quiet and not saving.as_json, doing) as progress:
            report = save(
                weights,
                out,
                memory=limit,
                threads=saving.threads,
                shard_size=shard,
                overwrite=saving.overwrite,
                resume=not saving.no_resume,
                allow_nonfinite=saving.allow_nonfinite,
                sync=not saving.no_sync,
                progress=progress,
                generator=f"merganser {command}",
                **settings,
            )
    except KeyboardInterrupt as interruption:
        stopped = console.Interrupted("interrupted")
        for note in getattr(interruption, "__notes__", ()):
            stopped.add_note(note)
        raise stopped from None
    proof = _proof.of_trimming(weights, report, steps, alone=alone, memory=limit)
    if saving.as_json:
        more: dict[str, Any] = {"check": checked} if checked else {}
        if opposed:
            more["conflicts"] = list(opposed)
        console.print_json(report.as_json() | more | ({"proof": proof} if proof else {}))
    elif not saving.quiet:
        moved = report.bytes_read + report.bytes_written - report.bytes_resumed
        whole = report.bytes_read_in_all
        of_all = f" of {console.size(whole)}" if whole != report.bytes_read else ""
        console.say(
            f"{report.path}: {console.counted(report.tensors, 'tensor')}, "
            f"{console.size(report.bytes_written)} written, "
            f"{console.size(report.bytes_read)}{of_all} read in {report.seconds:.1f} s "
            f"({console.size(moved / max(report.seconds, 1e-9))}/s, peak memory {console.size(report.peak_memory)})"
        )
        for note in report.notes:
            console.say(note_line({key: value for key, value in note.items() if key != "warning"}))
        for row in opposed:
            console.say(
                f"trimmed {row['trimmed']:.1%} of the changes; of the {row['touched']:,} entries that are still "
                f"changed {row['conflicts']:.1%} have changes of both signs"
            )
        if checked:
            console.say(_proof.checked(checked))
        if proof:
            console.say(_proof.line(proof))
        if report.resumed:
            console.say(f"taken over from an interrupted run: {console.counted(report.resumed, 'tensor')}")
        for parent, names in report.unused.items():
            shown = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
            console.say(f"not used of {parent}: {console.counted(len(names), 'tensor')} ({shown})")
        for name, count in report.nonfinite.items():
            console.say(f"warning: {name} holds {count} values that are not finite")
        console.say(f"digest {report.digest}")
    return report


def note_line(note: Mapping[str, object]) -> str:
    """A step's report in one line: of long lists how many there are and the first few."""
    words = []
    for key, value in note.items():
        if key == "step" or value in (None, [], {}, ""):
            continue
        words.append(f"{key.replace('_', ' ')} {_worded(value)}")
    return f"{note.get('step', 'note')}: {'; '.join(words)}"


def _worded(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        if len(value) > 8 or any(isinstance(one, dict) for one in value.values()):
            return str(len(value))
        texts = {
            k: "/".join(map(_worded, v)) if isinstance(v, list) else _worded(v) for k, v in value.items()
        }
        return ", ".join(f"{key} {text}" for key, text in texts.items())
    if isinstance(value, list | tuple):
        if any(isinstance(one, dict | list) for one in value):
            return str(len(value))
        few = listing([_worded(one) for one in value])
        return few if len(value) < 3 else f"{len(value)} ({few})"
    return str(value)
