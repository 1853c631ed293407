"""Byte-pair merges: which smaller tokens the making of a token goes through."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from itertools import pairwise


class Merges:
    """An ordered list of merges, the first the strongest.

    `prefix` stands before symbols inside a word, `suffix` after the last symbol of one (both mostly empty).
    """

    def __init__(self, merges: Iterable[tuple[str, str]], prefix: str = "", suffix: str = "") -> None:
        self.prefix, self.suffix = prefix, suffix
        self.rank = {pair: k for k, pair in enumerate(merges)}

    def made(self, left: str, right: str) -> str:
        """The token that a merge makes."""
        return left + right[len(self.prefix) :]

    def add(self, left: str, right: str) -> None:
        """One more merge, weaker than all others."""
        self.rank[left, right] = len(self.rank)

    def symbols(self, token: str) -> list[str]:
        """The single characters that a token is made of, as they are written where the token stands."""
        inside = bool(self.prefix) and token.startswith(self.prefix)
        ends = bool(self.suffix) and token.endswith(self.suffix)
        text = token[len(self.prefix) if inside else 0 : len(token) - len(self.suffix) if ends else None]
        found = [self.prefix + c if inside or k else c for k, c in enumerate(text)]
        if found and ends:
            found[-1] += self.suffix
        return found

    def derive(self, token: str) -> tuple[list[str], set[str]]:
        """The pieces that merging leaves of a token's characters, and every symbol on the way.

        In any text, what lies inside a piece is merged as if it stood alone: a merge across its border would have made
        another piece. So a token can be produced by merges if and only if the pieces are the token itself, and then the
        symbols on the way are all that it needs. Time n log n in characters.
        """
        symbols: list[str | None] = list(self.symbols(token))
        known = {s for s in symbols if s is not None}
        after = [*range(1, len(symbols)), -1] if symbols else []
        before = list(range(-1, len(symbols) - 1))
        heap = [(self.rank[p], k, p) for k, p in enumerate(pairwise(symbols)) if p in self.rank]
        heapq.heapify(heap)
        while heap:
            _, at, pair = heapq.heappop(heap)
            right = after[at]
            if right < 0 or (symbols[at], symbols[right]) != pair:
                continue
            new = self.made(*pair)
            known.add(new)
            symbols[at], symbols[right] = new, None
            after[at] = after[right]
            if after[right] >= 0:
                before[after[right]] = at
            for left in (before[at], at):
                if left >= 0 and after[left] >= 0:
                    next_pair = (symbols[left], symbols[after[left]])
                    if next_pair in self.rank:
                        heapq.heappush(heap, (self.rank[next_pair], left, next_pair))
        return [s for s in symbols if s is not None], known
