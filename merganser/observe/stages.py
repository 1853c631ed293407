"""Layer by layer: only some blocks of a model are in memory at a time, and hidden states lie on the disk in between.

The model's own forward runs for every stage; blocks that are not in it are replaced. Those before it give back the
hidden states that were kept, and where the stage ends the pass ends. So masks, positions and whatever else a family
makes for its blocks are its own.
"""

from __future__ import annotations

import ctypes
import gc
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser._facade import compute_scalars
from merganser.algebra import norm
from merganser.engine.memory import resident_bytes
from merganser.engine.workspace import naming
from merganser.errors import NonFiniteError, RequestError, listing
from merganser.observe import forward
from merganser.observe.blocks import Blocks, put_back
from merganser.observe.feed import Batch, Feed
from merganser.observe.forward import Reached
from merganser.observe.inputs import Collector, finished
from merganser.observe.layers import Layer, taps
from merganser.observe.pace import Pace
from merganser.observe.partial import KEPT, Partial
from merganser.observe.sums import Sums
from merganser.running import Model

if TYPE_CHECKING:
    import torch

RESERVE = 96 * 2**20
"""Bytes for what is not counted: temporary sums, the engine's kernels, the allocator's slack."""
_BEFORE = -1


class Stages:
    """As `inputs.collect`, stage by stage; `partial` keeps what finished stages gave, and hidden states."""

    def __init__(
        self,
        blocks: Blocks,
        feed: Feed,
        found: Mapping[str, Layer],
        kinds: Sequence[str],
        partial: Partial,
        pace: Pace,
        memory: int | None,
    ) -> None:
        self.blocks, self.feed, self.found, self.kinds = blocks, feed, found, kinds
        self.partial, self.pace, self.memory = partial, pace, memory
        self.model = blocks.model
        self.count = len(blocks.blocks)
        self.record: dict[str, Any] = {"next": _BEFORE, "parts": [], "read": [], "embeddings": [], "gives": 0}
        self.record |= partial.state.get("blocks") or {}
        self.hidden: torch.Tensor | None = None
        self.resident = resident_bytes()

    def all_stages(self) -> dict[str, Any]:
        """Before the blocks, the blocks in groups that fit, behind them."""
        if self.record["next"] == _BEFORE:
            self._fitting(0)
        self._head_is_finite()
        self.pace.tick((self.record["next"] + 1) * self.feed.rows)
        with self._once_each():
            self._run_stages()
        tokens = max((part["tokens"] for part in self.record["parts"]), default=0)
        read = set(self.record["read"])
        return {
            "parts": self.record["parts"],
            "tokens": tokens,
            "unread": [place for place in self.found if place not in read],
        }

    def _run_stages(self) -> None:
        while (stage := self.record["next"]) != self.count + 1:
            if stage == _BEFORE:
                part, following = self._before(), 0
            elif stage < self.count:
                last = self._fitting(stage)
                part, following = self._some(stage, last), last
            else:
                part, following = self._after(), self.count + 1
            parts = [*self.record["parts"], part]
            self.record = {**self.record, "next": following, "parts": parts}
            self.partial.note(blocks=self.record)
            shutil.rmtree(self._place(stage), ignore_errors=True)
            _give_memory_back()
            if stage == 0:
                self._probe()

    def _probe(self) -> None:
        """One row through what is around the blocks, now that it is known what a block gives.

        A model that cannot be run so is refused before more is computed.
        """
        self._read(self.record["next"], 0, 1)
        with ExitStack() as stack:
            stack.enter_context(self._replaced(dict.fromkeys(range(self.count), self._give_back)))
            stack.enter_context(self._filled_when_called([]))
            stack.enter_context(self._without_embeddings())
            stack.enter_context(forward.without_head(self.model))
            forward.run(self.model, self.feed.batch(self.feed.order[0]).first())

    # Stages -----------------------------------------------------------------------------------------------------------

    def _before(self) -> dict[str, Any]:
        embeddings: list[str] = []
        with ExitStack() as stack:
            stack.enter_context(self._replaced({0: _stop_with_input}))
            stack.enter_context(self._filled_when_called(embeddings))
            part = self._stage(self._outside(), "hidden-0", 0)
        self.record["embeddings"] = sorted(set(embeddings))
        return part

    def _some(self, first: int, last: int) -> dict[str, Any]:
        blocks, inside = self.blocks, self.blocks.inside
        parts = [
            (f"{blocks.path}.{number}{'.' + place if place else ''}", part)
            for number in range(first, last)
            for place, part in blocks.blocks[number].named_modules()
        ]
        here = {place: one for place, one in self.found.items() if inside(place) in range(first, last)}
        with ExitStack() as stack:
            stack.enter_context(blocks.filled(parts))
            stack.enter_context(self._replaced(dict.fromkeys(range(first), self._give_back)))
            stack.enter_context(self._filled_when_called([]))
            stack.enter_context(self._without_embeddings())
            if first == 0:
                hook = blocks.blocks[0].register_forward_pre_hook(self._put_in, with_kwargs=True)
                stack.callback(hook.remove)
            stack.callback(blocks.blocks[last - 1].register_forward_hook(self._stop_with_output).remove)
            return self._stage(here, f"hidden-{last}", first, last - first)

    def _after(self) -> dict[str, Any]:
        with ExitStack() as stack:
            stack.enter_context(self._replaced(dict.fromkeys(range(self.count), self._give_back)))
            stack.enter_context(self._filled_when_called([]))
            stack.enter_context(self._without_embeddings())
            read = set(self.record["read"])
            rest = {place: one for place, one in self._outside().items() if place not in read}
            return self._stage(rest, None, self.count)

    def _stage(
        self, found: Mapping[str, Layer], into: str | None, reads: int, weight: int = 1
    ) -> dict[str, Any]:
        """Run all rows as far as the stage goes; hidden states are read from stage `reads` and kept `into` a folder.

        `weight` is how many times a row counts for progress.
        """
        first = self.feed.batch(self.feed.order[0]).first()
        self._read(reads, 0, 1)

        def one_pass(batch: Batch) -> torch.Tensor:
            with forward.without_head(self.model):
                return forward.run(self.model, batch)

        points, _ = taps(self.model.module, found, lambda: one_pass(first))
        self._fits(points)
        sums = Sums(points, self.kinds)
        collector = Collector(self.model, sums)
        if into is not None:
            shutil.rmtree(self.partial.home / into, ignore_errors=True)
            with naming(self.partial.out, KEPT):
                (self.partial.home / into).mkdir()
        with collector.attached():
            for number, rows in enumerate(self.feed.order):
                batch = self.feed.batch(rows)
                collector.batch = batch
                self._read(reads, number, None)
                made = one_pass(batch)
                forward.check(self.model, made, batch, "the outputs" if into is None else "the hidden states")
                if into is not None:
                    with naming(self.partial.out, KEPT):
                        np.save(self.partial.home / into / f"{number}.npy", made.numpy())
                self.pace.tick(len(rows) * weight)
        self.hidden = None
        self.record["read"] = [
            *self.record["read"],
            *(one for one in found if one not in _unread(found, points)),
        ]
        return finished(self.partial, f"sums-{reads}-{into or 'end'}", sums)

    # Hidden states ----------------------------------------------------------------------------------------------------

    def _place(self, stage: int) -> Path:
        return self.partial.home / f"hidden-{stage}"

    def _read(self, stage: int, number: int, rows: int | None) -> None:
        import torch

        if self.record["next"] == _BEFORE:
            return
        held = np.load(self._place(stage) / f"{number}.npy", allow_pickle=False)
        self.hidden = torch.from_numpy(np.array(held[:rows]))

    def _give_back(self, *_: Any, **__: Any) -> Any:
        assert self.hidden is not None
        gives = int(self.record["gives"])
        return (self.hidden, *[None] * (gives - 1)) if gives else self.hidden

    def _put_in(self, _: object, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Block 0 has no block before it that could give the hidden states back."""
        if arguments:
            return (self.hidden, *arguments[1:]), named
        return arguments, {**named, "hidden_states": self.hidden}

    def _stop_with_output(self, _: object, __: object, output: Any) -> None:
        if isinstance(output, tuple):
            if any(value is not None for value in output[1:]):
                raise RequestError(
                    f"{self.model.label}: its blocks give more than hidden states, so it cannot be run layer by layer; "
                    "give it more --memory, to be run whole"
                )
            self.record["gives"] = len(output)
            output = output[0]
        raise Reached(output)

    @contextmanager
    def _once_each(self) -> Iterator[None]:
        """A block that is run more than once in a pass (shared layers) is not one of a row of blocks."""
        called: set[int] = set()

        def note(number: int) -> None:
            if number in called:
                raise RequestError(
                    f"{self.model.label}: runs block {number} more than once in a pass, so it cannot be run layer by "
                    "layer; give it more --memory, to be run whole"
                )
            called.add(number)

        hooks = [
            block.register_forward_pre_hook(lambda *_, number=number: note(number))
            for number, block in enumerate(self.blocks.blocks)
        ]
        hooks.append(self.model.module.register_forward_pre_hook(lambda *_: called.clear()))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def _replaced(self, functions: Mapping[int, Callable[..., Any]]) -> Iterator[None]:
        blocks = self.blocks.blocks
        for number, function in functions.items():
            blocks[number].forward = function
        try:
            yield
        finally:
            for number in functions:
                del blocks[number].forward

    # Outside of the blocks --------------------------------------------------------------------------------------------

    def _outside(self) -> dict[str, Layer]:
        return {place: one for place, one in self.found.items() if self.blocks.inside(place) is None}

    @contextmanager
    def _filled_when_called(self, embeddings: list[str]) -> Iterator[None]:
        """What is outside of the blocks gets its weights when it is first called; such embeddings are noted."""
        import torch

        held: list[tuple[Any, str, Any]] = []
        head = forward.output_head(self.model)

        def fill(place: str, part: Any) -> None:
            if part is head or any(part is done for done, _, _ in held):
                return
            held.extend(self.blocks.fill([(place, part)]))
            if isinstance(part, torch.nn.Embedding):
                embeddings.append(place)

        hooks = [
            part.register_forward_pre_hook(lambda part, _, place=place: fill(place, part))
            for place, part in self.blocks.outside
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            put_back(held)

    @contextmanager
    def _without_embeddings(self) -> Iterator[None]:
        """Embeddings give zeros: what they were for is already in the hidden states."""
        import torch

        parts = [self.model.module.get_submodule(place) for place in self.record["embeddings"]]
        hooked: list[Any] = []
        for part in parts:
            width = part.embedding_dim
            part.forward = lambda ids, width=width: torch.zeros(*ids.shape, width)
            hooked.append(part)
        try:
            yield
        finally:
            for part in hooked:
                del part.forward

    def _head_is_finite(self) -> None:
        head = forward.output_head(self.model)
        if head is None:
            return
        names = {
            self.model.names[place]
            for place, part in self.model.module.named_parameters(remove_duplicate=False)
            if any(part is one for one in head.parameters()) and place in self.model.names
        }
        weights = self.blocks.weights
        found = compute_scalars({name: [norm(weights[name])] for name in sorted(names)}, weights.checkpoints)
        for name, (value,) in found.items():
            if not np.isfinite(value):
                raise NonFiniteError(
                    f"{self.model.label}: the weights of its output head ({name}) hold NaN or Inf"
                )

    # Memory -----------------------------------------------------------------------------------------------------------

    def _fitting(self, first: int) -> int:
        """How far a stage that begins with block `first` may go."""
        if self.memory is None:
            return first + 1
        free = self.memory - self.resident - RESERVE - activations(self.model, self.feed)
        last = first
        while last < self.count and (free := free - self._needs(last)) >= 0:
            last += 1
        if last == first:
            raise RequestError(
                f"{self.model.label}: --memory {self.memory / 2**20:.0f} MiB is too little for block {first} alone: "
                f"{-free / 2**20:.0f} MiB more are needed; raise it, lower --batch or collect less at a time"
            )
        return last

    def _needs(self, number: int) -> int:
        inside = [one.width for place, one in self.found.items() if self.blocks.inside(place) == number]
        return self.blocks.bytes_of(number) + sum(Sums.bytes_of(width, self.kinds) for width in inside)

    def _fits(self, points: Sequence[Any]) -> None:
        if self.memory is None:
            return
        needed = sum(Sums.bytes_of(tap.width, self.kinds) for tap in points)
        if resident_bytes() + needed > self.memory:
            raise RequestError(
                f"{self.model.label}: --memory {self.memory / 2**20:.0f} MiB is too little for the sums of one stage "
                f"({needed / 2**20:.0f} MiB); raise it or collect less at a time"
            )


def _give_memory_back() -> None:
    """What was freed returns to the system at once: the C library would keep some of it, and the limit counts that."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def activations(model: Model, feed: Feed) -> int:
    """About what a pass over one batch holds beside the weights."""
    config = model.config
    hidden = int(getattr(config, "hidden_size", 0) or 0)
    inner = int(getattr(config, "intermediate_size", 0) or 4 * hidden)
    size = max(map(len, feed.order))
    return size * feed.longest() * 4 * (8 * hidden + 4 * inner)


def _unread(found: Mapping[str, Layer], points: Sequence[Any]) -> set[str]:
    read = {tensor for tap in points for tensor in tap.tensors}
    return {place for place, one in found.items() if one.tensor not in read}


def _stop_with_input(*arguments: Any, **named: Any) -> None:
    if not arguments and "hidden_states" not in named:
        raise RequestError(
            f"its blocks take {listing(named)} and no hidden states, so it cannot be run layer by layer; give it more "
            "--memory, to be run whole"
        )
    raise Reached(arguments[0] if arguments else named["hidden_states"])
