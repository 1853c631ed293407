"""Rows of data out of JSONL, Parquet, CSV or plain text."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from merganser.checkpoint.digest import digest_file
from merganser.errors import RequestError, did_you_mean, listing
from merganser.running.needs import require

Row = Mapping[str, Any]
_MOST_FIELD = 1 << 28


@dataclass(frozen=True)
class Rows(Sequence[Row]):
    """The rows of one file, held in memory. `columns` are in the order of the first row that has them."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __repr__(self) -> str:
        return f"Rows({str(self.path)!r}, {len(self)} rows: {', '.join(self.columns)})"

    @cached_property
    def digest(self) -> str:
        """XXH3-128 of the file."""
        return digest_file(self.path)

    def column(self, name: str) -> list[Any]:
        """The values of one column; `RequestError` where a row has none or null."""
        if name not in self.columns:
            raise RequestError(
                f"{self.path}: no column {name!r}{did_you_mean(name, self.columns)}; it has {listing(self.columns, 12)}"
            )
        values = [row.get(name) for row in self.rows]
        empty = [number for number, value in enumerate(values, 1) if value is None]
        if empty:
            raise RequestError(
                f"{self.path}: {len(empty)} of {len(values)} rows have no {name!r}, the first is row {empty[0]}"
            )
        return values

    def head(self, count: int) -> Rows:
        """The first `count` rows (all where there are fewer); the digest stays the file's."""
        return Rows(self.path, self.columns, self.rows[:count])


def read_rows(path: str | Path) -> Rows:
    """Read .jsonl, .ndjson, .parquet, .csv, .tsv or .txt (each line that is not blank is a row with the column `text`).

    Raises `RequestError` for files that are missing, empty, malformed (with the line) or of another kind.
    """
    path = Path(path)
    readers = {
        ".jsonl": _json_lines,
        ".ndjson": _json_lines,
        ".parquet": _parquet,
        ".csv": _csv,
        ".tsv": _tsv,
        ".txt": _text,
    }
    if not path.exists():
        from merganser.document import neighbour

        raise RequestError(f"{path}: there is no such file{neighbour(path)}")
    if path.is_dir():
        raise RequestError(f"{path}: is a directory, not a data file ({', '.join(readers)})")
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise RequestError(f"{path}: not a kind of data that is read; known are {', '.join(readers)}")
    try:
        rows = list(reader(path))
    except UnicodeDecodeError as error:
        raise RequestError(f"{path}: is not UTF-8 text (byte {error.start}: {error.reason})") from None
    except OSError as error:
        raise RequestError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not rows:
        raise RequestError(f"{path}: has no rows")
    columns = dict.fromkeys(name for row in rows for name in row)
    return Rows(path, tuple(columns), tuple(rows))


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line, object_pairs_hook=_no_key_twice)
            except (ValueError, RecursionError) as error:
                raise RequestError(f"{path}: line {number} is not JSON: {error}") from None
            if "\\ud" in line.lower():
                _refuse_halves(row, f"{path}: line {number}")
            if not isinstance(row, dict):
                raise RequestError(f"{path}: line {number} is no JSON object but {_short(row)}")
            yield row


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a key that is there twice would lose a value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return found


def _refuse_halves(value: Any, place: str) -> None:
    """Raise where a text holds half of a surrogate pair, which is no character: no tokenizer takes it."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                f"{place}: a text holds half of a surrogate pair (\\u{ord(value[error.start]):04x}), which is no "
                "character; write the whole character, or leave it out"
            ) from None
    for one in value.items() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        _refuse_halves(one, place)


def _parquet(path: Path) -> Iterator[Row]:
    require("pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (pa.ArrowException, ValueError) as error:
        raise RequestError(f"{path}: is not Parquet that can be read: {error}") from None


def _tsv(path: Path) -> Iterator[Row]:
    """Fields between tabs, a row a line; a quote is a character like any other, as in GLUE's files.

    Where every field of the header is in quotes the file is read as CSV with tabs. A field that a writer put in quotes
    because of the quotes in it, and doubled those, is what was meant.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline().rstrip("\r\n").split("\t")
        if all(len(name) > 1 and name[0] == name[-1] == '"' for name in first):
            yield from _csv(path, "\t")
            return
        if len(set(first)) < len(first):
            twice = next(name for name in first if first.count(name) > 1)
            raise RequestError(f"{path}: two columns are called {twice!r}")
        for number, line in enumerate(file, 2):
            if not (text := line.rstrip("\r\n")):
                continue
            values = text.split("\t")
            if len(values) != len(first):
                raise RequestError(
                    f"{path}: line {number} has {len(values)} fields and the header {len(first)} (in a .tsv a quote "
                    "does not hold tabs or line ends together; a .csv has such fields)"
                )
            yield {name: _unquoted(value) or None for name, value in zip(first, values, strict=True)}


def _unquoted(value: str) -> str:
    inner = value[1:-1]
    if (
        len(value) > 3
        and value[0] == value[-1] == '"'
        and '""' in inner
        and '"' not in inner.replace('""', "")
    ):
        return inner.replace('""', '"')
    return value


def _csv(path: Path, delimiter: str = ",") -> Iterator[Row]:
    csv.field_size_limit(_MOST_FIELD)
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = next(lines, None)
            if header is None:
                return
            if len(set(header)) < len(header):
                twice = next(name for name in header if header.count(name) > 1)
                raise RequestError(f"{path}: two columns are called {twice!r}")
            for values in lines:
                if not values:
                    continue
                if len(values) != len(header):
                    raise RequestError(
                        f"{path}: line {lines.line_num} has {len(values)} fields and the header {len(header)}"
                    )
                yield {
                    name: value if value != "" else None for name, value in zip(header, values, strict=True)
                }
        except csv.Error as error:
            raise RequestError(f"{path}: line {lines.line_num}: {error}") from None


def _text(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        for line in file:
            if (text := line.rstrip("\r\n")).strip():
                yield {"text": text}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 40 else text[:37] + "..."
