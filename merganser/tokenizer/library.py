"""The `tokenizers` library: tokenizing texts with a vocabulary, and proving that a written one is what was meant."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from merganser.errors import CheckpointError, MerganserError
from merganser.tokenizer.document import Tokenizer

LONGEST = 1 << 20
"""Characters that are tokenized as one text at most; a longer line is cut."""
BATCH = 1 << 19
"""Characters handed to the library at once, about."""
SHOWN = 60

Counts = np.ndarray[Any, np.dtype[np.int64]]


def load(tokenizer: Tokenizer) -> Any:
    """The library's tokenizer, without truncation and padding.

    Raises `CheckpointError` where it refuses the file or numbers a token differently.
    """
    from tokenizers import Tokenizer as Library

    try:
        made = Library.from_str(tokenizer.to_bytes().decode())
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the library is no Exception
        raise CheckpointError(f"{tokenizer.source}: the tokenizers library refuses it: {error}") from None
    theirs = made.get_vocab(with_added_tokens=True)
    if theirs != tokenizer.ids:
        wrong = [t for t in {**tokenizer.ids, **theirs} if tokenizer.ids.get(t) != theirs.get(t)]
        token = min(wrong)
        raise CheckpointError(
            f"{tokenizer.source}: gives {token!r} the id {tokenizer.ids.get(token)}, and the tokenizers library reads "
            f"it as {theirs.get(token)} ({len(wrong)} tokens differ)"
        )
    made.no_truncation()
    made.no_padding()
    return made


def encode_texts(library: Any, texts: Sequence[str]) -> list[list[int]]:
    """The ids of texts, without special tokens put round them."""
    try:
        return [e.ids for e in library.encode_batch_fast(list(texts), add_special_tokens=False)]
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise MerganserError(f"the tokenizers library cannot tokenize a text: {error}") from None


def texts_of(path: Path) -> Iterator[str]:
    """The texts of a corpus: every line, with its line break and the empty lines after it.

    A line of more than 2^20 characters is cut. Raises `CheckpointError` for what is not UTF-8.
    """
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            held = ""
            while line := file.readline(LONGEST):
                if held and line.strip("\r\n"):
                    yield held
                    held = ""
                held += line
                if len(held) >= LONGEST:
                    yield held
                    held = ""
            if held:
                yield held
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not UTF-8 text ({error.reason} near byte {error.start})") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH or len(batch) >= 4096:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def count(library: Any, texts: Iterable[str], size: int) -> Counts:
    """How often each of `size` tokens occurs in texts.

    Every text is tokenized with and without its line break, for the end of a line may be joined with it; the larger
    count counts. Memory: a batch of 2^19 characters.
    """
    plain, broken = np.zeros(size, np.int64), np.zeros(size, np.int64)
    for batch in _batches(texts):
        for total, form in ((plain, [text.rstrip("\r\n") for text in batch]), (broken, batch)):
            ids = [np.asarray(found, np.int64) for found in encode_texts(library, form)]
            joined = np.concatenate(ids) if ids else np.zeros(0, np.int64)
            total += np.bincount(joined, minlength=size)[:size]
    return np.maximum(plain, broken)


def same_ids(
    old: Any,
    new: Any,
    ids: Callable[[int], int | None],
    texts: Iterable[str],
    *,
    most: int = 2000,
    skip: int | None = None,
) -> tuple[int, int]:
    """Prove on texts that what tokenized within the kept tokens tokenizes the same; how many texts did, of how many.

    `ids` gives the new id of an old one; texts with an id that has none, or with the id `skip`, are not compared.
    Raises `MerganserError` that names a text where the two differ.
    """
    compared = total = 0
    for batch in _batches(islice(texts, most)):
        for text, before, after in zip(
            batch, encode_texts(old, batch), encode_texts(new, batch), strict=True
        ):
            total += 1
            expected = [ids(one) for one in before]
            if None in expected or skip in before:
                continue
            compared += 1
            if expected != after:
                raise MerganserError(
                    f"the new tokenizer would write {text[:SHOWN]!r} in other tokens than the old one "
                    f"({len(before)} before, {len(after)} after); this is a fault of merganser, please report it"
                )
    return compared, total
