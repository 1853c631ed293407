"""BatchNorm's running statistics, computed anew: those of parents fit no merge of them.

As after weight averaging (Izmailov et al. 2018, arXiv:1803.05407) and in REPAIR (Jordan et al. 2023, arXiv:2211.08403):
rows go through the model once, every batch norm normalises by the batch, and its running mean and variance become the
means of those of the batches (torch's cumulative average).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from merganser._progress import Progress
from merganser.algebra import Weights
from merganser.algebra.rearranged import Array
from merganser.algebra.weights import Entry
from merganser.errors import RequestError
from merganser.observe.feed import open_feed
from merganser.observe.options import Options
from merganser.running import finite, open_model, read_rows

FEWEST = 2
"""Rows of a batch: the variance of one row's single values is not known."""


def with_running_statistics(
    weights: Weights,
    data: str | Path,
    *,
    text: str | None = None,
    image: str | None = None,
    values: Sequence[str] = (),
    rows: int | None = None,
    batch: int = 32,
    memory: int | None = None,
    progress: Progress | None = None,
) -> Weights:
    """The weights with every running mean and variance of a batch norm as the rows of `data` give them.

    text, image, values: the column of texts, of image files or bytes, or the columns of numbers, as in `observe`. rows:
    only the first so many. batch: rows at a time, 2 or more; a last batch of one row is left out. The model is held in
    memory in f32 (memory: bytes that may take). Needs the `models` extra.

    Raises `RequestError` where the model has no batch norm, and `NonFiniteError` where it returns NaN or Inf.
    """
    import torch

    if batch < FEWEST:
        raise RequestError(
            f"batch must be {FEWEST} or more, for a variance is taken over the rows of a batch"
        )
    model = open_model(weights, memory=memory)
    norms = {
        place: norm
        for place, norm in model.module.named_modules()
        if isinstance(norm, torch.nn.modules.batchnorm._BatchNorm) and norm.track_running_stats
    }
    if not norms:
        raise RequestError(
            f"{weights.label!r} has no batch norm whose running statistics could be computed anew"
        )
    given = read_rows(data)
    options = Options(collect=(), text=text, image=image, values=tuple(values), rows=rows, batch=batch)
    feed = open_feed(model, given if rows is None else given.head(rows), options)
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = None  # the mean over batches
        norm.train()
    taken, count = 0, len(feed.order)
    with torch.no_grad():
        for number, part in enumerate(feed.order, 1):
            if len(part) >= FEWEST:
                found = model.module(**feed.batch(part).arguments)
                finite(found[0], what="outputs", model=model, rows=part)
                taken += len(part)
            if progress is not None:
                progress(number, count)
    if not taken:
        raise RequestError(f"{given.path}: has too few rows: a variance takes {FEWEST} in a batch")
    entries = {name: weights.entry(name) for name in weights}
    changed = 0
    for place, norm in norms.items():
        for kind in ("running_mean", "running_var"):
            name = model.names.get(f"{place}.{kind}" if place else kind)
            if name is None or name not in entries:
                raise RequestError(f"{weights.label!r}: no tensor stands for {kind} of {place}")
            made = getattr(norm, kind).numpy().astype(np.float32)
            entries[name] = Entry(Array(np.ascontiguousarray(made)), entries[name].degree)
            changed += 1
    note = {
        "step": "batch norm",
        "running statistics of": Path(data).name,
        "digest": given.digest,
        "rows": taken,
        "tensors": changed,
        "batch": batch,
    }
    return weights._with(entries).with_note(note)
