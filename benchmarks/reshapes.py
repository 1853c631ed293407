"""Models taken apart and put together: what is measured beside cat + cp of the bytes moved."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dataset import Dataset

Recipe = Callable[[Dataset], str]


@dataclass(frozen=True)
class Reshape:
    """One reshaping: its recipe, the bytes read of each model, the bytes written, how many floors it may take."""

    name: str
    what: str
    recipe: Recipe
    reads: Callable[[Dataset], Mapping[str, int]]
    writes: Callable[[Dataset], int]
    most_floors: float


def _layers(dataset: Dataset) -> int:
    return dataset.layout.layers


def _restack(dataset: Dataset) -> str:
    half, count = _layers(dataset) // 2, _layers(dataset)
    return (
        f"model: {dataset.model('alpha')}\nsteps:\n  - stack:\n      parts:\n"
        f"        - {{layers: 0-{half - 1}}}\n"
        f"        - {{model: {dataset.model('beta')}, layers: {half}-{count - 1}}}\n"
    )


def _halves(dataset: Dataset) -> Mapping[str, int]:
    return dict.fromkeys(("alpha", "beta"), dataset.model_bytes() // 2)


def kept_tokens(tokenizer: Path, share: int = 4) -> list[str]:
    """One in `share` of the tokens of a tokenizer, spread over its ids."""
    vocabulary: dict[str, int] = json.loads(tokenizer.read_text(encoding="utf-8"))["model"]["vocab"]
    ordered = sorted(vocabulary, key=vocabulary.__getitem__)
    return ordered[::share]


def _trim(dataset: Dataset) -> str:
    tokens = kept_tokens(Path(dataset.model("alpha")) / "tokenizer.json")
    listed = json.dumps(tokens, ensure_ascii=True)
    return f"model: {dataset.model('alpha')}\nsteps:\n  - trim_vocabulary: {{tokens: {listed}}}\n"


def _trimmed_bytes(dataset: Dataset) -> int:
    layout = dataset.layout
    return dataset.model_bytes() - 2 * 2 * layout.hidden * (layout.vocabulary - layout.vocabulary // 4)


RESHAPES = (
    Reshape(
        "restack",
        "the first half of one model's layers and the second half of another's",
        _restack,
        _halves,
        Dataset.model_bytes,
        2.0,
    ),
    Reshape(
        "trim_vocabulary",
        "a quarter of the tokens kept: tokenizer, embedding and head",
        _trim,
        lambda dataset: {"alpha": _trimmed_bytes(dataset)},
        _trimmed_bytes,
        1.5,
    ),
)
