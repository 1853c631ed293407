"""Statistics of the inputs of layers, collected while a model runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from merganser.errors import NonFiniteError, RequestError
from merganser.observe import forward
from merganser.observe.feed import Batch, Feed
from merganser.observe.layers import Layer, taps, tokens_of
from merganser.observe.pace import Pace
from merganser.observe.partial import Partial
from merganser.observe.sums import Sums
from merganser.running import Model


class Collector:
    """Takes what passes by the taps into sums, while it is attached and told the batch."""

    def __init__(self, model: Model, sums: Sums) -> None:
        self.model, self.sums = model, sums
        self.batch: Batch | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Look at the inputs of the module."""
        hooks = [
            self.model.module.get_submodule(place).register_forward_pre_hook(
                lambda module, arguments, place=place: self._take(place, module, arguments[0])
            )
            for place in self.sums.taps
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _take(self, place: str, module: Any, value: Any) -> None:
        assert self.batch is not None
        values = tokens_of(module, value, self.batch)
        if values is None:
            raise RequestError(
                f"{self.model.label}: the input of {place} has shape {list(value.shape)}, which does not tell "
                f"what of it is padding in {len(self.batch.rows)} rows; with --batch 1 nothing is padded"
            )
        self.sums.add(place, values)


def collect(
    model: Model, feed: Feed, found: Mapping[str, Layer], kinds: Sequence[str], partial: Partial, pace: Pace
) -> dict[str, Any]:
    """Run the whole model over all rows; the record of what was collected, which `partial` keeps as `inputs`."""
    done = partial.state.get("inputs") or {}
    if done.get("done"):
        pace.tick(feed.rows)
        return dict(done)
    head = forward.output_head(model)
    if head is not None and not all(bool(value.isfinite().all()) for value in head.parameters()):
        raise NonFiniteError(f"{model.label}: the weights of its output head hold NaN or Inf")
    first = feed.batch(feed.order[0]).first()

    def one_pass(batch: Batch) -> Any:
        with forward.without_head(model):  # its hook comes last: what the head reads is looked at before
            return forward.run(model, batch)

    points, unread = taps(model.module, found, lambda: one_pass(first))
    sums = Sums(points, kinds)
    start = resume(partial, done, sums)
    collector = Collector(model, sums)
    with collector.attached():
        for number, rows in enumerate(feed.order):
            if number >= start:
                collector.batch = batch = feed.batch(rows)
                forward.check(model, one_pass(batch), batch, "the outputs")
                if number + 1 < len(feed.order):
                    pace.keep(partial, "inputs", sums.state, {"next": number + 1})
            pace.tick(len(rows))
    record = finished(partial, "inputs", sums) | {"done": True, "unread": unread}
    partial.note(inputs=record)
    return record


def resume(partial: Partial, record: Mapping[str, Any], sums: Sums) -> int:
    """Fill the sums with what was kept and give the number of the next batch; 0 where nothing usable was."""
    arrays = partial.kept(record) if record.get("next") else None
    if arrays is None or arrays.keys() != sums.state().keys():
        return 0
    sums.load(arrays)
    return int(record["next"])


def finished(partial: Partial, name: str, sums: Sums) -> dict[str, Any]:
    """Keep sums that nothing is added to any more."""
    return partial.keep(name, sums.state()) | {
        "results": sums.results(),
        "tokens": int(sums.tokens.max(initial=0)),
    }
