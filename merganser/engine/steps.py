"""One step at work: its slots filled, its tiles run, its reductions gathered."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Any

import numpy as np

from merganser.algebra import Expression
from merganser.algebra.computed import ByRows, Derivation, Derived, Whole
from merganser.algebra.expression import Apply, Constant, Reduce, Round
from merganser.checkpoint.digest import chunk_digests
from merganser.checkpoint.dtypes import F32, F64
from merganser.engine.kernels import compiler
from merganser.engine.kernels.loops import BLOCK
from merganser.engine.ledger import Kept, Ledger, Made
from merganser.engine.memory import SAMPLE
from merganser.engine.plan import Output, Step, reducing_step
from merganser.engine.program import Bindings, Program, build
from merganser.engine.scratch import Scratch
from merganser.engine.select import Selection, magnitudes
from merganser.engine.sources import Source, open_source
from merganser.errors import NonFiniteError

Array = np.ndarray[Any, Any]
Write = Callable[[Output, int, memoryview], None]
_RUN = 2048
"""Neighbouring elements read together for a sample."""
_FLUSH = 1 << 31
"""Elements after which a worker's 32-bit counts are added to the 64-bit ones."""


class Buffers:
    """The memory of one worker: a byte buffer per slot, kept from tile to tile."""

    def __init__(self) -> None:
        self._slots: dict[object, Array] = {}

    def take(self, slot: object, nbytes: int) -> Array:
        """At least `nbytes` bytes, the same ones every time."""
        held = self._slots.get(slot)
        if held is None or len(held) < nbytes:
            held = self._slots[slot] = np.empty(max(nbytes, 64), np.uint8)
        return held


class Counts:
    """What one worker counted in one step: bins and values above, per selection."""

    def __init__(self, widths: Iterable[int]) -> None:
        self.bins = [np.zeros(max(1, width), np.uint64) for width in widths]
        self.above = np.zeros(max(1, len(self.bins)), np.int64)
        self.seen = 0


class StepRun:
    """A step in progress. Tiles may run on any thread in any order; `finish` is called once after the last."""

    def __init__(
        self,
        step: Step,
        ledger: Ledger,
        *,
        tile: int,
        bins: int,
        write: Write | None,
    ) -> None:
        self.step = step
        self.ledger = ledger
        self.values = ledger.values
        self.context = Known(ledger)
        self.write = write
        self.tile = tile
        self.allow_nonfinite = ledger.allow_nonfinite
        self.tiles = -(-step.size // tile)
        self.next = 0
        self.finished = 0
        self.nonfinite = 0
        self.bytes_per_tile = step.read_bytes // max(1, self.tiles)
        self.lock = threading.Lock()
        self._use(step.program)
        self.bindings = self.opened_bindings = step.bindings
        self.digest_slots = step.digests
        self.digests: dict[int, dict[int, list[bytes]]] = {slot: {} for slot in step.digests}
        self.output_digests: dict[int, list[bytes]] = {}
        self.sources: dict[int, Source] = {}
        self._open_sources()
        self.reductions = step.reductions
        self._fill_slots()
        # A stage that goes round once more, for one threshold, meets what the first round settled.
        self.known = {id(r) for r in step.reductions if id(r) in ledger.values}
        self.selections = [self._selection(r, bins) for r in step.reductions if r.kind == "kth_magnitude"]
        self._open_round(first=True)

    # Preparing --------------------------------------------------------------------------------------------------------

    def _use(self, program: Program | None) -> None:
        self.program = program
        self.kernel = compiler.kernel(program) if program is not None else None

    def _selection(self, reduction: Reduce, bins: int) -> Selection:
        """The search for a threshold: one that all tensors share, one of this tensor, or one that is over."""
        wide = self.program.wide if self.program else False
        if id(reduction) in self.known:
            return Selection(0, 0, wide=wide, bins=bins)
        shared = self.ledger.selections.get(id(reduction))
        return shared or Selection(self._rank(reduction), self.step.size, wide=wide, bins=bins)

    def _rank(self, reduction: Reduce) -> int:
        return reduction.rank if reduction.at is None else int(evaluate(reduction.at, self.values, {}))

    def _fill_slots(self) -> None:
        memo: dict[int, Any] = {}
        scalars = [evaluate(node, self.values, memo) for node in self.bindings.scalars]
        self.scalars = np.array(scalars or [0.0], np.float64)
        self.keys = np.frombuffer(b"".join(map(_key, self.bindings.draws)) or bytes(8), np.uint32).copy()

    def _open_round(self, *, first: bool) -> None:
        reductions = self.program.having("sum", "max") if self.program else []
        self.partials = np.zeros((-(-self.step.size // BLOCK) or 1, len(reductions)), np.float64)
        if first and self.step.size:
            self._guess()
        self.brackets = np.array([s.bracket() for s in self.selections] or [(0, 0, 0)], np.int64)
        self.counts: dict[int, Counts] = {}
        self.totals: list[tuple[Array, Array] | None] = [None] * len(self.selections)
        self.above = [0] * len(self.selections)

    def _guess(self) -> None:
        """Evaluate what is selected from on a sample, spread evenly in runs, and narrow the brackets by it."""
        mine = self._own_selections()
        if not mine:
            return
        operands = {id(operand): operand for _, operand, _ in mine}
        assert self.program is not None
        size, wide = self.step.size, self.program.wide
        runs = SAMPLE // _RUN
        starts = [0] if size <= SAMPLE else [int(k * (size - _RUN) / (runs - 1)) for k in range(runs)]
        dtype = F64 if wide else F32
        program, bindings = build([("store", operand, dtype) for operand in operands.values()], wide)
        sampler = _Filled(program, bindings, self.values, self.sources)
        found = sampler.pieces(starts, size if size <= SAMPLE else _RUN, len(operands))
        ordered = {key: magnitudes(values) for key, values in zip(operands, found, strict=True)}
        for _, operand, selection in mine:
            selection.guess(ordered[id(operand)])

    def _own_selections(self) -> list[tuple[Reduce, Expression, Selection]]:
        """The threshold searches over this tensor alone."""
        pairs = [
            (reduction, operand)
            for reduction, operand in zip(self.reductions, self.step.operands, strict=True)
            if reduction.kind == "kth_magnitude"
        ]
        return [
            (reduction, operand, selection)
            for (reduction, operand), selection in zip(pairs, self.selections, strict=True)
            if not self.ledger.is_shared(reduction)
        ]

    def _open_sources(self) -> None:
        """Open what the loads read from; sources are kept by the identity of their load."""
        for load in self.bindings.loads:
            if load.identity not in self.sources:
                self.sources[load.identity] = open_source(load, self.context)

    # Tiles ------------------------------------------------------------------------------------------------------------

    def run_tile(self, index: int, worker: int, buffers: Buffers) -> int:
        """Read, compute and write one tile. Returns the bytes moved."""
        start = index * self.tile
        count = min(self.tile, self.step.size - start)
        moved = 0
        pointers = []
        for slot, load in enumerate(self.bindings.loads):
            nbytes = load.dtype.nbytes(count)
            buffer = buffers.take(slot, nbytes)
            view = buffer[:nbytes].data
            self.sources[load.identity].read(view, start)
            moved += nbytes
            if slot in self.digest_slots:
                self.digests[slot][index] = chunk_digests(view, load.dtype)
            pointers.append(buffer.ctypes.data)
        output = self.step.output
        result = None
        if output is not None:
            nbytes = output.dtype.nbytes(count)
            result = buffers.take(0 if output.is_copy else "out", nbytes)[:nbytes]
        # A copy of what a parent holds was checked when it came in.
        if self.program is not None and (
            self.allow_nonfinite or output is None or output.copied_from is None
        ):
            self._call(self.program, start, count, worker, pointers, result)
        if output is not None and result is not None:
            view = result.data
            # A copy is the very bytes that were digested when they came in.
            known = (
                self.digests[0].get(index) if output.copied_from is not None and 0 in self.digests else None
            )
            self.output_digests[index] = known or chunk_digests(view, output.dtype)
            assert self.write is not None
            self.write(output, start, view)
            moved += len(view)
        return moved

    def _call(
        self, program: Program, start: int, count: int, worker: int, pointers: list[int], result: Array | None
    ) -> None:
        bad = np.zeros(1, np.int64)
        counts = None
        if self.selections:
            counts = self.counts.get(worker)
            if counts is None:
                counts = self.counts[worker] = Counts(s.bracket()[2] for s in self.selections)
        arguments = [*pointers, self.scalars.ctypes.data, self.keys.ctypes.data]
        if program.having("store"):
            assert result is not None
            arguments.append(result.ctypes.data)
        arguments += [bad.ctypes.data, self.partials[start // BLOCK :].ctypes.data]
        arguments += [bins.ctypes.data for bins in counts.bins] if counts else []
        arguments += [self.brackets.ctypes.data, counts.above.ctypes.data if counts else bad.ctypes.data]
        assert self.kernel is not None
        self.kernel(count, start, *arguments)
        if counts is not None:
            counts.seen += count
            if counts.seen >= _FLUSH:
                self._flush(counts)
        if bad[0]:
            if not self.allow_nonfinite:
                assert result is not None
                raise self._nonfinite(start, count, result)
            with self.lock:
                self.nonfinite += int(bad[0])

    def _flush(self, counts: Counts) -> None:
        with self.lock:
            for k, bins in enumerate(counts.bins):
                held, (found, marks) = self.totals[k], _parts(bins)
                if held is None:
                    self.totals[k] = found.astype(np.int64), marks.copy()
                else:
                    self.totals[k] = held[0] + found, held[1] | marks
                self.above[k] += int(counts.above[k])
                bins[:] = 0
            counts.above[:] = 0
            counts.seen = 0

    def _counted(self, k: int) -> tuple[int, Array, Array]:
        """What all workers found for a selection: how many values above, how many in each bin, and its marks."""
        above, parts = self.above[k], [held for held in (self.totals[k],) if held is not None]
        for counts in self.counts.values():
            above += int(counts.above[k])
            parts.append(_parts(counts.bins[k]))
        if not parts:
            return above, np.zeros(1, np.int64), np.zeros(1, np.uint32)
        found, marks = parts[0]
        for more, others in parts[1:]:
            found = np.add(found, more, dtype=np.int64 if self.step.size >= 1 << 32 else np.uint32)
            marks = marks | others
        return above, found, marks

    def _nonfinite(self, start: int, count: int, result: Array) -> NonFiniteError:
        """Name the first bad element. What the parents hold is finite, as it was checked when it was read."""
        output = self.step.output
        assert output is not None
        values = result.view(output.dtype.numpy).astype(np.float64)
        wrong = np.flatnonzero(~np.isfinite(values))
        at = int(wrong[0])
        place = [int(k) for k in np.unravel_index(start + at, output.shape)] if output.shape else []
        kind = "NaN" if np.isnan(values[at]) else "Inf"
        return NonFiniteError(
            f"tensor {output.name!r} would hold {kind} at {place} "
            f"({len(wrong)} such values in this stretch of {count}): the parents are finite there, so the formula or "
            f"the range of {output.dtype.torch_name} made it. "
            "Nothing was sealed; where a checkpoint is written, --allow-nonfinite lets it pass"
        )

    # Finishing --------------------------------------------------------------------------------------------------------

    def finish(self) -> bool:
        """Gather what the tiles found. False: another round over the tiles is needed (a threshold is not exact yet)."""
        columns, found = (
            iter(self.partials[: -(-self.step.size // BLOCK)].T),
            iter(range(len(self.selections))),
        )
        for reduction in self.reductions:
            if reduction.kind != "kth_magnitude":
                column = next(columns)
                if id(reduction) not in self.known:
                    self.ledger.add_partials(reduction, column)
                continue
            k = next(found)
            if id(reduction) in self.known:
                continue
            if self.ledger.is_shared(reduction):
                self.ledger.add_counts(reduction, *self._counted(k))
                continue
            self.selections[k].learn(*self._counted(k))
            value = self.selections[k].value
            if value is not None:
                self.ledger.settle(reduction, value)
        again = [part for part in self._own_selections() if not part[2].done]
        if again:
            self._look_again(again)
        return not again

    def release(self) -> None:
        """Let go of what the sources hold: the step is done, and only its digests are still wanted."""
        self.sources = {}

    def _look_again(self, parts: list[tuple[Reduce, Expression, Selection]]) -> None:
        """Another round, for the thresholds alone; sums are known."""
        self.step = reducing_step([r for r, _, _ in parts], [operand for _, operand, _ in parts])
        self.selections = [selection for _, _, selection in parts]
        self.reductions, self.bindings = self.step.reductions, self.step.bindings
        self._use(self.step.program)
        self._open_sources()
        self.digest_slots = ()
        self._fill_slots()
        self._open_round(first=False)
        self.next = self.finished = 0


def _parts(bins: Array) -> tuple[Array, Array]:
    """Counts and marks: the lower and the upper halves of bins."""
    halves = bins.astype("<u8", copy=False).view("<u4")
    return halves[::2], halves[1::2]


class _Filled:
    """A program with its slots filled, for stretches of up to `count` elements outside the tile machinery."""

    def __init__(
        self,
        program: Program,
        bindings: Bindings,
        values: dict[int, float],
        sources: dict[int, Source],
    ) -> None:
        memo: dict[int, Any] = {}
        self.program = program
        self.kernel = compiler.kernel(program)
        self.loads = bindings.loads
        self.sources = [sources[load.identity] for load in self.loads]
        self.scalars = np.array(
            [evaluate(node, values, memo) for node in bindings.scalars] or [0.0], np.float64
        )
        self.keys = np.frombuffer(b"".join(map(_key, bindings.draws)) or bytes(8), np.uint32).copy()
        self.slots = self.scalars.ctypes.data, self.keys.ctypes.data

    def run(self, start: int, count: int, outputs: list[int]) -> None:
        """Compute `count` elements from `start` on into the arrays at the given addresses. Any thread may call it."""
        with Scratch() as scratch:
            buffers = []
            for load, source in zip(self.loads, self.sources, strict=True):
                buffers.append(scratch.take(count * load.dtype.itemsize))
                source.read(buffers[-1].data, start)
            self._call(start, count, buffers, outputs)

    def pieces(self, starts: list[int], count: int, outputs: int) -> list[Array]:
        """`count` elements from each start on, one after the other, for each of the outputs."""
        dtype = np.dtype(np.float64 if self.program.wide else np.float32)
        found = [np.empty(len(starts) * count, dtype) for _ in range(outputs)]
        held = [np.empty(len(starts) * count, f"u{load.dtype.itemsize}") for load in self.loads]
        for k, start in enumerate(starts):
            for source, array in zip(self.sources, held, strict=True):
                source.read(array[k * count : (k + 1) * count].view(np.uint8).data, start)
        once = not self.program.draws  # a draw depends on the element's place
        for k, start in enumerate(starts[:1] if once else starts):
            part = slice(k * count, None if once else (k + 1) * count)
            addresses = [array[part].ctypes.data for array in found]
            self._call(start, len(found[0][part]), [array[part] for array in held], addresses)
        return found

    def _call(self, start: int, count: int, buffers: list[Array], outputs: list[int]) -> None:
        none = np.zeros(3, np.int64)
        front = [array.ctypes.data for array in buffers]
        self.kernel(count, start, *front, *self.slots, *outputs, *[none.ctypes.data] * 4)


class Known:
    """What a run knows, for the sources: scalars, and what functions of whole tensors made."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.allow_nonfinite = ledger.allow_nonfinite

    def formula(self, node: Expression) -> Source:
        """A source that computes a formula."""
        return Formula(node, self)

    def number(self, node: Expression) -> float:
        """The value of a scalar."""
        return evaluate(node, self.ledger.values, {})

    def made(self, load: Whole, make: Callable[[], tuple[Array, ...]]) -> Made:
        """Results that are there already, or made now."""
        return self.ledger.made(load, make)

    def kept(self, load: ByRows) -> Kept | None:
        """Where flags are kept, if they are."""
        return self.ledger.kept(load)


class Formula(Source):
    """A formula inside a rearranging node, computed for the stretch that is asked for."""

    def __init__(self, node: Expression, context: Known) -> None:
        super().__init__(F64 if node.wide else F32)
        program, bindings = build([("store", node, self.dtype)], node.wide)
        opened: dict[int, Source] = {}
        for load in bindings.loads:
            opened[load.identity] = open_source(load, context)
        self.filled = _Filled(program, bindings, context.ledger.values, opened)

    def read(self, view: memoryview, start: int) -> None:
        """Fill `view` with the formula's values."""
        out = np.frombuffer(view, np.uint8)
        done, count = 0, len(out) // self.dtype.itemsize
        while done < count:
            # Random draws take the upper half of the index as one number for a call.
            part = min(count - done, (1 << 32) - (start + done) % (1 << 32))
            self.filled.run(start + done, part, [out.ctypes.data + done * self.dtype.itemsize])
            done += part


def evaluate(node: Expression, values: dict[int, float], memo: dict[int, Any]) -> float:
    """A scalar expression as a number, in f64, given the reductions it rests on."""
    if isinstance(node, Constant):
        return node.value
    if isinstance(node, Reduce):
        return values[id(node)]
    found = memo.get(id(node))
    if found is None:
        if isinstance(node, Derived):
            return _derived(node.derivation, values, memo)[node.index]
        if isinstance(node, Round):
            found = float(np.float64(evaluate(node.argument, values, memo)).astype(node.dtype.numpy))
        else:
            assert isinstance(node, Apply)
            found = float(node.operation.on_numbers(*(evaluate(a, values, memo) for a in node.arguments)))
        memo[id(node)] = found
    return float(found)


def _derived(derivation: Derivation, values: dict[int, float], memo: dict[int, Any]) -> tuple[float, ...]:
    if id(derivation) not in memo:
        numbers = [evaluate(operand, values, memo) for operand in derivation.operands]
        with np.errstate(all="ignore"):
            made = derivation.function(*numbers, *derivation.constants)
        memo[id(derivation)] = tuple(float(number) for number in np.atleast_1d(made))
    found: tuple[float, ...] = memo[id(derivation)]
    return found


def _key(parts: tuple[str, ...]) -> bytes:
    """64 key bits from what names a stream of random numbers."""
    text = "".join(f"{len(part)}:{part}" for part in parts)
    return blake2b(text.encode(), digest_size=8, person=b"merganser").digest()
