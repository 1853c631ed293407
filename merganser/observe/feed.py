"""Rows of data as what a model takes: token ids, images or numbers."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser.errors import RequestError
from merganser.observe.options import Options
from merganser.running import (
    Model,
    Rows,
    batch_size,
    batches,
    check_causal,
    encode,
    image_of,
    not_beside,
    pad,
    require,
    upright,
)

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Batch:
    """Rows as a model takes them: arguments by name, and which tokens count [rows, tokens] (None: all)."""

    rows: Sequence[int]
    arguments: dict[str, torch.Tensor]
    counts: torch.Tensor | None

    @cached_property
    def places(self) -> torch.Tensor | None:
        """The tokens that count, as places among rows x tokens (None: all)."""
        return None if self.counts is None else self.counts.reshape(-1).nonzero()[:, 0]

    def first(self) -> Batch:
        """The first row alone, padded as in the batch."""
        counts = None if self.counts is None else self.counts[:1]
        return Batch(self.rows[:1], {name: value[:1] for name, value in self.arguments.items()}, counts)


class Feed(ABC):
    """All rows, in batches of rows of about the same length."""

    def __init__(self, rows: int, order: list[list[int]]) -> None:
        self.rows = rows
        self.order = order

    @abstractmethod
    def batch(self, rows: Sequence[int]) -> Batch:
        """Some rows."""

    def longest(self) -> int:
        """The most tokens of a row; 1 where rows are no texts."""
        return 1


class Texts(Feed):
    """Texts, padded on the right; padding is masked and never counts."""

    def __init__(self, ids: list[list[int]], pad_id: int, size: int) -> None:
        super().__init__(len(ids), batches([len(row) for row in ids], size))
        self.ids, self.pad_id = ids, pad_id

    def batch(self, rows: Sequence[int]) -> Batch:
        """Token ids and mask."""
        ids, mask = pad([self.ids[row] for row in rows], self.pad_id)
        counts = None if bool(mask.all()) else mask.bool()
        return Batch(rows, {"input_ids": ids, "attention_mask": mask}, counts)

    def longest(self) -> int:
        """The most tokens of a row."""
        return max(map(len, self.ids))


class Values(Feed):
    """Arrays of one shape, under the name of the model's main input."""

    def __init__(self, name: str, cells: list[Any], size: int) -> None:
        super().__init__(len(cells), batches([0] * len(cells), size))
        self.name, self.cells = name, cells

    def batch(self, rows: Sequence[int]) -> Batch:
        """The arrays of some rows, stacked, f32."""
        import torch

        arrays = np.stack([self.cell(row) for row in rows])
        return Batch(rows, {self.name: torch.from_numpy(arrays)}, None)

    def cell(self, row: int) -> np.ndarray[Any, Any]:
        """One row's array."""
        return np.asarray(self.cells[row], np.float32)


class Images(Values):
    """Images out of files or bytes, made ready by the model's own processor."""

    def __init__(self, cells: list[Any], size: int, home: Path, processor: Any) -> None:
        super().__init__("pixel_values", cells, size)
        self.home, self.processor = home, processor

    def cell(self, row: int) -> np.ndarray[Any, Any]:
        """One row's pixels [channels, height, width]."""
        from PIL import Image

        source: Any = self.cells[row]
        source = io.BytesIO(source) if isinstance(source, bytes) else self.home / source
        try:
            with Image.open(source) as image:
                made = self.processor(images=upright(image), return_tensors="np")["pixel_values"][0]
        except (OSError, ValueError) as error:
            raise RequestError(f"row {row + 1} holds no image that opens: {error}") from None
        return np.asarray(made, np.float32)


def open_feed(model: Model, rows: Rows, options: Options) -> Feed:
    """The rows as the model takes them: texts, unless --image or --values say otherwise or it takes images.

    Raises `RequestError` for missing columns, texts without tokens, a tokenizer that does not fit, missing image files,
    and cells that are no numbers or not of one shape.
    """
    takes = str(getattr(model.module, "main_input_name", "input_ids"))
    if options.image or (takes == "pixel_values" and not options.values and not options.text):
        return _images(model, rows, options)
    if options.values:
        return _values(takes, rows, options)
    if takes != "input_ids":
        raise RequestError(
            f"{model.label}: takes {takes}, not text; name the columns that hold numbers with --values"
        )
    texts = rows.column(options.text or "text")
    _ = model.tokenizer
    try:
        ids = encode(model, texts, options.max_length)
    except RequestError as error:
        raise RequestError(f"{rows.path}: {error}") from None
    return Texts(ids, model.pad_id, options.batch)


def trusted(model: Model, feed: Feed) -> Feed:
    """The feed as an opened model can be trusted with it: texts one by one where padding counts.

    Raises `RequestError` for a language model that sees ahead. A model that is run layer by layer is not tried.
    """
    if not isinstance(feed, Texts):
        return feed
    check_causal(model)
    size = max(map(len, feed.order))
    return feed if batch_size(model, size) == size else Texts(feed.ids, feed.pad_id, 1)


def _images(model: Model, rows: Rows, options: Options) -> Images:
    require("PIL")
    cells = [image_of(cell) for cell in rows.column(options.image or "image")]
    home = rows.path.parent
    for number, cell in enumerate(cells, 1):
        if isinstance(cell, str):
            problem = not_beside(rows.path, cell)
            if problem:
                raise RequestError(f"{rows.path}: row {number} names the image {cell!r}, which {problem}")
        if not isinstance(cell, str | bytes):
            raise RequestError(
                f"{rows.path}: row {number} holds {type(cell).__name__} as its image, not a file name or bytes"
            )
    return Images(cells, options.batch, home, model.processor)


def _values(takes: str, rows: Rows, options: Options) -> Values:
    columns = [rows.column(name) for name in options.values]
    cells = columns[0] if len(columns) == 1 else [list(cell) for cell in zip(*columns, strict=True)]
    shape: tuple[int, ...] | None = None
    for number, cell in enumerate(cells, 1):
        try:
            array = np.asarray(cell, np.float32)
        except (TypeError, ValueError):
            raise RequestError(f"{rows.path}: row {number} holds no numbers but {str(cell)[:40]!r}") from None
        if not np.isfinite(array).all():
            raise RequestError(f"{rows.path}: row {number} holds NaN or Inf")
        if takes == "past_values" and array.ndim == 1:  # a series of one channel
            cells[number - 1] = array = array[:, None]
        if shape not in (None, array.shape):
            raise RequestError(
                f"{rows.path}: row {number} has shape {list(array.shape)} and the rows before {list(shape or ())}"
            )
        shape = array.shape
    return Values(takes, cells, options.batch)
