"""Fixed splits of labelled texts, by the texts' own SHA-256, with nothing of any test set in what is trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from demo.fetch import DemoError
from demo.tasks import Rows

from zoo.cuts import Cut

Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Source:
    """Texts with the names of their classes, as a package has them; `test` and `validation` where they are official."""

    name: str
    question: str
    classes: tuple[str, ...]
    train: Pairs
    validation: Pairs | None = None
    test: Pairs | None = None


@dataclass(frozen=True)
class Task:
    """One labelled task, split in three; labels are positions in `classes`."""

    name: str
    question: str
    classes: tuple[str, ...]
    train: Rows
    validation: Rows
    test: Rows

    @property
    def digest(self) -> str:
        """SHA-256 over the classes and every training row in order: what a model trained on this task depends on."""
        rows = list(zip(self.train.texts, self.train.labels, strict=True))
        return hashlib.sha256(json.dumps([self.classes, rows]).encode()).hexdigest()


def split(sources: Iterable[Source], cut: Cut) -> list[Task]:
    """The tasks of the sources.

    Without official splits the test rows are the far end of the distinct texts in the order of their SHA-256, and the
    validation rows its beginning. A validation text equals no test text, and a training text no validation or test
    text, of its own task or of another (case and spaces apart).
    """
    known = list(sources)
    tests = {s.name: _official(s) if s.test is not None else _ordered(s.train)[-cut.test :] for s in known}
    held = {_plain(text) for pairs in tests.values() for text, _ in pairs}
    validations = {s.name: _first(s, s.validation or s.train, held, cut.validation) for s in known}
    held |= {_plain(text) for pairs in validations.values() for text, _ in pairs}
    tasks = []
    for s in known:
        parts = (_first(s, s.train, held, cut.pool), validations[s.name], tests[s.name])
        train, validation, test = (_rows(pairs, s.classes) for pairs in parts)
        if len(train) < cut.drawn or len(validation) < cut.validation or not len(test):
            raise DemoError(
                f"{s.name}: too few different texts: {[len(p) for p in parts]} in its three splits"
            )
        tasks.append(Task(s.name, s.question, s.classes, train, validation, test))
    return tasks


def drawn(rows: Rows, seed: int, count: int) -> Rows:
    """The rows that a seed trains on, in its order: the first by SHA-256 of seed and text."""
    order = sorted(
        zip(rows.texts, rows.labels, strict=True),
        key=lambda row: hashlib.sha256(f"{seed}\t{row[0]}".encode()).digest(),
    )
    texts, labels = zip(*order[:count], strict=True)
    return Rows(texts, labels)


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _official(source: Source) -> Pairs:
    return [(text, label) for text, label in source.test or [] if label in source.classes]


def _ordered(pairs: Pairs) -> Pairs:
    distinct: dict[str, tuple[str, str]] = {}
    for text, label in pairs:
        distinct.setdefault(_plain(text), (text, label))
    return sorted(distinct.values(), key=lambda row: hashlib.sha256(row[0].encode()).digest())


def _first(source: Source, pairs: Pairs, held: set[str], count: int) -> Pairs:
    free = [(t, c) for t, c in _ordered(pairs) if c in source.classes and _plain(t) not in held]
    return free[:count]


def _rows(pairs: Pairs, classes: tuple[str, ...]) -> Rows:
    number: Mapping[str, int] = {name: i for i, name in enumerate(classes)}
    return Rows(tuple(text for text, _ in pairs), tuple(number[label] for _, label in pairs))
