"""The plan: what will be read, computed and written, known in full before the first tensor byte is read.

Every output tensor becomes a *task*: a chain of *steps*, each one kernel over all elements of the tensor. An expression
is cut into steps at its reductions: a norm or a threshold must be known before what uses it can be computed. A
reduction over several tensors (whole-model scope) cuts the plan into *stages*: all tasks of one end before the next.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from merganser._version import __version__
from merganser.algebra import Expression, Leaf, LowRank, Weights
from merganser.algebra.computed import ByRows, ColumnSums, Derived, Whole, function_name
from merganser.algebra.expression import Apply, Constant, Draw, Load, Reduce, Round, Written
from merganser.algebra.labelled import relabelled
from merganser.algebra.rearranged import Array, Joined, Mixed, Product, Reshaped, Spread, Taken
from merganser.algebra.weights import need_numbers
from merganser.architectures.ties import aliases
from merganser.checkpoint import Checkpoint, DType, StoredFile, StoredTensor
from merganser.checkpoint.dtypes import F32, F64
from merganser.engine.companions import check_filled
from merganser.engine.program import Bindings, Program, build
from merganser.errors import AlgebraError, RequestError, listing

DEGREE_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor of the result: its place is assigned when the files are laid out."""

    name: str
    dtype: DType
    expression: Expression

    @property
    def shape(self) -> tuple[int, ...]:
        """The expression's."""
        return self.expression.shape

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.expression.size

    @property
    def nbytes(self) -> int:
        """Number of bytes in the file."""
        return self.dtype.nbytes(self.size)

    @property
    def copied_from(self) -> StoredTensor | None:
        """The stored tensor whose bytes this is, unchanged."""
        leaf = self.expression
        return leaf.tensor if isinstance(leaf, Leaf) and leaf.tensor.dtype == self.dtype else None

    @property
    def is_copy(self) -> bool:
        """Whether the elements lie ready in the output's dtype: nothing is computed with them."""
        return isinstance(self.expression, Load) and self.expression.dtype == self.dtype


@dataclass(frozen=True, slots=True)
class Step:
    """One kernel over `size` elements. `reductions` are its reducing sinks, in order; `output` its stored one."""

    program: Program | None
    bindings: Bindings
    size: int
    reductions: tuple[Reduce, ...] = ()
    operands: tuple[Expression, ...] = ()
    output: Output | None = None
    digests: tuple[int, ...] = ()
    """The loads whose content this step is the first to read, and therefore digests."""

    @property
    def read_bytes(self) -> int:
        """Bytes read from parents, once over."""
        return sum(map(_load_bytes, self.bindings.loads))

    @property
    def selects(self) -> bool:
        """Whether the step looks for a k-th magnitude (and so reads a sample, then everything once or more)."""
        return any(reduction.kind == "kth_magnitude" for reduction in self.reductions)


@dataclass(frozen=True, slots=True)
class Task:
    """The chain of steps for one tensor."""

    name: str
    steps: tuple[Step, ...]

    @property
    def output(self) -> Output | None:
        """What the last step stores, if anything."""
        return self.steps[-1].output

    @property
    def work_bytes(self) -> int:
        """Bytes read and written, the measure of progress."""
        written = self.output.nbytes if self.output else 0
        return sum(step.read_bytes for step in self.steps) + written


@dataclass(frozen=True, slots=True)
class Stage:
    """Tasks that may run in any order. `shared` are the whole-model reductions they contribute to."""

    tasks: tuple[Task, ...]
    shared: tuple[Reduce, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """All that will happen."""

    stages: tuple[Stage, ...]
    outputs: tuple[Output, ...]
    checkpoints: tuple[Checkpoint, ...]
    origin: Checkpoint | None
    unused: Mapping[str, list[str]]
    """Tensors of each parent that nothing reads."""
    forms: Mapping[str, int]
    """Every distinct formula, in words, and how many tensors it makes."""
    files: Mapping[str, bytes | None]
    """Small files that the result has in place of the origin's; None for one it no longer has."""
    notes: tuple[Mapping[str, Any], ...] = ()
    """What operations report of themselves."""
    stem: str = "model"
    """What the tensor files are called, where they are no model."""
    parts: tuple[str, ...] = ()
    """Files with weights of their own that are taken over whole from the origin's directory."""

    @property
    def file_stem(self) -> str:
        """What the tensor files are called: of a model as the origin's where a library looks for that name."""
        return self.origin.weights_stem if self.stem == "model" and self.origin is not None else self.stem

    @property
    def read_bytes(self) -> int:
        """Bytes read from parents, every pass counted."""
        return sum(step.read_bytes for stage in self.stages for task in stage.tasks for step in task.steps)

    @property
    def write_bytes(self) -> int:
        """Bytes of tensors written."""
        return sum(output.nbytes for output in self.outputs)

    @property
    def work_bytes(self) -> int:
        """Bytes read and written."""
        return sum(task.work_bytes for stage in self.stages for task in stage.tasks)

    @property
    def steps(self) -> list[Step]:
        """All steps."""
        return [step for stage in self.stages for task in stage.tasks for step in task.steps]

    @property
    def read_in_parts(self) -> list[StoredTensor]:
        """Stored tensors that no step reads from end to end, so that none can digest them on the way."""
        digested = {
            id(load.tensor) for step in self.steps for load in step.bindings.loads if isinstance(load, Leaf)
        }
        found = {}
        for step in self.steps:
            for leaf in _leaves(*step.bindings.loads):
                if isinstance(leaf, Leaf) and id(leaf.tensor) not in digested:
                    found[id(leaf.tensor)] = leaf.tensor
        return list(found.values())

    @property
    def files_read(self) -> list[StoredFile]:
        """The files that tensors are read from."""
        found = {id(t.file): t.file for step in self.steps for t in _stored(step)}
        return list(found.values())

    def fingerprint(self, *more: Any) -> str:
        """A digest of everything that the result's bytes depend on: formulas, parents as they lie on disk, version."""
        digests = _Merkle()
        state = hashlib.sha256(json.dumps([__version__, *more], sort_keys=True, default=str).encode())
        for checkpoint in self.checkpoints:
            for file in checkpoint.files:
                state.update(repr((str(file.path), file.identity)).encode())
        state.update(self.stem.encode())
        for name, content in sorted(self.files.items()):
            state.update(
                f"{name}|{None if content is None else hashlib.sha256(content).hexdigest()}|".encode()
            )
        for output in self.outputs:
            state.update(
                f"{output.name}|{output.dtype}|{output.shape}|".encode() + digests.of(output.expression)
            )
        return state.hexdigest()


def plan_weights(
    weights: Weights,
    *,
    dtype: DType | None = None,
    degree: float = 1.0,
    partial: bool = False,
) -> Plan:
    """The plan that makes `weights` a checkpoint.

    `dtype` is that of all float tensors (default: each as in the origin). `degree` is what the weights must be: 1 for a
    model, 0 to save a task vector. `partial` allows tensors of the origin to be missing.

    Raises `AlgebraError` where the degree is wrong or tensors are missing.
    """
    _check_codes(weights, dtype)
    _check_degree(weights, degree)
    _check_coverage(weights, partial)
    outputs = []
    precisions = _precisions(weights)
    for name in weights:
        expression = weights[name]
        if expression.is_scalar:
            raise AlgebraError(
                f"{name!r} is a number, not a tensor: a norm or dot product cannot be saved as weights"
            )
        outputs.append(Output(name, _output_dtype(weights, name, dtype, precisions), expression))
    if not outputs:
        raise AlgebraError(f"{weights.label!r} has no tensors to save")
    stages = _stages([(output.name, output, ()) for output in outputs])
    files, notes = _files_and_notes(weights)
    return Plan(
        stages,
        tuple(outputs),
        weights.checkpoints,
        weights.origin,
        _unused(weights.checkpoints, stages),
        _forms(outputs),
        files,
        (
            *weights.notes,
            *notes,
            *_precision_note(weights, dtype, precisions),
            *_float8_note(outputs),
            *_licence_note(weights),
        ),
        weights.stem,
    )


def plan_scalars(targets: Mapping[str, Sequence[Expression]], checkpoints: Iterable[Checkpoint]) -> Plan:
    """The plan that computes scalar expressions (norms, counts, dot products) and writes nothing."""
    checkpoints = tuple(checkpoints)
    need_numbers(checkpoints)
    check_filled(checkpoints)
    stages = _stages([(name, None, tuple(expressions)) for name, expressions in targets.items()])
    return Plan(stages, (), checkpoints, None, {}, {}, {})


def changed_files(weights: Weights) -> dict[str, bytes | None]:
    """The small files that stand in for the origin's, config.json among them where named axes changed it."""
    return _files_and_notes(weights)[0]


def _files_and_notes(weights: Weights) -> tuple[dict[str, bytes | None], tuple[Mapping[str, Any], ...]]:
    files = dict(weights.files)
    reading, origin = weights.reading, weights.origin
    if reading is None or origin is None:
        if reading is None and (told := relabelled(weights)) is not None:
            files["config.json"] = json.dumps(told, indent=2, ensure_ascii=False).encode() + b"\n"
        return files, ()
    from merganser.architectures.beside import as_json, followed_beside

    if (config := reading.followed()) != (origin.config or {}):
        files["config.json"] = as_json(config)
    beside, notes = followed_beside(reading, origin, files)
    return files | beside, tuple(notes)


# Checks ---------------------------------------------------------------------------------------------------------------


def _check_codes(weights: Weights, dtype: DType | None) -> None:
    """A quantized checkpoint is carried whole, every tensor as it is under its own name, or not at all."""
    parents = [*weights.checkpoints, *([weights.origin] if weights.origin is not None else [])]
    coded = next((checkpoint for checkpoint in parents if checkpoint.encoding is not None), None)
    if coded is None:
        return
    carried = weights.keys() == coded.tensors.keys() and all(
        isinstance(leaf := weights[name], Leaf) and leaf.tensor is tensor
        for name, tensor in coded.tensors.items()
    )
    if not carried or (
        dtype is not None and any(t.dtype.is_float and t.dtype != dtype for t in coded.tensors.values())
    ):
        coded.need_numbers()


def _check_degree(weights: Weights, degree: float) -> None:
    wrong: dict[float, list[str]] = {}
    for name in weights:
        entry = weights.entry(name)
        if not entry.carried and not abs(entry.degree - degree) <= DEGREE_TOLERANCE:
            wrong.setdefault(round(entry.degree, 6), []).append(name)
    if not wrong:
        return
    sums, names = max(wrong.items(), key=lambda item: len(item[1]))
    share = "" if len(names) == len(weights) else f" (tensors {listing(names, 3)})"
    if degree == 1.0:
        remedy = (
            "That is a task vector: add it to a base, or pass degree=0 (in a recipe degree: 0) "
            "to save the vector itself"
            if sums == 0.0
            else f"Normalise the weights so that they sum to 1, or pass degree={sums:g} "
            f"(in a recipe degree: {sums:g}) if this is meant"
        )
        raise AlgebraError(f"{weights.label!r} sums to {sums:g} of a model, not to one{share}. {remedy}")
    raise AlgebraError(f"{weights.label!r} has degree {sums:g}, not {degree:g}{share}")


def _check_coverage(weights: Weights, partial: bool) -> None:
    if weights.origin is None or partial:
        return
    expected: Iterable[str] = weights.origin.tensors if weights.reading is None else weights.reading.tensors
    missing = [name for name in expected if name not in weights and name not in weights.passed_over]
    if not missing:
        return
    meant = all(name in weights.dropped for name in missing)
    how = "they were left out by select, drop or rename" if meant else "no formula makes them"
    raise AlgebraError(
        f"the result would lack {len(missing)} tensors that {weights.origin.name!r} has ({how}): "
        f"{listing(missing)}. Pass partial=True if that is meant"
    )


def _output_dtype(weights: Weights, name: str, dtype: DType | None, precisions: Mapping[str, DType]) -> DType:
    """The dtype that a tensor is written in: `dtype` if it is a float one, else that of the origin's tensor.

    A tensor of another parent keeps its own where that is an exception there (norms in F32); in what that parent is
    stored in for the most part it takes what the origin is stored in, so that the result has one precision.
    """
    expression = weights[name]
    if expression.carried:
        assert isinstance(expression, Load)
        return expression.dtype
    if dtype is not None:
        if not dtype.is_float:
            raise RequestError(f"the output dtype must be a float type, not {dtype}")
        return dtype
    if isinstance(expression, Written):
        return expression.dtype
    if weights.stem != "model":  # factors of an adapter: as they were computed
        return F64 if expression.wide else F32
    if weights.reading is None and weights.origin is not None:
        # A tied matrix may be written out under more names than the origin has.
        for known in (name, weights.aliases.get(name, name)):
            if known in weights.origin.tensors:
                return weights.origin.tensors[known].dtype
    for leaf in _leaves(expression):
        stored = leaf.tensor if isinstance(leaf, Leaf) else leaf.delta.left
        usual = stored.dtype == precisions.get(stored.parent)
        return precisions.get(weights.origin.name, stored.dtype) if usual and weights.origin else stored.dtype
    if weights.origin is not None and (dtype := _main_dtype(weights.origin)) is not None:
        return dtype
    raise AlgebraError(f"tensor {name!r} depends on no stored tensor, so its dtype is not known; pass dtype=")


def _float8_note(outputs: Iterable[Output]) -> Iterator[Mapping[str, Any]]:
    """What a result opens in whose numbers were rounded to float8."""
    made = next((o.dtype for o in outputs if o.dtype.name.startswith("F8") and not o.is_copy), None)
    if made is not None:
        yield {
            "step": f"dtype {made.torch_name}",
            "opens in": "transformers and diffusers, which convert it on loading",
            "is not": "FP8 with scales, as quant_method fp8 reads it",
        }


def _main_dtype(checkpoint: Checkpoint) -> DType | None:
    """The float dtype of most of a checkpoint's bytes."""
    sizes: dict[DType, int] = {}
    for tensor in checkpoint.tensors.values():
        if tensor.dtype.is_float:
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.nbytes
    return max(sizes, key=lambda dtype: sizes[dtype], default=None)


def _precisions(weights: Weights) -> dict[str, DType]:
    """What each parent that is a model is stored in, for the most part."""
    found = {checkpoint.name: _main_dtype(checkpoint) for checkpoint in weights.checkpoints}
    return {name: dtype for name, dtype in found.items() if dtype is not None}


def _precision_note(
    weights: Weights, dtype: DType | None, precisions: Mapping[str, DType]
) -> list[dict[str, Any]]:
    """What the result is written in, where nobody said and the parents are not stored alike."""
    if dtype is not None or weights.stem != "model" or weights.origin is None:
        return []
    own = precisions.get(weights.origin.name)
    others = {name: found.torch_name for name, found in precisions.items() if found != own}
    if own is None or not others or any(isinstance(weights[name], Written) for name in weights):
        return []
    return [
        {
            "step": "dtype",
            "written in": f"{own.torch_name}, as {weights.origin.name} is stored",
            "stored otherwise": others,
            "set by": "dtype in the recipe (dtype= in Python)",
        }
    ]


def _licence_note(weights: Weights) -> list[dict[str, Any]]:
    """The licences of the parents' cards, where they state different ones; the result takes over only one card."""
    if weights.origin is None or weights.stem != "model":
        return []
    stated = {
        one.name: one.licence for one in (weights.origin, *weights.checkpoints) if one.licence is not None
    }
    if len(set(stated.values())) < 2:
        return []
    return [
        {
            "step": "licences",
            "stated": stated,
            "to do": f"the card of the result is that of {weights.origin.name}: state in it what all of them allow",
        }
    ]


def _unused(checkpoints: Iterable[Checkpoint], stages: Iterable[Stage]) -> dict[str, list[str]]:
    used = {
        id(tensor)
        for stage in stages
        for task in stage.tasks
        for step in task.steps
        for tensor in _stored(step)
    }
    result = {}
    for checkpoint in checkpoints:
        left = [name for name, tensor in checkpoint.tensors.items() if id(tensor) not in used]
        copies = aliases(checkpoint) if left else {}
        # A copy of a tied matrix is not lost: its other name is read, and copies that differ are read under both.
        left = [name for name in left if name not in copies or copies[name] in left]
        if left:
            result[checkpoint.name] = left
    return result


def _stored(step: Step) -> list[StoredTensor]:
    found = []
    for load in _leaves(*step.bindings.loads):
        found += [load.tensor] if isinstance(load, Leaf) else [load.delta.left, load.delta.right]
    return found


def _load_bytes(load: Expression) -> int:
    """Bytes read to make a load, about: what is taken from a tensor counts, not the whole of it."""
    if isinstance(load, Leaf):
        return load.tensor.nbytes
    if isinstance(load, LowRank):
        return load.delta.left.nbytes + load.delta.right.nbytes
    if isinstance(load, Taken):
        return load.dtype.nbytes(load.size)
    return sum(leaf.tensor.nbytes for leaf in _leaves(load) if isinstance(leaf, Leaf))


# Cutting expressions into stages and steps ----------------------------------------------------------------------------

Target = tuple[str, Output | None, tuple[Expression, ...]]
"""A task to make: its name, the tensor it stores, the scalars it must know."""


def _stages(targets: Sequence[Target]) -> tuple[Stage, ...]:
    known: set[int] = set()
    digested: set[int] = set()
    stages: list[Stage] = []
    shared = _shared_reductions([e for _, output, scalars in targets for e in _roots(output, scalars)])
    for group in shared:
        stages.append(Stage(tuple(_shared_tasks(group, known, digested)), tuple(group)))
        known.update(id(reduction) for reduction in group)
    tasks = []
    for name, output, scalars in targets:
        steps = _chain(_roots(output, scalars), set(known))
        if output is not None:
            steps.append(_last_step(output))
        if steps:
            tasks.append(Task(name, tuple(_with_digests(steps, digested))))
    stages.append(Stage(tuple(tasks)))
    return tuple(stages)


def _roots(output: Output | None, scalars: Sequence[Expression]) -> list[Expression]:
    return [output.expression] if output else list(scalars)


def _last_step(output: Output) -> Step:
    if output.is_copy:
        load = output.expression
        assert isinstance(load, Load)
        if load.carried:
            return Step(None, Bindings((load,), (), ()), output.size, output=output)
        program, bindings = build([("check", load, output.dtype)], load.wide)
        return Step(program, bindings, output.size, output=output)
    program, bindings = build([("store", output.expression, output.dtype)], output.expression.wide)
    return Step(program, bindings, output.size, output=output)


SINKS = {"sum": "sum", "max": "max", "kth_magnitude": "histogram"}


def reducing_step(reductions: Sequence[Reduce], operands: Sequence[Expression]) -> Step:
    """One pass that computes several reductions over operands of one size."""
    wide = any(operand.wide for operand in operands)
    # One threshold over tensors of which some are F64 is looked for among f64 bits in all of them.
    targets = [
        (
            SINKS[r.kind],
            operand,
            F64 if r.kind == "kth_magnitude" and any(o.wide for o in r.operands) else None,
        )
        for r, operand in zip(reductions, operands, strict=True)
    ]
    program, bindings = build(targets, wide)
    return Step(program, bindings, operands[0].size, tuple(reductions), tuple(operands))


def _chain(roots: Sequence[Expression], known: set[int]) -> list[Step]:
    """The steps that make every reduction below `roots` known, innermost first; those of one level share passes.

    Tasks run in any order, so each has the steps for all that it needs; what is known by then is not computed again.
    """
    levels: dict[int, int] = {}
    found: dict[tuple[int, int, bool], list[Reduce]] = {}
    for node in _walk(roots, lambda n: isinstance(n, Reduce) and id(n) in known):
        if id(node) in known:
            levels[id(node)] = 0
            continue
        below = max((levels[id(argument)] for argument in node.arguments), default=0)
        if isinstance(node, Reduce):
            operand = node.operands[0]
            found.setdefault((below, operand.size, operand.wide), []).append(node)
            known.add(id(node))
            below += 1
        levels[id(node)] = below
    return [
        reducing_step(group, [r.operands[0] for r in group]) for _, group in sorted(found.items(), key=_level)
    ]


def _level(item: tuple[tuple[int, int, bool], list[Reduce]]) -> int:
    return item[0][0]


def _shared_reductions(roots: Sequence[Expression]) -> list[list[Reduce]]:
    """The whole-model reductions, grouped so that none depends on one of its own group or a later one."""
    nodes = _walk(roots)
    if not any(isinstance(node, Reduce) and len(node.operands) != 1 for node in nodes):
        return []
    depth: dict[int, int] = {}
    groups: dict[int, list[Reduce]] = {}
    for node in nodes:
        below = max((depth[id(argument)] for argument in node.arguments), default=0)
        if isinstance(node, Reduce) and len(node.operands) != 1:
            groups.setdefault(below, []).append(node)
            below += 1
        depth[id(node)] = below
    return [groups[level] for level in sorted(groups)]


def _shared_tasks(group: Sequence[Reduce], known: set[int], digested: set[int]) -> list[Task]:
    """One task per tensor, over which all whole-model reductions of the group that see it are computed together."""
    together: dict[tuple[str, int, bool], list[tuple[Reduce, Expression]]] = {}
    for reduction in group:
        for operand in reduction.operands:
            leaves = _leaves(operand)
            stored = [leaf.tensor if isinstance(leaf, Leaf) else leaf.delta.left for leaf in leaves[:1]]
            name = stored[0].name if stored else ""
            together.setdefault((name, operand.size, operand.wide), []).append((reduction, operand))
    tasks = []
    for (name, _, _), pairs in together.items():
        steps = _chain([operand for _, operand in pairs], set(known))
        steps.append(reducing_step([r for r, _ in pairs], [operand for _, operand in pairs]))
        tasks.append(Task(name, tuple(_with_digests(steps, digested))))
    known.update(id(r) for task in tasks for step in task.steps[:-1] for r in step.reductions)
    return tasks


def _with_digests(steps: Sequence[Step], digested: set[int]) -> list[Step]:
    result = []
    for step in steps:
        fresh = []
        for slot, load in enumerate(step.bindings.loads):
            if isinstance(load, Leaf) and id(load.tensor) not in digested:
                digested.add(id(load.tensor))
                fresh.append(slot)
        result.append(replace(step, digests=tuple(fresh)))
    return result


def _walk(roots: Sequence[Expression], stop: Callable[[Expression], bool] | None = None) -> list[Expression]:
    """Every node below `roots`, arguments first, each once; nothing below a node where `stop` holds."""
    seen: set[int] = set()
    order: list[Expression] = []
    stack: list[Expression | None] = list(reversed(roots))
    while stack:
        node = stack.pop()
        if node is None:  # all below the node under it was seen
            ready = stack.pop()
            assert ready is not None
            order.append(ready)
        elif id(node) not in seen:
            seen.add(id(node))
            stack += (node, None)
            if stop is None or not stop(node):
                stack += node.arguments[::-1]
    return order


def _leaves(*expressions: Expression) -> list[Leaf | LowRank]:
    """The stored tensors under expressions, whole-model reductions not entered."""
    nodes = _walk(expressions, lambda n: isinstance(n, Reduce) and len(n.operands) != 1)
    return [node for node in nodes if isinstance(node, Leaf | LowRank)]


# Words and digests ----------------------------------------------------------------------------------------------------


def _forms(outputs: Iterable[Output]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for output in outputs:
        text = "copy of " + output.copied_from.parent if output.copied_from else in_words(output.expression)
        counts[text] = counts.get(text, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


_SYMBOLS = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "div": "/",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "eq": "==",
}


_WORDS: dict[type, str] = {
    Array: "new", Taken: "take", Joined: "concat", Spread: "spread", Mixed: "mix", Product: "rotate",
    Reshaped: "reshape", ColumnSums: "column sums",
}  # fmt: skip


def in_words(node: Expression, depth: int = 12) -> str:
    """A formula as a reader would write it, with parents by name."""
    if depth == 0:
        return "..."
    if isinstance(node, Leaf):
        return node.tensor.parent
    if isinstance(node, LowRank):
        return node.delta.left.parent
    if isinstance(node, Constant):
        return f"{node.value:.6g}"
    if isinstance(node, Draw):
        return "random"
    if isinstance(node, Round):
        return f"{node.dtype.torch_name}({in_words(node.argument, depth - 1)})"
    if isinstance(node, Reduce):
        rank = f", {node.rank}" if node.kind == "kth_magnitude" and len(node.operands) > 1 else ""
        inside = "whole model" if len(node.operands) != 1 else in_words(node.operands[0], depth - 1)
        return f"{node.kind}({inside}{rank})"
    if isinstance(node, Derived):
        return f"{node.derivation.function.__name__}(...)[{node.index}]"
    if isinstance(node, ByRows | Whole):
        function = node.function if isinstance(node, ByRows) else node.making.function
        return f"{function.__name__}({', '.join(in_words(a, depth - 1) for a in node.arguments)})"
    if isinstance(node, Load):
        return f"{_WORDS[type(node)]}({', '.join(in_words(a, depth - 1) for a in node.arguments)})"
    assert isinstance(node, Apply)
    parts = [in_words(argument, depth - 1) for argument in node.arguments]
    symbol = _SYMBOLS.get(node.operation.name)
    if symbol:
        return f"({parts[0]} {symbol} {parts[1]})"
    if node.operation.name == "neg":
        return f"-{parts[0]}"
    return f"{node.operation.name}({', '.join(parts)})"


class _Merkle:
    """Digests of expressions, each node once however often it is shared."""

    def __init__(self) -> None:
        self._known: dict[int, bytes] = {}

    def of(self, root: Expression) -> bytes:
        for node in _walk([root], lambda n: id(n) in self._known):
            if id(node) not in self._known:
                inner = b"".join(self._known[id(argument)] for argument in node.arguments)
                self._known[id(node)] = hashlib.blake2b(
                    _own(node).encode("utf-8", "surrogateescape") + inner, digest_size=16
                ).digest()
        return self._known[id(root)]


def _own(node: Expression) -> str:
    if isinstance(node, Leaf):
        t = node.tensor
        return f"leaf|{t.parent}|{t.name}|{t.dtype}|{t.shape}|{t.file.path}|{t.offset}|"
    if isinstance(node, LowRank):
        d = node.delta
        return f"lowrank|{d.left.parent}|{d.left.name}|{d.right.name}|{d.scale.hex()}|{d.shape}|"
    if isinstance(node, Constant):
        return f"constant|{node.value.hex()}|"
    if isinstance(node, Draw):
        return f"draw|{node.key!r}|{node.shape}|"
    if isinstance(node, Round):
        return f"round|{node.dtype}|"
    if isinstance(node, Reduce):
        return f"reduce|{node.kind}|{node.rank}|{len(node.operands)}|"
    if isinstance(node, Derived):
        by = node.derivation
        return f"derived|{function_name(by.function)}|{by.constants!r}|{len(by.operands)}|{node.index}|"
    if isinstance(node, ByRows):
        kind = "flags" if node.flags else node.reduces
        return f"rows|{function_name(node.function)}|{node.constants!r}|{node.width}|{kind}|"
    if isinstance(node, Whole):
        m = node.making
        made = f"{function_name(m.function)}|{m.constants!r}|{m.shapes}|{m.dtype}"
        return f"whole|{made}|{len(m.operands)}|{node.index}|"
    if isinstance(node, Load):
        arrays = [value for value in _fields(node) if isinstance(value, np.ndarray)]
        plain = [value for value in _fields(node) if value is None or isinstance(value, int | tuple)]
        content = hashlib.sha256(
            b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
        ).hexdigest()
        return f"{type(node).__name__}|{node.shape}|{[a.shape for a in arrays]}|{plain!r}|{content}|"
    assert isinstance(node, Apply)
    return f"{node.operation.name}|"


def _fields(node: Load) -> list[Any]:
    """What a rearranging node holds besides its arguments: arrays, dimensions, and tuples of those made flat."""
    found: list[Any] = []
    for name in map(str, node.__slots__):
        value = getattr(node, name)
        if isinstance(value, Expression) or (
            isinstance(value, tuple) and value and isinstance(value[0], Expression)
        ):
            continue
        found += (
            value if isinstance(value, tuple) and any(isinstance(v, np.ndarray) for v in value) else [value]
        )
    return found
