"""Numbers that stand beside a score: what chance and the commonest answer would reach, how varied outputs are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any


def beside(kind: str, columns: Mapping[str, Sequence[Any]]) -> dict[str, float]:
    """By name; empty where a kind has none.

    - chance: the mean of one over the number of choices. commonest_answer: the share of the answer that most samples
      have, by text (of classification) or by place among the choices (of multiple choice).
    - distinct_words: different words as a share of all words of the outputs; word_entropy: the entropy of their
      frequencies, in bits. Outputs that repeat themselves have less of both, whatever their score (Zheng et al. 2024,
      arXiv:2409.02908, P208).
    """
    if kind in ("classification", "multiple_choice"):
        choices, answers = columns.get("choices", ()), columns.get("answer", ())
        pairs = [(list(c), a) for c, a in zip(choices, answers, strict=True) if c and a is not None]
        if not pairs:
            return {}
        by_place = kind == "multiple_choice"
        given = Counter(c.index(a) if by_place and a in c else a for c, a in pairs)
        return {
            "chance": sum(1 / len(c) for c, _ in pairs) / len(pairs),
            "commonest_answer": max(given.values()) / len(pairs),
        }
    if kind == "generation":
        words = Counter(word for text in columns.get("text", ()) for word in (text or "").split())
        total = sum(words.values())
        if not total:
            return {}
        return {
            "distinct_words": len(words) / total,
            "word_entropy": abs(sum(n / total * math.log2(n / total) for n in words.values())),
        }
    return {}
