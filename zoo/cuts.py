"""How much of the zoo is built: all of it, or a small cut that shows the same in minutes."""

from __future__ import annotations

from dataclasses import dataclass

TASKS = ("imdb", "rt", "r8", "slabs", "tweets", "friends", "attacks")
DOMAINS = ("reviews", "news", "dialogue", "code")


@dataclass(frozen=True)
class Cut:
    """Which models are trained and on how much.

    Rows are labelled texts; passages are pieces of about 1,000 characters; steps are batches of 16 blocks
    of 128 tokens.
    """

    name: str
    tasks: tuple[str, ...] = TASKS
    domains: tuple[str, ...] = DOMAINS
    seeds: tuple[int, ...] = (1, 2, 3)
    pool: int = 3000
    """Training rows a task at most."""
    drawn: int = 1200
    """Rows of the pool that a seed trains on."""
    validation: int = 200
    test: int = 1000
    """Test rows of a set that has no official test split; official test splits stay whole."""
    passages_train: int = 3000
    passages_validation: int = 50
    passages_test: int = 200
    vocabulary: int = 2048
    steps_base: int = 600
    steps: int = 120
    """Steps of a continuation on one domain; the multitask control takes as many for each domain."""


FULL = Cut("full")
SMALL = Cut(
    "small",
    tasks=("rt", "tweets"),
    domains=("dialogue", "code"),
    seeds=(1,),
    pool=600,
    drawn=320,
    validation=100,
    test=300,
    passages_train=600,
    passages_validation=15,
    passages_test=40,
    vocabulary=512,
    steps_base=100,
    steps=40,
)
CUTS = {cut.name: cut for cut in (FULL, SMALL)}
