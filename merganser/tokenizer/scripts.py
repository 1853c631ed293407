"""Scripts as ranges of Unicode code points."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from merganser.errors import RequestError, did_you_mean

Ranges = tuple[tuple[int, int], ...]

SCRIPTS: dict[str, Ranges] = {
    "latin": (
        (0x41, 0x5A), (0x61, 0x7A), (0xAA, 0xAA), (0xBA, 0xBA), (0xC0, 0x24F), (0x250, 0x2AF), (0x1D00, 0x1D7F),
        (0x1E00, 0x1EFF), (0x2C60, 0x2C7F), (0xA720, 0xA7FF), (0xAB30, 0xAB6F), (0xFB00, 0xFB06), (0xFF21, 0xFF5A),
    ),
    "ascii": ((0x00, 0x7F),),
    "greek": ((0x370, 0x3FF), (0x1F00, 0x1FFF)),
    "cyrillic": ((0x400, 0x52F), (0x1C80, 0x1C8F), (0x1D2B, 0x1D2B), (0x2DE0, 0x2DFF), (0xA640, 0xA69F)),
    "armenian": ((0x530, 0x58F), (0xFB13, 0xFB17)),
    "hebrew": ((0x590, 0x5FF), (0xFB1D, 0xFB4F)),
    "arabic": ((0x600, 0x6FF), (0x750, 0x77F), (0x870, 0x8FF), (0xFB50, 0xFDFF), (0xFE70, 0xFEFF)),
    "syriac": ((0x700, 0x74F), (0x860, 0x86F)),
    "devanagari": ((0x900, 0x97F), (0xA8E0, 0xA8FF)),
    "bengali": ((0x980, 0x9FF),),
    "gurmukhi": ((0xA00, 0xA7F),),
    "gujarati": ((0xA80, 0xAFF),),
    "oriya": ((0xB00, 0xB7F),),
    "tamil": ((0xB80, 0xBFF),),
    "telugu": ((0xC00, 0xC7F),),
    "kannada": ((0xC80, 0xCFF),),
    "malayalam": ((0xD00, 0xD7F),),
    "sinhala": ((0xD80, 0xDFF),),
    "thai": ((0xE00, 0xE7F),),
    "lao": ((0xE80, 0xEFF),),
    "tibetan": ((0xF00, 0xFFF),),
    "myanmar": ((0x1000, 0x109F), (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F)),
    "georgian": ((0x10A0, 0x10FF), (0x1C90, 0x1CBF), (0x2D00, 0x2D2F)),
    "ethiopic": ((0x1200, 0x139F), (0x2D80, 0x2DDF), (0xAB00, 0xAB2F)),
    "khmer": ((0x1780, 0x17FF), (0x19E0, 0x19FF)),
    "mongolian": ((0x1800, 0x18AF),),
    "hangul": ((0x1100, 0x11FF), (0x3130, 0x318F), (0xA960, 0xA97F), (0xAC00, 0xD7FF), (0xFFA0, 0xFFDC)),
    "hiragana": ((0x3041, 0x309F),),
    "katakana": ((0x30A0, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F)),
    "han": (
        (0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3021, 0x3029), (0x3038, 0x303B), (0x3400, 0x4DBF), (0x4E00, 0x9FFF),
        (0xF900, 0xFAFF), (0x20000, 0x323AF),
    ),
}  # fmt: skip
SCRIPTS["japanese"] = SCRIPTS["han"] + SCRIPTS["hiragana"] + SCRIPTS["katakana"] + ((0x30FC, 0x30FC),)
SCRIPTS["korean"] = SCRIPTS["hangul"]
SCRIPTS["chinese"] = SCRIPTS["han"] + ((0x3100, 0x312F), (0x31A0, 0x31BF))
_COMBINING = (0x300, 0x36F)
_RANGE = re.compile(r"U\+([0-9A-F]{4,6})(?:-(?:U\+)?([0-9A-F]{4,6}))?", re.IGNORECASE)


def ranges_of(names: Iterable[str]) -> Ranges:
    """The code points of scripts by name (`latin`) or range (`U+0400-U+04FF`).

    Raises `RequestError` with the nearest name.
    """
    found: list[tuple[int, int]] = []
    for name in names:
        given = _RANGE.fullmatch(name.strip())
        if given:
            low, high = int(given[1], 16), int(given[2] or given[1], 16)
            if not low <= high <= 0x10FFFF:
                raise RequestError(f"the range {name!r} runs backwards or past U+10FFFF")
            found.append((low, high))
        elif name.lower() in SCRIPTS:
            found += SCRIPTS[name.lower()]
        else:
            raise RequestError(
                f"unknown script {name!r}{did_you_mean(name.lower(), SCRIPTS)} "
                f"(known: {', '.join(SCRIPTS)}, or a range as U+0400-U+04FF)"
            )
    return tuple(found)


def in_scripts(text: str, ranges: Sequence[tuple[int, int]]) -> bool:
    """Whether every letter and mark of a text is in the ranges.

    Digits, punctuation, symbols and spaces belong to every script, and so do the combining marks U+0300 to U+036F.
    """
    for c in text:
        if unicodedata.category(c)[0] not in "LM":
            continue
        point = ord(c)
        if _COMBINING[0] <= point <= _COMBINING[1]:
            continue
        if not any(low <= point <= high for low, high in ranges):
            return False
    return True
