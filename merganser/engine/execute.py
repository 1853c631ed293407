"""Plans carried out: into a sealed checkpoint, into an array, or into numbers."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from merganser._progress import Progress
from merganser._version import __version__
from merganser.algebra import Expression, Leaf, Weights
from merganser.algebra.computed import Whole
from merganser.algebra.expression import Load, walk
from merganser.algebra.rearranged import Product
from merganser.algebra.weights import need_numbers
from merganser.architectures.ties import settled
from merganser.checkpoint import Checkpoint, parse_dtype
from merganser.checkpoint.digest import CHUNK, content_digest, digest_file, digest_tensor, tensor_digest
from merganser.checkpoint.dtypes import F32, F64
from merganser.checkpoint.layout import MANIFEST_NAME
from merganser.checkpoint.names import index_name
from merganser.engine.companions import (
    check_contents,
    check_parts,
    check_single,
    files_note,
    parts_of,
    reading_note,
    small_files_of,
)
from merganser.engine.files import Shard, index, lay_out, one_file, with_manifest
from merganser.engine.finite import refuse_negative_variance
from merganser.engine.kernels import compiler
from merganser.engine.ledger import Ledger
from merganser.engine.memory import Budget, budget, peak_bytes
from merganser.engine.options import SaveOptions
from merganser.engine.plan import Output, Plan, Step, Task, changed_files, plan_scalars, plan_weights
from merganser.engine.scheduler import Scheduler
from merganser.engine.sources import open_source
from merganser.engine.steps import Known, StepRun, Write
from merganser.engine.workspace import Workspace, is_file_name
from merganser.errors import OutputError
from merganser.lineage import Manifest

_PACE = 1.5e9
"""Bytes a second and thread that the estimate assumes; docs/benchmarks.md has what was measured."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a run did. Sizes in bytes, time in seconds.

    bytes_read: read from parents in this run. bytes_read_in_all: what the whole plan reads; more where tensors were
    taken over from an interrupted run. bytes_written: the tensors of the result. bytes_resumed: those of them that were
    taken over.
    """

    path: Path
    tensors: int
    bytes_read: int
    bytes_read_in_all: int
    bytes_written: int
    bytes_resumed: int
    seconds: float
    peak_memory: int
    resumed: int
    unused: Mapping[str, list[str]]
    notes: Sequence[Mapping[str, Any]]
    nonfinite: Mapping[str, int]
    digest: str
    kernels: int
    threads: int

    def as_json(self) -> dict[str, Any]:
        """The report as a JSON document."""
        return asdict(self) | {"path": str(self.path)}


def save(weights: Weights, out: Path, options: SaveOptions) -> Report:
    """Compute `weights` and write them to the directory `out`, which appears whole or not at all.

    `out` may be FILE.safetensors: then it is that one file, with the manifest in its metadata.

    Raises `RequestError` (degree, names, memory) and `OutputError` (exists, disk) before a tensor byte is read, and
    `NonFiniteError`, `CheckpointError` or `OutputError` while running; what was finished is then kept for a resume.
    """
    began = time.perf_counter()
    plan = _plan(weights, options, single=is_file_name(out))
    share = budget(plan, options.memory, options.threads, options.tile)
    shards = _laid_out(plan, out, options)
    with Workspace(out, overwrite=options.overwrite, parents=plan.checkpoints, sync=options.sync) as space:
        beside = [plan.origin.part(name) for name in plan.parts] if plan.origin is not None else []
        _check_room(out, sum(shard.size for shard in shards) + sum(p.stat().st_size for p in beside), space)
        for (
            file
        ) in plan.files_read:  # what lies on the hub is downloaded only now that nothing else can be wrong
            file.fetch()
        # What was finished while NaN and Inf could pass was not checked for them, nor were its parents.
        fingerprint = plan.fingerprint(
            options.shard_size, options.seed, dict(options.recipe or {}), options.allow_nonfinite
        )
        space.open(fingerprint, shards, plan.outputs, resume=options.resume)
        resumed = len(space.finished)
        read, kept = _left_to_read(plan, space.finished)
        space.start_syncing()
        run_plan(plan, share, options, space)
        for checkpoint in plan.checkpoints:
            checkpoint.check_unchanged()
        seconds = time.perf_counter() - began
        if is_file_name(out):
            manifest = _finish_file(plan, shards[0], space, options)
        else:
            manifest = _finish(plan, shards, space, options, seconds, share, resumed, read, kept)
        space.seal()
    return Report(
        path=Path(out),
        tensors=len(plan.outputs),
        bytes_read=read,
        bytes_read_in_all=plan.read_bytes,
        bytes_written=plan.write_bytes,
        bytes_resumed=kept,
        seconds=time.perf_counter() - began,
        peak_memory=peak_bytes(),
        resumed=resumed,
        unused=plan.unused,
        notes=plan.notes,
        nonfinite={n: r["nonfinite"] for n, r in space.finished.items() if r.get("nonfinite")},
        digest=manifest.digest,
        kernels=compiler.compiled_count(),
        threads=share.threads,
    )


def _left_to_read(plan: Plan, finished: Container[str]) -> tuple[int, int]:
    """What is read from parents where these tensors are finished, and how many bytes of the result they are."""
    tasks = [task for stage in plan.stages for task in stage.tasks]
    left = [task for task in tasks if task.output is None or task.name not in finished]
    read = sum(step.read_bytes for task in left for step in task.steps)
    return read, sum(output.nbytes for output in plan.outputs if output.name in finished)


def run_plan(plan: Plan, share: Budget, options: SaveOptions, space: Workspace) -> None:
    """Run all stages, writing into the workspace and noting every finished tensor in its journal."""

    def done(task: Task, runs: list[StepRun]) -> None:
        output = task.output
        if output is None:
            return
        last = runs[-1]
        if share.tile % CHUNK:  # tiles that end within a chunk cannot be digested on the way
            digest = space.digest(output)
        else:
            chunks = [chunk for tile in sorted(last.output_digests) for chunk in last.output_digests[tile]]
            digest = tensor_digest(output.dtype, output.shape, chunks)
        record: dict[str, Any] = {"digest": digest}
        if last.nonfinite:
            record["nonfinite"] = last.nonfinite
        record["parents"] = _parent_digests(runs)
        space.finish(output.name, record)

    def write(output: Output, start: int, data: memoryview) -> None:
        if options.degree == 1:  # in a difference of models a change of a variance may be negative
            refuse_negative_variance(output, start, data)
        space.write(output, start, data)

    shared: list[StepRun] = []
    _schedule(
        plan,
        share,
        done=lambda task, runs: done(task, runs) if task.output else shared.extend(runs),
        write=write,
        allow_nonfinite=options.allow_nonfinite,
        progress=options.progress,
        skip=lambda task: task.output is not None and task.name in space.finished,
    )
    early = _parent_digests(shared)
    if early:
        space.finish("", {"digest": "", "parents": early})
    rest: dict[str, dict[str, str]] = {}
    for tensor in plan.read_in_parts:
        rest.setdefault(str(tensor.file.path), {})[tensor.name] = digest_tensor(tensor)
    if rest:
        space.finish(" parts", {"digest": "", "parents": rest})


def compute(
    weights: Weights,
    name: str,
    *,
    threads: int = 0,
    memory: int | None = None,
    allow_nonfinite: bool = True,
) -> np.ndarray[Any, Any]:
    """One tensor in memory: f32, or f64 where a parent is F64; integer and bool tensors and constants as stored.

    Unless `allow_nonfinite`, raises `NonFiniteError` as `save` does.
    """
    expression = weights[name]
    need_numbers(weights.checkpoints)
    if isinstance(expression, Leaf) and expression.carried:
        return expression.tensor.numpy()
    if isinstance(expression, Load) and expression.carried:
        return _carried(expression)
    if expression.is_scalar:
        plan = plan_scalars({name: [expression]}, weights.checkpoints)
        found = _numbers(plan, {name: [expression]}, threads, memory, None, allow_nonfinite)
        return np.float64(found[name][0])  # type: ignore[return-value]
    single = Weights(
        {name: weights.entry(name)}, label=weights.label, origin=None, checkpoints=weights.checkpoints
    )
    dtype = F64 if expression.wide else F32
    plan = plan_weights(single, dtype=dtype, degree=weights.entry(name).degree)
    return _in_memory(plan, threads, memory, None, allow_nonfinite)[name]


def compute_all(
    weights: Weights,
    *,
    degree: float = 1.0,
    threads: int = 0,
    memory: int | None = None,
    allow_nonfinite: bool = False,
    progress: Progress | None = None,
) -> dict[str, np.ndarray[Any, Any]]:
    """All tensors in memory, by name: float ones in f32, integer and bool ones as stored.

    `memory` limits what it takes to compute them, beside the result itself. Raises as `save` does.
    """
    plan = plan_weights(weights, dtype=F32, degree=degree, partial=True)
    for file in plan.files_read:
        file.fetch()
    return _in_memory(plan, threads, memory, progress, allow_nonfinite)


def _in_memory(
    plan: Plan, threads: int, memory: int | None, progress: Progress | None, allow_nonfinite: bool
) -> dict[str, np.ndarray[Any, Any]]:
    results = {output.name: np.empty(output.shape, output.dtype.numpy) for output in plan.outputs}
    raw = {name: result.reshape(-1).view(np.uint8).data for name, result in results.items()}

    def write(output: Output, start: int, data: memoryview) -> None:
        at = output.dtype.nbytes(start)
        raw[output.name][at : at + len(data)] = data

    share = budget(plan, memory, threads)
    _schedule(
        plan,
        share,
        done=lambda task, runs: None,
        write=write,
        allow_nonfinite=allow_nonfinite,
        progress=progress,
    )
    return results


def evaluate(
    targets: Mapping[str, Sequence[Expression]],
    checkpoints: Sequence[Checkpoint],
    *,
    threads: int = 0,
    memory: int | None = None,
    progress: Progress | None = None,
    allow_nonfinite: bool = True,
) -> dict[str, list[float]]:
    """Scalar expressions (norms, dot products, counts) by name, streamed.

    Unless `allow_nonfinite`, raises `NonFiniteError` where a parent holds NaN or Inf.
    """
    return _numbers(plan_scalars(targets, checkpoints), targets, threads, memory, progress, allow_nonfinite)


def small_files(weights: Weights) -> dict[str, bytes]:
    """The files beside the tensors (config, tokenizer ...): the origin's, with what operations changed in them."""
    return small_files_of(weights.origin, changed_files(weights))


def explain(weights: Weights, options: SaveOptions) -> dict[str, Any]:
    """The plan as a JSON document. Reads no tensor bytes."""
    plan = _plan(weights, options)
    share = budget(plan, options.memory, options.threads, options.tile)
    shards = lay_out(plan.outputs, options.shard_size, plan.file_stem)
    programs = {step.program.key for step in plan.steps if step.program is not None}
    moved = plan.read_bytes + plan.write_bytes
    return {
        "tensors": len(plan.outputs),
        "stages": len(plan.stages),
        "passes": max((len(task.steps) for task in plan.stages[-1].tasks), default=0) + len(plan.stages) - 1,
        "bytes_read": plan.read_bytes,
        "bytes_written": plan.write_bytes,
        "memory": {
            "limit": share.limit,
            "needed": share.needed,
            "per_thread": share.per_thread,
            "tile_elements": share.tile,
        },
        "threads": share.threads,
        "kernels": len(programs),
        "shards": [{"file": s.name, "bytes": s.size, "tensors": len(s.offsets)} for s in shards],
        "forms": dict(plan.forms),
        "unused": dict(plan.unused),
        "notes": [dict(note) for note in plan.notes],
        "parents": [_describe(checkpoint) for checkpoint in plan.checkpoints],
        "estimate_seconds": round(moved / (_PACE * min(share.threads, 4)), 2),
    }


# Helpers --------------------------------------------------------------------------------------------------------------


def _carried(load: Load) -> np.ndarray[Any, Any]:
    raw = open_source(load, Known(Ledger())).raw(0, load.size)
    values: np.ndarray[Any, Any] = raw.view(load.dtype.numpy).reshape(load.shape)
    return values


def _plan(weights: Weights, options: SaveOptions, single: bool = False) -> Plan:
    """The plan with what goes along. single: the result is one file, beside which nothing goes along."""
    dtype = None if options.dtype is None else parse_dtype(options.dtype)
    plan = plan_weights(weights, dtype=dtype, degree=options.degree, partial=options.partial)
    check_contents(weights)
    parts = [] if single else parts_of(weights, options.degree)
    if single:
        check_single(plan.files, plan.stem)
    else:
        check_parts(weights, parts)
    lost = sorted(small_files_of(plan.origin, {})) if single else []
    notes = [note for note in (reading_note(weights), files_note(weights, parts, lost)) if note]
    return replace(plan, parts=tuple(parts), notes=(*plan.notes, *notes))


def _schedule(
    plan: Plan,
    share: Budget,
    *,
    done: Any,
    write: Write | None,
    allow_nonfinite: bool,
    progress: Progress | None = None,
    skip: Any = lambda task: False,
) -> Ledger:
    ledger = Ledger(share.kept, allow_nonfinite=allow_nonfinite)

    def open_step(step: Step) -> StepRun:
        return StepRun(step, ledger, tile=share.tile, bins=share.bins, write=write)

    scheduler = Scheduler(
        plan,
        ledger,
        threads=share.threads,
        bins=share.bins,
        open_step=open_step,
        done=done,
        progress=progress,
    )
    with _one_blas_thread(plan):
        scheduler.run(skip)
    return ledger


@contextmanager
def _one_blas_thread(plan: Plan) -> Iterator[None]:
    """Matrix functions run on one thread each, so that their sums do not depend on how many cores there are.

    The workers are the parallelism.
    """
    loads: list[Expression] = [load for step in plan.steps for load in step.bindings.loads]
    if not any(isinstance(node, Whole | Product) for node in walk(loads)):
        yield
        return
    from threadpoolctl import threadpool_limits

    np.linalg.norm(np.ones((2, 2)) @ np.ones((2, 2)))  # the library is loaded
    with threadpool_limits(1, "blas"):
        yield


def _numbers(
    plan: Plan,
    targets: Mapping[str, Sequence[Expression]],
    threads: int,
    memory: int | None,
    progress: Progress | None,
    allow_nonfinite: bool,
) -> dict[str, list[float]]:
    from merganser.engine.steps import evaluate as number

    share = budget(plan, memory, threads)
    ledger = _schedule(
        plan,
        share,
        done=lambda task, runs: None,
        write=None,
        allow_nonfinite=allow_nonfinite,
        progress=progress,
    )
    memo: dict[int, float] = {}
    return {
        name: [number(e, ledger.values, memo) for e in expressions] for name, expressions in targets.items()
    }


def _check_room(out: Path, needed: int, space: Workspace) -> None:
    """Whether the disk has room for what is still to be written, asked before anything is."""
    home = next(p for p in space.partial.parents if p.exists())
    held = sum(p.stat().st_blocks * 512 for p in space.model.glob("*")) if space.model.is_dir() else 0
    free = shutil.disk_usage(home).free
    if needed - held > free:
        raise OutputError(
            f"{out}: needs {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free on that disk; nothing was written"
        )


def _parent_digests(runs: Sequence[StepRun]) -> dict[str, dict[str, str]]:
    """By file, the digests of the tensors that these steps were the first to read."""
    found: dict[str, dict[str, str]] = {}
    for run in runs:
        for slot, tiles in run.digests.items():
            load = run.opened_bindings.loads[slot]
            assert isinstance(load, Leaf)
            chunks = [chunk for tile in sorted(tiles) for chunk in tiles[tile]]
            tensor = load.tensor
            whole = run.tile % CHUNK == 0
            digest = tensor_digest(tensor.dtype, tensor.shape, chunks) if whole else digest_tensor(tensor)
            found.setdefault(str(tensor.file.path), {})[tensor.name] = digest
    return found


def _finish(
    plan: Plan,
    shards: Sequence[Shard],
    space: Workspace,
    options: SaveOptions,
    seconds: float,
    share: Budget,
    resumed: int,
    read: int,
    kept: int,
) -> Manifest:
    """Write the small files: config, tokenizer, index, manifest."""
    names: list[str] = []

    def add(name: str, content: bytes) -> None:
        space.add_file(name, content)
        names.append(name)

    for name in plan.parts:
        assert plan.origin is not None
        space.copy_file(name, plan.origin.part(name))
        names.append(name)
    for name, content in small_files_of(plan.origin, plan.files).items():
        add(name, _config(plan, content, space) if name == "config.json" else content)
    if len(shards) > 1:
        content = json.dumps(index(shards, plan.outputs), indent=2).encode() + b"\n"
        add(index_name(plan.file_stem), content)
    run = {
        "seconds": round(seconds, 3),
        "bytes_read": read,
        "bytes_read_in_all": plan.read_bytes,
        "bytes_written": plan.write_bytes,
        "bytes_resumed": kept,
        "bytes_per_second": round((read + plan.write_bytes - kept) / max(seconds, 1e-9)),
        "threads": share.threads,
        "memory_limit": share.limit,
        "peak_memory": peak_bytes(),
        "resumed_tensors": resumed,
        "formulas": dict(plan.forms),
    }
    file_of = {name: shard.name for shard in shards for name in shard.offsets}
    files = {name: digest_file(space.model / name) for name in names}
    manifest = _manifest(plan, options, file_of, space.finished, files, run)
    space.add_file(MANIFEST_NAME, manifest.to_bytes())
    return manifest


def _manifest(
    plan: Plan,
    options: SaveOptions,
    file_of: Mapping[str, str],
    finished: Mapping[str, Mapping[str, Any]],
    files: Mapping[str, str],
    run: Mapping[str, Any],
) -> Manifest:
    tensors = {
        output.name: {
            "dtype": output.dtype.name,
            "shape": list(output.shape),
            "file": file_of[output.name],
            "digest": finished[output.name]["digest"],
        }
        for output in plan.outputs
    }
    return Manifest(
        version=__version__,
        generator=options.generator,
        seed=options.seed,
        recipe=dict(options.recipe) if options.recipe else {"formulas": dict(plan.forms)},
        digest=content_digest({name: str(entry["digest"]) for name, entry in tensors.items()}),
        parents=_parents(plan, finished),
        tensors=tensors,
        files=files,
        unused=plan.unused,
        degree=options.degree,
        notes=list(plan.notes),
        run=run,
    )


def _laid_out(plan: Plan, out: Path, options: SaveOptions) -> list[Shard]:
    """The files of the result: one where `out` is a file's name, with room for the manifest in its header."""
    if not is_file_name(out):
        return lay_out(plan.outputs, options.shard_size, plan.file_stem)
    blank: dict[str, Any] = {output.name: {"digest": "0" * 32} for output in plan.outputs}
    planned = _manifest(plan, options, dict.fromkeys(blank, out.name), blank, {}, {})
    return [one_file(plan.outputs, out.name, planned.to_bytes().decode())]


def _finish_file(plan: Plan, shard: Shard, space: Workspace, options: SaveOptions) -> Manifest:
    """The manifest into the header of a single file. What ran and how fast is left out: the bytes stay the same."""
    file_of = dict.fromkeys(shard.offsets, shard.name)
    manifest = _manifest(plan, options, file_of, space.finished, {}, {})
    space.rewrite_header(shard.name, with_manifest(shard, plan.outputs, manifest.to_bytes().decode()))
    return manifest


def _config(plan: Plan, content: bytes, space: Workspace) -> bytes:
    """config.json with the dtype that most of the result's float bytes have, and untied where copies differ.

    Float8 is a way of storing, which no loader computes in: the config keeps the dtype that it has.
    """
    digests = {output.name: space.finished[output.name]["digest"] for output in plan.outputs}
    stored = plan.origin.tensors if plan.origin is not None else {}
    if plan.stem == "model" and (config := settled(json.loads(content), digests, stored)) is not None:
        content = json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"
    sizes: dict[str, int] = {}
    for output in plan.outputs:
        if output.dtype.is_float:
            sizes[output.dtype.torch_name] = sizes.get(output.dtype.torch_name, 0) + output.nbytes
    if not sizes or (plan.origin is not None and plan.origin.encoding is not None):
        return content
    main = max(sizes, key=lambda name: sizes[name])
    if parse_dtype(main).itemsize == 1:
        return content
    config = json.loads(content)
    keys = [key for key in ("dtype", "torch_dtype") if key in config]
    if not keys and "_class_name" not in config:  # diffusers reads the dtype off the tensors
        keys = ["torch_dtype"]
    if all(config.get(key) == main for key in keys):
        return content
    config.update(dict.fromkeys(keys, main))
    return json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"


def _parents(plan: Plan, finished: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    read: dict[str, dict[str, str]] = {}
    for record in finished.values():
        for parent, digests in record.get("parents", {}).items():
            read.setdefault(parent, {}).update(digests)
    result = []
    for checkpoint in plan.checkpoints:
        digests = {n: d for file in checkpoint.files for n, d in read.get(str(file.path), {}).items()}
        entry = _describe(checkpoint) | {"tensors_read": len(digests), "digest": content_digest(digests)}
        if checkpoint.is_adapter:
            entry |= {
                "tensors_read": len(checkpoint.deltas),
                "digest": content_digest({str(f.path.name): digest_file(f.path) for f in checkpoint.files}),
            }
        result.append(entry)
    return result


def _describe(checkpoint: Checkpoint) -> dict[str, Any]:
    dtypes = sorted({tensor.dtype.name for tensor in checkpoint.stored.values()})
    return {
        "name": checkpoint.name,
        "path": checkpoint.where,
        "format": checkpoint.format,
        "tensors": len(checkpoint.tensors) or len(checkpoint.deltas),
        "bytes": sum(tensor.nbytes for tensor in checkpoint.stored.values()),
        "dtypes": dtypes,
    }
