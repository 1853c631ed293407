"""Seven real text tasks.

20 Newsgroups is left out: its 7,528 test rows alone would be half of the cost of every evaluation.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping
from pathlib import Path

from demo.fetch import REVIEWS
from demo.tasks import AUTHORS, read_reviews, read_tweets

from zoo.packages import ORANGE, PROMPTS, TEXTS
from zoo.splits import Pairs, Source

Folders = Mapping[str, Path]
"""Unpacked packages by name."""
LENGTH = 48
"""Tokens of a text that are read."""
SENTIMENT = ("negative", "positive")
SPEAKERS = ("Chandler", "Joey", "Monica", "Phoebe", "Rachel", "Ross")
WORDS = 8
"""Words a line of Friends needs: nobody can say who said "Okay"."""


def sources(folders: Folders, names: tuple[str, ...]) -> list[Source]:
    """The named tasks' texts."""
    return [_READERS[name](folders) for name in names]


def read_tab(path: Path, *columns: str) -> list[tuple[str, ...]]:
    """Columns of a file in Orange's .tab format: three lines of header (names, types, roles), then rows."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.reader(file, delimiter="\t")
        header = next(lines)
        next(lines)
        next(lines)
        places = [header.index(name) for name in columns]
        return [tuple(line[p] for p in places) for line in lines if len(line) == len(header)]


def _movie(folders: Folders, source: str) -> Pairs:
    path = folders[REVIEWS.name] / REVIEWS.wanted[0]
    return [(" ".join(t.replace("<br />", " ").split()), SENTIMENT[y]) for t, y in read_reviews(path, source)]


def imdb(folders: Folders) -> Source:
    """IMDb reviews (the training half is what the package has), the first 48 tokens of each."""
    return Source("imdb", "does the review praise the film?", SENTIMENT, _movie(folders, "imdb"))


def rt(folders: Folders) -> Source:
    """Rotten Tomatoes sentences."""
    return Source("rt", "does the sentence praise the film?", SENTIMENT, _movie(folders, "rotten_tomatoes"))


def r8(folders: Folders) -> Source:
    """Reuters newswire, the eight-class version; official splits."""

    def read(part: str) -> Pairs:
        rows = read_tab(folders[TEXTS.name] / f"{ORANGE}reuters-r8-{part}.tab", "Text", "Category")
        return [(text.strip(), category) for text, category in rows]

    classes = ("acq", "crude", "earn", "grain", "interest", "money-fx", "ship", "trade")
    return Source("r8", "what is the newswire about?", classes, read("train"), test=read("test"))


def slabs(folders: Folders) -> Source:
    """Prompts that try to get at a language model's instructions, and harmless ones (S-Labs); official splits."""
    names = {"0": "harmless", "1": "injection"}

    def read(part: str) -> Pairs:
        with (folders[PROMPTS.name] / PROMPTS.wanted[0] / f"{part}.csv").open(
            newline="", encoding="utf-8"
        ) as file:
            return [(row["text"].strip(), names[row["label"]]) for row in csv.DictReader(file)]

    question = "does the prompt try to get at the instructions?"
    return Source("slabs", question, tuple(names.values()), read("train"), read("validation"), read("test"))


def tweets(folders: Folders) -> Source:
    """Tweets of the two candidates of 2016, without retweets and links."""
    names = {number: name for name, number in AUTHORS.items()}
    rows = read_tweets(folders[TEXTS.name] / f"{ORANGE}election-tweets-2016.tab")
    pairs = [(text, names[author]) for text, author in rows]
    return Source("tweets", "which candidate wrote the tweet?", tuple(AUTHORS), pairs)


def friends(folders: Folders) -> Source:
    """Lines of at least eight words of the six main characters."""
    rows = read_tab(folders[TEXTS.name] / f"{ORANGE}friends-transcripts.tab", "Quote", "Author")
    pairs = [(" ".join(text.split()), author) for text, author in rows if author in SPEAKERS]
    return Source("friends", "who says the line?", SPEAKERS, [p for p in pairs if len(p[0].split()) >= WORDS])


def attacks(folders: Folders) -> Source:
    """Kinds of attack on a language model (neuralchemy), those with at least 100 training rows; official splits."""
    from pyarrow import parquet

    def read(part: str) -> Pairs:
        path = folders[PROMPTS.name] / PROMPTS.wanted[1] / f"core-{part}.parquet"
        table = parquet.read_table(path, columns=["text", "category"])
        rows = zip(table["text"].to_pylist(), table["category"].to_pylist(), strict=True)
        return [(text.strip(), category) for text, category in rows]

    classes = ("benign", "direct_injection", "adversarial", "jailbreak", "encoding")
    return Source(
        "attacks", "what kind of attack is it?", classes, read("train"), read("validation"), read("test")
    )


_READERS = {f.__name__: f for f in (imdb, rt, r8, slabs, tweets, friends, attacks)}
