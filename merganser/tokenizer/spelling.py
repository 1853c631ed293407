"""How tokens are spelled: bytes as letters, a sign for the space, a sign for the inside of a word."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

SPACE = "\u2581"
"""The sign for a space in SentencePiece's vocabularies."""
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@cache
def byte_letters() -> dict[str, int]:
    """The letters that stand for bytes in byte-level vocabularies: printable ones for themselves, then from U+0100."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + k): b for k, b in enumerate(others)}


@cache
def _letters() -> dict[int, str]:
    return {byte: letter for letter, byte in byte_letters().items()}


@dataclass(frozen=True)
class Spelling:
    """How a tokenizer writes text into tokens.

    byte_level: every byte is a letter. spaced: a space is `▁`. word_starts: tokens without `prefix` begin a word
    (WordPiece). suffix: what ends the last token of a word. fallback: `<0x0A>` are bytes.
    """

    byte_level: bool = False
    spaced: bool = False
    word_starts: bool = False
    prefix: str = ""
    suffix: str = ""
    fallback: bool = False

    @classmethod
    def of(cls, kind: str, document: Mapping[str, Any]) -> Spelling:
        """Read from the parts of a tokenizer.json."""
        parts = [document.get(key) for key in ("normalizer", "pre_tokenizer", "decoder")]
        nodes = [node for part in parts for node in _nodes(part)]
        model = document["model"]
        return cls(
            byte_level=any(node.get("type") == "ByteLevel" for node in nodes),
            spaced=any(node.get("type") == "Metaspace" or SPACE in map(str, node.values()) for node in nodes),
            word_starts=kind == "WordPiece",
            prefix=model.get("continuing_subword_prefix") or "",
            suffix=(model.get("end_of_word_suffix") or "") if kind == "BPE" else "",
            fallback=bool(model.get("byte_fallback")),
        )

    @property
    def words(self) -> str:
        """For messages."""
        if self.byte_level:
            return "byte-level"
        if self.word_starts or self.prefix:
            return f"pieces inside a word after {self.prefix!r}"
        return f"{SPACE} for a space" if self.spaced else "plain"

    def byte_of(self, token: str) -> int | None:
        """The byte that a token stands for, of byte-level letters and byte fallback; None for other tokens."""
        bare = token.removesuffix(self.suffix)
        if self.byte_level and len(bare) == 1:
            return byte_letters().get(bare)
        found = _BYTE.fullmatch(token) if self.fallback else None
        return int(found[1], 16) if found else None

    def text(self, token: str) -> bytes:
        """What a token stands for, as UTF-8 (or a part of it); a token that begins a word has a space before it.

        Tokens that end a word by a suffix keep it, after a NUL, so that they equal no other spelling's.
        """
        found = _BYTE.fullmatch(token) if self.fallback else None
        if found:
            return bytes([int(found[1], 16)])
        if self.suffix:
            return b"\0" + token.encode()
        if self.byte_level:
            letters = byte_letters()
            return bytes(letters[c] for c in token) if all(c in letters for c in token) else token.encode()
        if self.word_starts:
            inside = bool(self.prefix) and token.startswith(self.prefix)
            return (token[len(self.prefix) :] if inside else " " + token).encode()
        return (token.replace(SPACE, " ") if self.spaced else token).encode()

    def letters(self, token: str) -> str | None:
        """What a token stands for as text without signs; None where it is a part of a character."""
        bare = replace(self, suffix="")
        try:
            return bare.text(token.removesuffix(self.suffix)).decode()
        except UnicodeDecodeError:
            return None

    def written(self, text: bytes) -> str | None:
        """A text in this spelling's letters, for a model that splits words no further; None where it cannot be."""
        if self.byte_level:
            return "".join(_letters()[byte] for byte in text)
        try:
            plain = text.decode()
        except UnicodeDecodeError:
            return None
        return plain.replace(" ", SPACE) if self.spaced else plain


def _nodes(part: Any) -> Iterator[Mapping[str, Any]]:
    """Every component inside one, itself first."""
    if isinstance(part, Mapping):
        yield part
        for value in part.values():
            yield from _nodes(value)
    elif isinstance(part, list):
        for value in part:
            yield from _nodes(value)
