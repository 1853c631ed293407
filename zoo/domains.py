"""Four domains of text for the small Llamas: film reviews, newsgroups, dialogue, Python source.

The source code is the standard library of the Python that runs, so that this domain depends on its version; the
models' names cover the text that they were trained on.
"""

from __future__ import annotations

import hashlib
import json
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from demo.fetch import REVIEWS, DemoError
from demo.tasks import read_reviews

from zoo.cuts import Cut
from zoo.packages import ORANGE, TEXTS
from zoo.tasks import Folders, read_tab

LONGEST = 12_000
"""Characters of a document that are used: no single long one may decide a domain's score."""
PASSAGE = 1000


@dataclass(frozen=True)
class Domain:
    """Passages of one domain, split by document."""

    name: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    @property
    def digest(self) -> str:
        """SHA-256 over the training passages in order."""
        return hashlib.sha256(json.dumps(self.train).encode()).hexdigest()


def domains(folders: Folders, cut: Cut) -> list[Domain]:
    """The cut's domains."""
    return [split(name, _READERS[name](folders), cut) for name in cut.domains]


def split(name: str, documents: Iterable[str], cut: Cut) -> Domain:
    """By the documents' SHA-256: validation from the beginning, training from behind it, test from the far end."""
    short = {shortened for d in documents if (shortened := d.strip()[:LONGEST].strip())}
    ordered = sorted(short, key=lambda text: hashlib.sha256(text.encode()).digest())
    test = _take(ordered, cut.passages_test, -1)
    validation = _take(ordered, cut.passages_validation, 0)
    train = _take(ordered, cut.passages_train, 0)
    if len(test) < cut.passages_test or len(validation) < cut.passages_validation or not train:
        raise DemoError(f"{name}: too little text for {cut.passages_test} passages to test on")
    return Domain(name, train, validation, test)


def _take(documents: list[str], count: int, end: int) -> tuple[str, ...]:
    """So many passages, of documents taken out of the list at one end."""
    passages: list[str] = []
    while len(passages) < count and documents:
        passages += cut_up(documents.pop(end))
    return tuple(passages[:count])


def cut_up(document: str, size: int = PASSAGE) -> list[str]:
    """Passages of at most `size` characters, cut behind a line where there is one, else behind a word."""
    passages = []
    while document:
        end = len(document)
        if end > size:
            end = document.rfind("\n", size // 2, size) + 1 or document.rfind(" ", 1, size) + 1 or size
        passages.append(document[:end])
        document = document[end:]
    return [p for p in passages if p.strip()]


def reviews(folders: Folders) -> list[str]:
    """IMDb reviews."""
    rows = read_reviews(folders[REVIEWS.name] / REVIEWS.wanted[0], "imdb")
    return [text.replace("<br /><br />", "\n\n").replace("<br />", "\n") for text, _ in rows]


def news(folders: Folders) -> list[str]:
    """Articles of 20 Newsgroups: lower-cased letters only, as the package has them."""
    return [row[0] for row in read_tab(folders[TEXTS.name] / f"{ORANGE}20newsgroups-train.tab", "Text")]


def dialogue(folders: Folders) -> list[str]:
    """Episodes of Friends, a line a speech."""
    episodes: dict[str, list[str]] = {}
    path = folders[TEXTS.name] / f"{ORANGE}friends-transcripts.tab"
    for episode, speaker, text in read_tab(path, "Season & Episode", "Author", "Quote"):
        episodes.setdefault(episode, []).append(f"{speaker}: {' '.join(text.split())}\n")
    return ["".join(lines) for lines in episodes.values()]


def code(folders: Folders) -> list[str]:
    """Modules of Python's standard library, without its tests and what differs from build to build."""
    library = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for path in sorted(library.rglob("*.py")):
        inside = path.relative_to(library).parts
        if {"test", "tests", "site-packages", "dist-packages", "__pycache__"}.isdisjoint(
            inside
        ) and not inside[-1].startswith("_sysconfigdata"):
            try:
                found.append(path.read_text(encoding="utf-8"))
            except UnicodeDecodeError:
                continue
    return found


_READERS = {f.__name__: f for f in (reviews, news, dialogue, code)}
