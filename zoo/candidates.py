"""What the zoo's report compares: every method that merges more than two models, with the settings it may choose from.

Settings are few and fixed here, before anything is scored; one is chosen on validation rows. `{n}` is the number of
models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

MEAN, SUM = "mean", "task_arithmetic"
Setting = Mapping[str, Any]
LEARNED = 60
"""Steps of learned coefficients, 16 texts of each task a step; AdaMerging takes 500, which is hours on two cores."""
SEARCHED = 30
"""Evaluations of a search on all validation rows."""


@dataclass(frozen=True)
class Candidate:
    """One way to merge. `settings` are arguments of `merganser.methods`; with more than one, validation chooses.

    statistics: what is observed of each parent first. per_task: it makes one model a task. learned: how it is found on
    validation rows (`zoo.by_data`).
    """

    name: str
    method: str
    settings: tuple[Setting, ...] = ({},)
    statistics: Literal["fisher", "gram"] | None = None
    per_task: bool = False
    learned: Setting | None = None
    families: tuple[str, ...] = ("minilm", "llama")


def _scales(*values: float, **fixed: Any) -> tuple[Setting, ...]:
    return tuple({"scale": value, **fixed} for value in values)


def _weights(*values: float, **fixed: Any) -> tuple[Setting, ...]:
    return tuple({"weight": value, **fixed} for value in values)


ALL: Sequence[Candidate] = (
    Candidate(MEAN, "linear"),
    Candidate(SUM, "task_arithmetic", _weights(0.15, 0.3, 0.5, 0.8)),
    Candidate("ties", "ties", _scales(0.3, 0.6, 1.0, 1.5, 2.0)),
    Candidate("tsv_m", "tsv_m", _scales(0.5, 1.0, 1.5, 2.0)),
    Candidate("fisher", "fisher", statistics="fisher"),
    Candidate("regmean", "regmean", statistics="gram"),
    Candidate(
        "adamerging, by task",
        "task_arithmetic",
        learned={"by": "adamerging", "coefficients": "task", "steps": LEARNED},
        families=("minilm",),
    ),
    Candidate(
        "adamerging, by tensor",
        "task_arithmetic",
        learned={"by": "adamerging", "coefficients": "tensor", "steps": LEARNED},
        families=("minilm",),
    ),
    Candidate("dare_linear", "dare_linear", _weights(0.15, 0.3, 0.5, 0.8, density=0.1)),
    Candidate("dare_ties", "dare_ties", _scales(0.3, 0.6, 1.2, 1.8, density=0.5)),
    Candidate("breadcrumbs", "breadcrumbs", _weights(0.15, 0.3, 0.6, 0.9, density=0.85)),
    Candidate("pcb", "pcb", _scales(0.3, 0.6, 1.2, 1.8)),
    Candidate("iso_c", "iso_c", _scales(0.25, 0.5, 1.0, 1.5, 2.0)),
    Candidate("iso_cts", "iso_cts", _scales(0.25, 0.5, 1.0, 1.5, 2.0)),
    Candidate("consensus", "consensus", _scales(0.15, 0.3, 0.6, 0.9)),
    Candidate(
        "tall_masks",
        "tall_masks",
        ({"threshold": 0.2}, {"threshold": 0.4}, {"threshold": 0.6}),
        per_task=True,
        families=("minilm",),
    ),
    Candidate("emr", "emr", per_task=True, families=("minilm",)),
    Candidate("wudi", "wudi", _scales(0.3, 0.6, 1.0)),
    Candidate("magmax", "magmax", _scales(0.3, 0.6, 1.0, 1.5)),
    Candidate("model_stock", "model_stock"),
    Candidate("karcher", "karcher"),
    Candidate("multislerp", "multislerp"),
    Candidate("geometric_median", "geometric_median"),
    Candidate("sce", "sce", _scales(0.5, 1.0, 1.5)),
    Candidate("ram", "ram"),
    Candidate("ramplus_tl", "ramplus_tl"),
    Candidate("breadcrumbs_ties", "breadcrumbs_ties", _scales(0.3, 0.6, 1.2, 1.8, density=0.85)),
    Candidate("della", "della", _scales(0.3, 0.6, 1.2, 1.8)),
    Candidate("della_linear", "della_linear", _weights(0.15, 0.3, 0.5, 0.8)),
    Candidate("opcm", "opcm"),
    Candidate("greedy soup", "linear", learned={"by": "soup"}),
    Candidate("cma", "task_arithmetic", learned={"by": "search", "evaluations": SEARCHED}),
    Candidate(
        "atlas",
        "task_arithmetic",
        learned={"by": "atlas", "steps": LEARNED, "batch": 16},
        families=("minilm",),
    ),
    Candidate(
        "self_positioning",
        "task_arithmetic",
        learned={"by": "self_positioning", "steps": LEARNED, "batch": 16},
        families=("minilm",),
    ),
)
BY_NAME = {candidate.name: candidate for candidate in ALL}
PAIRWISE = ("slerp", "nuslerp", "nearswap", "arcee_fusion", "wise_ft", "passthrough", "graft")
"""Methods of merganser that take one or two models, or a mask: left out of a merge of all, and said so."""
