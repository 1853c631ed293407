"""What a classifier is given: texts, images, or rows of numbers."""

from __future__ import annotations

import io
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from merganser.checkpoint.digest import digest_file
from merganser.errors import RequestError
from merganser.evaluate.task import Task, too_long
from merganser.running import (
    Head,
    batch_size,
    batches,
    class_logits,
    encode,
    image_of,
    not_beside,
    pad,
    pooled,
    require,
    upright,
)

if TYPE_CHECKING:
    import torch

    from merganser.running import Model

Logits = Callable[[Sequence[int]], "torch.Tensor"]
_NO_LIMIT = 1 << 30


class Inputs(ABC):
    """The inputs of a task's samples. `marks` are what digests are made of, one a sample."""

    marks: Sequence[Any]

    def __init__(self, task: Task) -> None:
        self.task = task

    @abstractmethod
    def prepare(self, model: Model, head: Head | None) -> tuple[Iterator[list[int]], Logits]:
        """Batches of rows, and what gives their logits."""

    @abstractmethod
    def shown(self, row: int) -> str:
        """See `Task.shown`."""

    def in_turn(self) -> Iterator[list[int]]:
        """Batches in the order of the data."""
        rows = list(range(len(self.marks)))
        return (rows[at : at + self.task.batch] for at in range(0, len(rows), self.task.batch))


class Texts(Inputs):
    """Texts, encoded with the model's special tokens."""

    def __init__(self, task: Task, column: str, max_length: int | None) -> None:
        super().__init__(task)
        self.marks = task.texts(column)
        self.max_length = max_length

    def shown(self, row: int) -> str:
        """The text, before it is cut."""
        return str(self.marks[row])

    def prepare(self, model: Model, head: Head | None) -> tuple[Iterator[list[int]], Logits]:
        """See `Inputs.prepare`."""
        ids = token_ids(self.task, model, self.marks, self.max_length)

        def logits(rows: Sequence[int]) -> torch.Tensor:
            if len(rows) > 1 and batch_size(model, len(rows)) == 1:
                import torch

                return torch.cat([logits([row]) for row in rows])
            chosen = [ids[row] for row in rows]
            if head is None:
                return model.logits(*pad(chosen, model.pad_id))
            return head(pooled(model, chosen, pooling=head.pooling, normalize=head.normalize))

        return iter(batches([len(one) for one in ids], batch_size(model, self.task.batch))), logits


class Images(Inputs):
    """Images: files beside the data, the bytes of files (as Parquet holds them), or lists of pixels.

    A mapping of `bytes` and `path`, as the `datasets` library writes it, is its bytes, else the file.
    """

    def __init__(self, task: Task, column: str) -> None:
        super().__init__(task)
        self.column = column
        self.values = [image_of(value) for value in task.rows.column(column)]
        self.sources: list[Path | bytes | None] = []
        marks: list[Any] = []
        for number, value in enumerate(self.values, 1):
            source = _image_file(task, column, number, value) if isinstance(value, str) else None
            self.sources.append(value if isinstance(value, bytes) else source)
            if isinstance(value, bytes):
                marks.append(xxhash.xxh3_128_hexdigest(value))
            elif source is not None:
                marks.append(digest_file(source))  # the same for the same file as bytes
            else:
                marks.append(_pixels(task, column, number, value).tolist())
        self.marks = marks

    def shown(self, row: int) -> str:
        """The name of the file, how many bytes, or the shape of the pixels (channels, height, width)."""
        value = self.values[row]
        if isinstance(value, bytes):
            return f"an image of {len(value)} bytes"
        return value if isinstance(value, str) else f"pixels {list(np.shape(self.marks[row]))}"

    def prepare(self, model: Model, head: Head | None) -> tuple[Iterator[list[int]], Logits]:
        """See `Inputs.prepare`. Without an image processor only lists of pixels of the model's own size are taken."""
        given = self.given(model)
        return self.in_turn(), lambda rows: class_logits(model.module(pixel_values=given(rows)))

    def given(self, model: Model) -> Callable[[Sequence[int]], torch.Tensor]:
        """What makes the model's input f32 [rows, channels, height, width] of some rows; all are checked before."""
        processed = model.file("preprocessor_config.json") is not None
        if any(source is not None for source in self.sources):
            require("PIL")
            if not processed:
                raise RequestError(
                    f"task {self.task.name!r}: {model.label} has no preprocessor_config.json, so nothing says how an "
                    "image file becomes its input; give lists of pixels"
                )
        if processed:
            require("PIL")
            _ = model.processor
            for row in range(len(self.values)):
                self._opened(row)
        else:
            self._check_shapes(model)

        def pixels(rows: Sequence[int]) -> torch.Tensor:
            import torch

            if processed:
                images = [self._opened(row) for row in rows]
                made: torch.Tensor = model.processor(images=images, return_tensors="pt")["pixel_values"]
                return made.float()
            return torch.from_numpy(
                np.stack([_pixels(self.task, self.column, row + 1, self.values[row]) for row in rows])
            ).float()

        return pixels

    def _opened(self, row: int) -> Any:
        from PIL import Image

        source = self.sources[row]
        if source is not None:
            try:
                with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                    return upright(image)
            except Exception as error:  # Pillow's plugins raise many kinds
                place = f"{self.task.path}: {self.column!r}" if isinstance(source, bytes) else str(source)
                raise RequestError(
                    f"{place}: is no image that can be read (row {row + 1}): {error}"
                ) from None
        pixels = _pixels(self.task, self.column, row + 1, self.values[row])
        if pixels.min() < 0 or pixels.max() > 255:
            raise self.task.wrong(row + 1, self.column, "has pixels outside 0 to 255", self.values[row])
        if (pixels != np.round(pixels)).any():
            what = "has pixels that are no whole numbers (0 to 255), as the image processor takes them"
            raise self.task.wrong(row + 1, self.column, what, self.values[row])
        pixels = np.moveaxis(pixels, 0, 2).astype(np.uint8)
        return Image.fromarray(np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels)

    def _check_shapes(self, model: Model) -> None:
        channels = getattr(model.config, "num_channels", None)
        size = getattr(model.config, "image_size", None)
        sides = (
            (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, list | tuple) else None
        )
        for number, value in enumerate(self.values, 1):
            shape = _pixels(self.task, self.column, number, value).shape
            if (channels is not None and shape[0] != channels) or (sides is not None and shape[1:] != sides):
                wanted = [channels or "any", *(sides or ("any", "any"))]
                raise RequestError(
                    f"{self.task.path}: row {number}: the image has shape {list(shape)} (channels, height, width), and "
                    f"{model.label} takes {wanted} and has no image processor to resize it"
                )


class Numbers(Inputs):
    """Rows of numbers for models of series: a column of lists, or a column for each number."""

    def __init__(self, task: Task, columns: str | tuple[str, ...]) -> None:
        super().__init__(task)
        if isinstance(columns, str):
            self.marks = [
                _numbers(task, columns, number, value)
                for number, value in enumerate(task.rows.column(columns), 1)
            ]
        else:
            parts = [
                [
                    number_of(task, column, number, value)
                    for number, value in enumerate(task.rows.column(column), 1)
                ]
                for column in columns
            ]
            self.marks = [list(row) for row in zip(*parts, strict=True)]

    def shown(self, row: int) -> str:
        """The numbers."""
        return str(self.marks[row])

    def prepare(self, model: Model, head: Head | None) -> tuple[Iterator[list[int]], Logits]:
        """See `Inputs.prepare`: the model is given `past_values` [rows, steps, channels]."""
        steps = getattr(model.config, "context_length", None)
        channels = getattr(model.config, "num_input_channels", 1)
        values = [np.asarray(mark, np.float32) for mark in self.marks]
        values = [one[:, None] if one.ndim == 1 else one for one in values]
        for number, one in enumerate(values, 1):
            if one.shape != (steps, channels):
                raise RequestError(
                    f"{self.task.path}: row {number}: features have shape {list(one.shape)} (steps, channels), and "
                    f"{model.label} takes {[steps, channels]}"
                )

        def logits(rows: Sequence[int]) -> torch.Tensor:
            import torch

            given = torch.from_numpy(np.stack([values[row] for row in rows]))
            return class_logits(model.module(past_values=given))

        return self.in_turn(), logits


def token_ids(
    task: Task, model: Model, texts: Sequence[str], max_length: int | None, rows: Sequence[int] | None = None
) -> list[list[int]]:
    """Token ids with special tokens, cut after `max_length`; without it a text that is too long is an error.

    `rows` are the rows of the data that the texts stand in (from 0), where they are not one after the other.
    """
    limit = model.positions
    if max_length is not None and limit is not None and max_length > limit:
        raise RequestError(
            f"task {task.name!r}: max_length is {max_length}, and {model.label} takes {limit} tokens"
        )
    try:
        ids = encode(model, texts, max_length or _NO_LIMIT)
    except RequestError as error:
        raise RequestError(f"{task.path}: {error}") from None
    for place, one in enumerate(ids):
        if limit is not None and len(one) > limit:
            raise too_long(task, (rows[place] if rows else place) + 1, len(one), limit, model.label)
    return ids


def _image_file(task: Task, column: str, number: int, value: str) -> Path:
    problem = not_beside(task.path, value)
    if problem:
        raise task.wrong(number, column, problem, value)
    return task.path.parent.resolve() / value


def _pixels(task: Task, column: str, number: int, value: Any) -> np.ndarray[Any, Any]:
    """Pixels f32 [channels, height, width] of [height][width] or [channels][height][width]; channels last is turned."""
    try:
        found = np.asarray(value, dtype=np.float32)
    except (ValueError, TypeError):
        found = np.empty(0, np.float32)
    if found.ndim == 2:
        found = found[None]
    elif found.ndim == 3 and found.shape[0] not in (1, 3, 4) and found.shape[2] in (1, 3, 4):
        found = np.moveaxis(found, 2, 0)
    if found.ndim != 3 or not found.size or not np.isfinite(found).all():
        raise task.wrong(
            number,
            column,
            "is no path, no bytes and no list of pixels [height][width] or with channels",
            value,
        )
    return found


def number_of(task: Task, column: str, number: int, value: Any) -> float:
    """A finite number of the data."""
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise task.wrong(number, column, "is no finite number", value)
    return found


def _numbers(task: Task, column: str, number: int, value: Any) -> list[Any]:
    try:
        found = np.asarray(value, dtype=np.float64)
    except (ValueError, TypeError):
        found = np.empty(0)
    if found.ndim not in (1, 2) or not found.size or not np.isfinite(found).all() or isinstance(value, str):
        raise task.wrong(number, column, "is no list of finite numbers (steps, or steps of channels)", value)
    return found.tolist()  # type: ignore[no-any-return]
